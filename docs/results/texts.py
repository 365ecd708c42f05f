"""The texts of the studies, made in the present folder from the files of the folder that is named.

    python texts.py FOLDER

Read are en_wikipedia.jsonl.gz, ru_literature.jsonl.gz and zh_wikipedia.jsonl.gz (a JSON object with `text` a line) and the
line-aligned tatoeba.rus-eng.{eng,rus} and tatoeba.cmn-eng.{eng,cmn}. Every 40th document is held out, and of these the
beginning is scored; of the others as many are trained on as give about six million tokens a language.
"""

import gzip
import json
import sys
from itertools import islice
from pathlib import Path

TEXTS = {  # name -> file, characters to train on, characters to score
    "en": ("en_wikipedia", 13_000_000, 60_000),
    "ru": ("ru_literature", 10_000_000, 40_000),
    "zh": ("zh_wikipedia", 7_000_000, 30_000),
}
PAIRS = {"tatoeba.rus-eng": {"eng": "en-of-ru", "rus": "ru"}, "tatoeba.cmn-eng": {"eng": "en-of-zh", "cmn": "zh"}}
EACH, PLACE, TRAINED, SCORED = 40, 20, 900, 60  # documents; pairs


def cut_texts(folder: Path) -> None:
    """Write NAME.jsonl and NAME-held-out.txt."""
    for name, (file, characters, scored) in TEXTS.items():
        with gzip.open(next(folder.rglob(f"{file}.jsonl.gz")), "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        Path(f"{name}-held-out.txt").write_text("\n".join(texts[PLACE::EACH])[:scored], encoding="utf-8")
        size = 0
        with open(f"{name}.jsonl", "w", encoding="utf-8") as out:
            for number, text in enumerate(texts):
                if number % EACH != PLACE and size < characters:
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    size += len(text)


def cut_pairs(folder: Path) -> None:
    """Write pairs.NAME and pairs-held-out.NAME."""
    for file, names in PAIRS.items():
        for language, name in names.items():
            lines = next(folder.rglob(f"{file}.{language}")).read_text(encoding="utf-8").splitlines(keepends=True)
            Path(f"pairs.{name}").write_text("".join(islice(lines, TRAINED)), encoding="utf-8")
            Path(f"pairs-held-out.{name}").write_text("".join(lines[-SCORED:]), encoding="utf-8")


if __name__ == "__main__":
    cut_texts(Path(sys.argv[1]))
    cut_pairs(Path(sys.argv[1]))

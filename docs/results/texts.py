"""The texts of the studies, made in the present folder from the files of the folder that is named.

    python texts.py FOLDER

Read are en_wikipedia.jsonl.gz, ru_literature.jsonl.gz and zh_wikipedia.jsonl.gz (a JSON object with `text` and `title` a
line; parts of one work are called WORK [0], WORK [1]), the line-aligned tatoeba.rus-eng.{eng,rus} and
tatoeba.cmn-eng.{cmn,eng}, and the translated sentences of FLORES-200, {eng_Latn,rus_Cyrl,zho_Hans}.dev.

Whole articles and works are held out, HELD_OUT of each language, drawn over all of them; a passage of each is scored, from
a paragraph drawn in it, so that no document dominates. Of the others as many are trained on as give about six million
tokens. repeats.jsonl has a passage of each of the first REPEATED English articles of these: a text to repeat many times.
"""

import gzip
import json
import random
import re
import sys
from itertools import groupby, islice
from pathlib import Path

TEXTS = {  # name -> file, characters to train on, characters of a passage to score
    "en": ("en_wikipedia", 13_000_000, 600),
    "ru": ("ru_literature", 10_000_000, 400),
    "zh": ("zh_wikipedia", 7_000_000, 250),
}
PAIRS = {"tatoeba.rus-eng": {"eng": "en-of-ru", "rus": "ru"}, "tatoeba.cmn-eng": {"eng": "en-of-zh", "cmn": "zh"}}
HELD_OUT, SEED = 120, 1  # documents of each language
REPEATED = 40  # passages of repeats.jsonl
TRAINED, SCORED = 900, 60  # pairs
TRANSLATED = ("eng_Latn.dev", "rus_Cyrl.dev", "zho_Hans.dev")
INTERLEAVED, SWITCHED = 60, 160  # sentences


def works(path: Path) -> list[dict[str, str]]:
    """The articles or works of a file, their parts joined."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    named = groupby(rows, key=lambda row: re.sub(r" \[\d+\]$", "", row["title"]))
    return [{"title": title, "text": "\n".join(row["text"] for row in parts)} for title, parts in named]


def passage(text: str, characters: int, dice: random.Random) -> str:
    """So many characters of a text from a paragraph on that leaves room for them; all of a shorter one."""
    starts = [match.end() for match in re.finditer(r"^|\n", text) if match.end() + characters <= len(text)]
    start = dice.choice(starts) if starts else 0
    return text[start : start + characters]


def cut_texts(folder: Path) -> None:
    """Write NAME.jsonl, NAME-held-out.jsonl and mixed-held-out.jsonl, whose documents change language: a document a line."""
    held_out: dict[str, list[dict[str, str]]] = {}
    for name, (file, characters, scored) in TEXTS.items():
        documents, dice = works(next(folder.rglob(f"{file}.jsonl.gz"))), random.Random(SEED)
        apart = {*dice.sample(range(len(documents)), HELD_OUT)}
        passages = [documents[number] | {"text": passage(documents[number]["text"], scored, dice)}
                    for number in sorted(apart)]
        held_out[name] = passages
        _write(Path(f"{name}-held-out.jsonl"), passages)
        others, size = [document for number, document in enumerate(documents) if number not in apart], 0
        dice.shuffle(others)
        trained = []
        for document in others:
            if size < characters:
                trained.append(document)
                size += len(document["text"])
        _write(Path(f"{name}.jsonl"), trained)
    mixed = [{"text": "\n".join(part["text"][: len(part["text"]) // 2] for part in parts)}
             for parts in zip(*held_out.values())]
    _write(Path("mixed-held-out.jsonl"), mixed)


def cut_repeats() -> None:
    """Write repeats.jsonl from en.jsonl."""
    dice, (_, _, characters) = random.Random(SEED), TEXTS["en"]
    with Path("en.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in islice(lines, REPEATED)]
    passages = [document | {"text": passage(document["text"], characters, dice)} for document in documents]
    _write(Path("repeats.jsonl"), passages)


def _write(path: Path, documents: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8")


def cut_pairs(folder: Path) -> None:
    """Write pairs.NAME and pairs-held-out.NAME."""
    for file, names in PAIRS.items():
        for language, name in names.items():
            lines = next(folder.rglob(f"{file}.{language}")).read_text(encoding="utf-8").splitlines(keepends=True)
            Path(f"pairs.{name}").write_text("".join(islice(lines, TRAINED)), encoding="utf-8")
            Path(f"pairs-held-out.{name}").write_text("".join(lines[-SCORED:]), encoding="utf-8")


def cut_sentences(folder: Path) -> None:
    """Write interleaved.jsonl and switched.jsonl of the translated sentences, a document a line.

    Interleaved is a sentence in all three languages, in an order that is drawn; switched is the first half of a sentence in
    one language and the second half of it in another.
    """
    lines = [next(folder.rglob(name)).read_text(encoding="utf-8").splitlines() for name in TRANSLATED]
    sentences, dice = list(zip(*lines)), random.Random(SEED)
    interleaved = [" ".join(dice.sample(same, len(same))) for same in sentences[:INTERLEAVED]]
    switched = []
    for same in sentences[INTERLEAVED : INTERLEAVED + SWITCHED]:
        (first, _), (_, last) = (halves(sentence) for sentence in dice.sample(same, 2))
        switched.append(f"{first} {last}")
    for name, texts in (("interleaved", interleaved), ("switched", switched)):
        _write(Path(f"{name}.jsonl"), [{"text": text} for text in texts])


def halves(sentence: str) -> tuple[str, str]:
    """A sentence cut between two words in its middle, or between two characters where it has no spaces."""
    between = " " if " " in sentence else ""
    parts = sentence.split(" ") if between else [*sentence]
    return between.join(parts[: len(parts) // 2]), between.join(parts[len(parts) // 2 :])


if __name__ == "__main__":
    cut_texts(Path(sys.argv[1]))
    cut_repeats()
    cut_pairs(Path(sys.argv[1]))
    cut_sentences(Path(sys.argv[1]))

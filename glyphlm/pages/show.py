"""The page of `glyphlm show`: for each token of a text its picture, code, neighbours, and predictions after each layer.

Shapes: T positions of a text (the first is `</s>`, which precedes documents), V vocabulary, L rows of predictions.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glyphlm.analysis.inspection import squeezed
from glyphlm.base.errors import InputError
from glyphlm.base.names import SAMPLES
from glyphlm.base.outputs import check_file, write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines
from glyphlm.pages.pictures import find_pictures
from glyphlm.pages.reader import Reader
from glyphlm.pages.render import GENERATOR, render
from glyphlm.runs.opening import Opened, open_model
from glyphlm.substrate.glyphs import LEGIBLE
from glyphlm.tokenizer.layouts import BYTES

PAGE, SCRIPT = "show.html", "show.js"
TEXTS = {  # shown if no texts are given
    "Three scripts": "In Russian, Germany is Германия. In Chinese, Germany is 德国.",
    "English": "The currency of Japan is the Japanese yen.",
    "Русский": "Официальный язык Бразилии — португальский.",
    "中文": "当地的货币是日元。当地的官方语言是日语。",
    "Letters that look alike": "A А Α, c с, o о ο, e е, paypal раураl",
    "Numbers": "Twice 12 is 24. Ten times 3,000 is 30,000.",
}
MOST_TOKENS = 48  # of a text
MOST_BYTES = 2_000_000  # of the page
PREDICTIONS = 8


class Explorer:
    """The data of a page about a run, or a run beside its twin.

    Raises:
        InputError: the two have different tokenizers, or one is a model of another library.
    """

    def __init__(self, run: Opened, twin: Opened | None = None):
        self.readers = [Reader(one) for one in (run, twin) if one]
        self.tokenizer = run.tokenizer
        if twin and twin.tokenizer.fingerprint != run.tokenizer.fingerprint:
            raise InputError(f"{run.name} reads tokenizer {run.tokenizer.fingerprint[:12]}, {twin.name} reads "
                             f"{twin.tokenizer.fingerprint[:12]}; give a twin that was trained with the same one")
        self.spelled = self.tokenizer.pictured()
        self.pictures, self.picture_note = find_pictures(self.readers)

    def page(self, texts: Sequence[tuple[str, str]] | None = None, live: bool = False) -> str:
        """The page; the last texts are left out if it would be too large."""
        chosen = list(self.readable(texts) if texts is None else texts)
        while True:
            page = self._page(chosen, live)
            if (size := len(page.encode())) <= MOST_BYTES or len(chosen) == 1:
                return page
            say(f"the page would have {size:,} bytes, more than {MOST_BYTES:,}; {chosen.pop()[0]!r} is left out")

    @cached_property
    def live_page(self) -> str:
        """The page with an input field, whose text it sends to /look of its server."""
        return self.page(live=True)

    def look_at(self, text: str) -> dict[str, Any]:
        """The data of a typed text."""
        return self.look([(_title(text), text)])

    def _page(self, texts: Sequence[tuple[str, str]], live: bool) -> str:
        runs = [reader.facts() for reader in self.readers]
        about = {"runs": runs, "live": live}
        data = about | {"side": self.pictures and self.pictures.side} | self.look(texts)
        notes = {"note": self.picture_note, "share": self._squeezed(), "legible": LEGIBLE}
        return render("show.html.jinja", about | notes | {"data": data}, SCRIPT, live)

    def _squeezed(self) -> float | None:
        """Share of tokens whose characters are too narrow to be legible."""
        pictures = self.pictures
        return pictures and len(squeezed(pictures.texts, pictures.side)) / len(pictures.texts)

    def readable(self, texts: Sequence[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
        """The prepared texts, then samples of the run, that this vocabulary can encode.

        Raises:
            InputError: there are none.
        """
        samples = self.readers[0].folder / SAMPLES
        written = read_json_lines(samples, {"text": (str,)}) if samples.is_file() else []
        every = [*TEXTS.items(), *((f"Sample {number + 1}", row["text"]) for number, row in enumerate(written[:2]))]
        found = [(title, text) for title, text in every if self._is_spelled(text)]
        if lost := [title for title, text in every if (title, text) not in found]:
            say(f"left out, as this vocabulary has no tokens for more than half of the text: {', '.join(lost)}")
        if not found:
            raise InputError("the vocabulary of the run spells none of the prepared texts; give some with --text")
        return found

    def _is_spelled(self, text: str) -> bool:
        ids, known = self.tokenizer.encode(text), set(self.readers[0].comparable)
        return 2 * sum(number in known for number in ids) > len(ids)

    def look(self, texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The data of (title, text) pairs: `texts`, and by id all `tokens` that they refer to."""
        found = [self._text(title, text) for title, text in texts]
        own = sorted({number for each in found for number in each["ids"]})
        tokens = {number: self._token(number) for number in own}
        near = {pair[0] for token in tokens.values() for run in token["near"] for pairs in run for pair in pairs or ()}
        predicted = {row[0] for each in found for rows in each["next"] for row in rows}
        named = {pair[0] for each in found for run in each["runs"] for row in run["lens"] for pair in row}
        for number in sorted((near | predicted | named) - set(own)):
            tokens[number] = self._name(number, pictured=number in near | predicted)
        return {"texts": found, "tokens": tokens}

    def _text(self, title: str, text: str) -> dict[str, Any]:
        most = min(MOST_TOKENS, *(reader.gpt.config.block_size - 1 for reader in self.readers))
        every = self.tokenizer.encode(text)
        ids = [self.tokenizer.end_id, *every[:most]]
        shown = self.tokenizer.decode(ids[1:])
        found = [reader.predict(ids) for reader in self.readers]
        return {"title": title, "text": shown, "cut": len(every) - len(ids) + 1, "bytes": len(shown.encode()), "ids": ids,
                "next": _likely([p_LTV[-1] for p_LTV in found], ids), "runs": [_by_layer(p_LTV, ids) for p_LTV in found]}

    def _name(self, number: int, pictured: bool = True) -> dict[str, Any]:
        picture = self.pictures and pictured and self.pictures.packed(number)
        is_byte = self.tokenizer.tokens[number] in BYTES
        text = f"0x{self.spelled[number]}" if is_byte else self.spelled[number]
        named = {"text": text, "special": is_byte or number in self.tokenizer.special_ids}
        return named | ({"picture": picture} if picture else {})

    def _token(self, number: int) -> dict[str, Any]:
        kept = self.pictures and self.pictures.kept(number)
        return self._name(number) | {
            "code": [reader.strip(number) for reader in self.readers],
            "near": [[reader.near_codes(number), reader.near_states(number)] for reader in self.readers],
            "squeezed": bool(self.pictures and self.pictures.squeezed(number)),
        } | ({"kept": kept} if kept else {})


def _likely(runs: Sequence[Tensor], ids: Sequence[int]) -> list[list[list[float]]]:
    """The likeliest next tokens at each position, and the actual one: [id, probability in each run]."""
    most = PREDICTIONS if len(runs) == 1 else PREDICTIONS * 3 // 4
    tops = [p_TV.topk(min(most, p_TV.shape[1])).indices.tolist() for p_TV in runs]
    rows = []
    for place in range(len(ids)):
        named = dict.fromkeys([*ids[place + 1 : place + 2], *(number for top in tops for number in top[place])])
        of_place = [[number, *(_round(p_TV[place, number].item()) for p_TV in runs)] for number in named]
        rows.append(sorted(of_place, key=lambda row: -max(row[1:])))
    return rows


def _by_layer(p_LTV: Tensor, ids: Sequence[int]) -> dict[str, Any]:
    """At each position: the likeliest token of each layer (`lens`); probability and rank of the actual one (`came`)."""
    final_TV, came_T = p_LTV[-1], torch.tensor(ids[1:], dtype=torch.long)
    first = p_LTV.max(-1)
    own_t = final_TV[:-1].gather(1, came_T[:, None])[:, 0]
    rank_t = (final_TV[:-1] > own_t[:, None]).sum(1) + 1
    return {
        "lens": _pairs(first.indices, first.values),
        "came": [[_round(p), rank] for p, rank in zip(own_t.tolist(), rank_t.tolist())],
    }


def _pairs(ids: Tensor, values: Tensor) -> list[list[list[float]]]:
    return [[[number, _round(p)] for number, p in zip(*row)] for row in zip(ids.tolist(), values.tolist())]


def _round(p: float) -> float:
    return float(f"{p:.3g}")


def write_show(
    run: str | Path, out: Path, twin: str | Path | None = None, texts: Sequence[str] = ()
) -> Path:
    """Write the page about `run`, beside its `twin`, to the file `out`, which is returned.

    Args:
        texts: Texts to show; by default prepared ones in several scripts, and samples of the run.

    Raises:
        InputError: a run cannot be loaded, the tokenizers differ, a text is empty, or `out` is something else.
    """
    check_file(out, (GENERATOR,), PAGE)
    if "" in texts:
        raise InputError(f"text {list(texts).index('') + 1} of {len(texts)} is empty; give some characters, or leave it out")
    explorer = Explorer(open_model(run), open_model(twin) if twin else None)
    page = explorer.page([(_title(text), text) for text in texts] or None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _title(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"

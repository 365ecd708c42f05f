"""What a run reads and predicts, token by token: picture, code, neighbours, prediction after each layer, next token.

Shapes: T positions of a text (the first is the end-of-text token, after which documents begin), V vocabulary, E n_embed,
D d_model, C tokens that are compared, K shown of each, L layers of predictions, S side of a picture, P = S * S pixels.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphlm.analysis.page import GENERATOR, render
from glyphlm.analysis.probes import layer_outputs
from glyphlm.analysis.run_data import finite
from glyphlm.base.errors import InputError
from glyphlm.base.names import SAMPLES, SETTINGS, SUMMARY
from glyphlm.base.outputs import check_file, write_atomic
from glyphlm.base.progress import meter, say
from glyphlm.base.records import read_json, read_json_lines, read_yaml
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import scale_rows
from glyphlm.runs.opening import Opened, open_model
from glyphlm.substrate.build import TENSORS, SubstrateSettings, draw_vocabulary, make_values
from glyphlm.substrate.codes import all_codes, principal_axes
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import LEGIBLE, draw_tokens, pixels_a_character
from glyphlm.tokenizer.layouts import BYTES
from glyphlm.tokenizer.tokenizer import Tokenizer

PAGE, SCRIPT = "show.html", "show.js"
TEXTS = {  # what is shown where no texts are given
    "Three scripts": "In Russian, Germany is Германия. In Chinese, Germany is 德国.",
    "English": "The currency of Japan is the Japanese yen.",
    "Русский": "Официальный язык Бразилии — португальский.",
    "中文": "当地的货币是日元。当地的官方语言是日语。",
    "Letters that look alike": "A А Α, c с, o о ο, e е, paypal раураl",
    "Numbers": "Twice 12 is 24. Ten times 3,000 is 30,000.",
}
MOST_TOKENS = 48  # of a text
MOST_BYTES = 2_000_000  # of the page
SHOWN_CODE = 256  # values of a code
SHOWN_LAYERS = 12
NEIGHBOURS, PREDICTIONS = 5, 8
COMPARED = 1 << 14  # tokens of a large vocabulary whose states are computed
BATCH = 512
GREYS = 15


@dataclass(frozen=True)
class Pictures:
    """Pictures of all tokens with what is known of them; `axes` are those of the codes, where codes are projections."""

    bits_VP: np.ndarray
    texts: list[str]
    axes: tuple[np.ndarray, np.ndarray] | None
    note: str

    @property
    def side(self) -> int:
        """S."""
        return math.isqrt(self.bits_VP.shape[1])

    def packed(self, number: int) -> str:
        """The picture of a token, 8 pixels a byte, as base64."""
        return _base64(np.packbits(self.bits_VP[number]))

    def kept(self, number: int) -> str | None:
        """What the code keeps of the picture: its projection on the axes of the codes, two grey pixels a byte."""
        if self.axes is None:
            return None
        mean_P, axes_PE = self.axes
        grey_P = mean_P + (self.bits_VP[number] - mean_P) @ axes_PE @ axes_PE.T
        level_P = np.rint(grey_P.clip(0, 1) * GREYS).astype(np.uint8)
        return _base64(level_P[::2] << 4 | level_P[1::2])

    def squeezed(self, number: int) -> bool:
        """Whether the characters are too narrow to be read."""
        return pixels_a_character(self.texts[number], self.side) < LEGIBLE


class Reader:
    """An open run, and what is looked up in it.

    Raises:
        InputError: the model is of another library.
    """

    def __init__(self, opened: Opened):
        self.folder, self.label, self.tokenizer = opened.folder, opened.name, opened.tokenizer
        if not isinstance(opened.model, GPT | Fusion):
            raise InputError(f"{opened.name} is no run of glyphlm: its model has no codes to show; give a run folder, or make "
                             "one with glyphlm import")
        self.gpt = opened.model
        self.config = self.gpt.substrate.config
        tensors = {name: tensor for name, tensor in self.gpt.substrate.state_dict().items() if name in TENSORS}
        self.code_VE = all_codes(self.config, tensors).float()

    @property
    def words(self) -> str:
        """The substrate in words, such as "frozen glyph codes"."""
        kind = self.config.kind.replace("_", " ")
        return "learned codes" if kind == "learned" else f"{'trained' if self.config.trainable else 'frozen'} {kind} codes"

    def facts(self) -> dict[str, Any]:
        """What the head of the page says of the run, and which parts of the page do not apply to it."""
        config, path = self.gpt.config, self.folder / SUMMARY
        summary = read_json(path) if path.is_file() else {}
        return {
            "label": self.label,
            "codes": self.words,
            "kind": self.config.kind,
            "trainable": self.config.trainable,
            "width": self.config.n_embed,
            "model": {"layers": config.n_layer, "width": config.d_model, "context": config.block_size},
            "tokens": summary.get("tokens"),
            "bits": finite((summary.get("bits_per_byte") or {}).get("validation")),
            "layers": self.layer_names,
            "missing": self._missing(),
        }

    def _missing(self) -> list[str]:
        found, ids, width = [], len(self.comparable), self.config.n_embed
        if isinstance(self.gpt, Fusion):
            experts, tables = len(self.gpt.experts), len(self.gpt.substrates)
            found.append(f"{self.label} is fused from {experts} experts, which have no layers in common: predictions are "
                         "shown by expert, and states after a first layer do not apply")
            found += [f"the experts of {self.label} read {tables} tables of codes; the first is shown"] if tables > 1 else []
        elif ids > COMPARED:
            found.append(f"states of {self.label} after the first layer are compared among {COMPARED:,} of {ids:,} tokens")
        if width > SHOWN_CODE:
            found.append(f"of the {width:,} values of a code of {self.label} the first {SHOWN_CODE} are drawn")
        return found

    @property
    def layer_names(self) -> list[str]:
        """Of the rows of predictions: codes, after block 1 .. L; or the experts of a fused run, and the whole."""
        if isinstance(self.gpt, Fusion):
            return [*(f"expert {number + 1}" for number in range(len(self.gpt.experts))), "fused"]
        names = ["codes alone", *(f"after layer {number + 1}" for number in range(self.gpt.config.n_layer))]
        return [names[number] for number in self._rows(len(names))]

    @staticmethod
    def _rows(count: int) -> list[int]:
        return sorted({round(row) for row in np.linspace(0, count - 1, min(count, SHOWN_LAYERS))})

    @torch.no_grad()
    def predict(self, ids: Sequence[int]) -> Tensor:
        """Probabilities of the next token [L, T, V] at each row of `layer_names`; the last is that of the model."""
        ids_BT = torch.tensor([ids])
        if isinstance(self.gpt, Fusion):
            rows = [F.linear(expert.hidden(self.gpt.substrates[read](ids_BT)), *head)
                    for expert, read, head in zip(self.gpt.experts, self.gpt.reads, self.gpt.heads())]
            rows.append(self.gpt(ids_BT))
        else:
            states = layer_outputs(self.gpt, ids_BT)[:-1]
            rows = [self.gpt.logits(self.gpt.norm(states[number])) for number in self._rows(len(states))]
        return torch.cat(rows).float().softmax(-1)

    @cached_property
    def comparable(self) -> list[int]:
        """Ids of tokens that are text."""
        special, tokens = self.tokenizer.special_ids, self.tokenizer.tokens
        return [number for number, token in enumerate(tokens) if number not in special and token not in BYTES]

    def near_codes(self, number: int) -> list[list[float]]:
        """The nearest other tokens by the cosine of their codes: [id, cosine]."""
        return self._nearest(self._unit_code_CE, F.normalize(self.code_VE[number], dim=0), self.comparable, number)

    def near_states(self, number: int) -> list[list[float]] | None:
        """The nearest by the state after the first layer, each token alone after the end of a text; None if fused."""
        if isinstance(self.gpt, Fusion):
            return None
        return self._nearest(self._unit_state_CD, self._first_states([number])[0], self._compared, number)

    @cached_property
    def _unit_code_CE(self) -> Tensor:
        return F.normalize(self.code_VE[torch.tensor(self.comparable)], dim=1)

    @cached_property
    def _compared(self) -> list[int]:
        places = np.linspace(0, len(self.comparable) - 1, min(COMPARED, len(self.comparable))).round().astype(int)
        return [self.comparable[place] for place in places]

    @cached_property
    def _unit_state_CD(self) -> Tensor:
        return self._first_states(self._compared, f"{self.label}: states after the first layer")

    @torch.no_grad()
    def _first_states(self, numbers: Sequence[int], title: str | None = None) -> Tensor:
        found, first = [], self._first_layer
        with meter(title, len(numbers)) as bar:
            for start in range(0, len(numbers), BATCH):
                part = numbers[start : start + BATCH]
                ids_BT = torch.tensor([[self.tokenizer.end_id, number] for number in part])
                found.append(F.normalize(layer_outputs(first, ids_BT)[1][:, 1], dim=1))
                bar.advance(len(part))
        return torch.cat(found)

    @cached_property
    def _first_layer(self) -> GPT:
        """The model cut off after its first layer."""
        assert isinstance(self.gpt, GPT)
        with torch.device("meta"):
            first = GPT(replace(self.gpt.config, n_layer=1), self.gpt.substrate)
        blocks: Any = nn.ModuleList(self.gpt.blocks[:1])
        first.blocks, first.norm = blocks, self.gpt.norm
        return first.eval()

    @staticmethod
    def _nearest(unit_CX: Tensor, own_X: Tensor, ids: Sequence[int], number: int) -> list[list[float]]:
        cosine_C = unit_CX @ own_X
        found = torch.sort(cosine_C, descending=True, stable=True).indices[: NEIGHBOURS + 1].tolist()
        others = [place for place in found if ids[place] != number][:NEIGHBOURS]
        return [[ids[place], round(cosine_C[place].item(), 4)] for place in others]

    def strip(self, number: int) -> str:
        """The first values of a code as base64, one signed byte each, the largest of all values shown being 127."""
        value_E = self.code_VE[number, :SHOWN_CODE]
        return _base64((value_E / value_E.abs().max().clamp(min=1e-30) * 127).round().to(torch.int8).numpy())


class Explorer:
    """One run, or a run beside its twin, and the data of a page about them.

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
        """The page; the last of the texts are left out where it would be too large."""
        chosen = list(self.readable(texts) if texts is None else texts)
        while True:
            page = self._page(chosen, live)
            if (size := len(page.encode())) <= MOST_BYTES or len(chosen) == 1:
                return page
            say(f"the page would have {size:,} bytes, more than {MOST_BYTES:,}; {chosen.pop()[0]!r} is left out")

    @cached_property
    def live_page(self) -> str:
        """The page with a field for typed text, which it sends to /look of its server."""
        return self.page(live=True)

    def look_at(self, text: str) -> dict[str, Any]:
        """What the page says of a typed text."""
        return self.look([(_title(text), text)])

    def _page(self, texts: Sequence[tuple[str, str]], live: bool) -> str:
        runs = [reader.facts() for reader in self.readers]
        about = {"runs": runs, "live": live}
        data = about | {"side": self.pictures and self.pictures.side} | self.look(texts)
        notes = {"note": self.picture_note, "share": self._squeezed(), "legible": LEGIBLE}
        return render("show.html.jinja", about | notes | {"data": data}, SCRIPT, live)

    def _squeezed(self) -> float | None:
        """Share of the tokens whose characters are too narrow in their pictures."""
        pictures, ids = self.pictures, self.readers[0].comparable
        return None if pictures is None else sum(map(pictures.squeezed, ids)) / len(ids)

    def readable(self, texts: Sequence[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
        """The prepared texts that this vocabulary can spell, then samples of the run.

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
        """All that the page says of (title, text): `texts` one by one, and the `tokens` that are named, by id."""
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
    """At each position the likeliest next tokens of all runs, with the one that came: [id, probability in each run]."""
    most = PREDICTIONS if len(runs) == 1 else PREDICTIONS * 3 // 4
    tops = [p_TV.topk(min(most, p_TV.shape[1])).indices.tolist() for p_TV in runs]
    rows = []
    for place in range(len(ids)):
        named = dict.fromkeys([*ids[place + 1 : place + 2], *(number for top in tops for number in top[place])])
        of_place = [[number, *(_round(p_TV[place, number].item()) for p_TV in runs)] for number in named]
        rows.append(sorted(of_place, key=lambda row: -max(row[1:])))
    return rows


def _by_layer(p_LTV: Tensor, ids: Sequence[int]) -> dict[str, Any]:
    """Of each position: the likeliest token at each layer; and how likely the one that came was, and its rank."""
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


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def find_pictures(readers: Sequence[Reader]) -> tuple[Pictures | None, str]:
    """Pictures of all tokens, and a sentence on where they come from.

    The first run of kind glyph decides how they are drawn: as its recipe says, else as the defaults or the published
    tables. Whether the codes were made from these very pictures is found out by making them again.
    """
    reader = next((reader for reader in readers if reader.config.kind == "glyph"), None)
    tried = []
    for settings in _drawings(reader) if reader else ():
        try:
            found = _draw(reader, settings)
        except InputError as error:
            return None, f"No pictures: {error}."
        if found.note:
            return found, found.note
        tried.append(found)
    if tried:
        return tried[0], ("Pictures are drawn by the fonts of this machine. The codes are not those that come from them: "
                          "they were trained further, or drawn with another font or other settings.")
    return _plain_pictures(readers[0])


def _plain_pictures(reader: Reader) -> tuple[Pictures | None, str]:
    try:
        fonts, texts = load_fonts(None, 32), reader.tokenizer.pictured()
        bits_VP = draw_tokens(texts, fonts, 32).bits_VP
    except InputError as error:
        return None, f"No pictures: the codes of {reader.label} hold none, and {error}."
    note = (f"The {reader.words} of {reader.label} are not made from pictures; these are drawn with "
            f"{_names(fonts.paths)}, to recognize the tokens.")
    return Pictures(bits_VP, texts, None, note), note


def _drawings(reader: Reader) -> Iterable[SubstrateSettings]:
    """Ways in which the pictures of a run may have been drawn, the recorded one first."""
    config, path = reader.config, reader.folder / SETTINGS
    recorded = (read_yaml(path).get("substrate") or {}) if path.is_file() else {}
    known = {field.name for field in fields(SubstrateSettings)} - {"path", "strict"}
    same = {name: getattr(config, name) for name in ("kind", "n_embed", "scale", "lift", "lift_seed")}
    told = SubstrateSettings(**{key: value for key, value in recorded.items() if key in known} | same)
    ways = [told, SubstrateSettings(**same), SubstrateSettings(**same, augment="published")]
    return [way for number, way in enumerate(ways) if way not in ways[:number]]


def _draw(reader: Reader, settings: SubstrateSettings) -> Pictures:
    """The pictures; with axes and a note only if the codes of the run are made from them."""
    texts = reader.tokenizer.pictured(settings.spelling)
    fonts = load_fonts(settings.font or None, settings.side)
    bits_VP = draw_vocabulary(texts, fonts, settings).bits_VP
    axes = None
    if settings.pca and not settings.unique:
        axes = principal_axes(bits_VP, settings.n_embed)
        table_VE = scale_rows(torch.from_numpy((bits_VP - axes[0]) @ axes[1]), settings.scale)
    else:
        frozen = replace(reader.config, trainable=False)
        table_VE = make_values(frozen, settings, reader.tokenizer.fingerprint, bits_VP)[1]["table_VE"]
    if not torch.allclose(table_VE, reader.code_VE, atol=1e-4):  # LAPACK may round differently on another machine
        return Pictures(bits_VP, texts, None, "")
    note = (f"These are the pictures that the codes of {reader.label} were computed from: drawn again with "
            f"{_names(fonts.paths)}, {settings.side} × {settings.side} pixels, they give the same codes.")
    return Pictures(bits_VP, texts, axes, note)


def _names(paths: Iterable[Path]) -> str:
    return " and ".join(path.name for path in paths)


def write_show(
    run: str | Path, out: Path, twin: str | Path | None = None, texts: Sequence[str] = ()
) -> Path:
    """Write the page about `run`, beside its `twin`, to the file `out` and return `out`.

    Args:
        texts: What is shown; by default prepared texts in several scripts, and samples of the run.

    Raises:
        InputError: a run cannot be loaded, the tokenizers differ, a text is empty, or `out` is something else.
    """
    check_file(out, (GENERATOR,), PAGE)
    if "" in texts:
        raise InputError(f"text {list(texts).index('') + 1} of {len(texts)} is empty; give some characters, or leave it out")
    page = Explorer(open_model(run), open_model(twin) if twin else None).page([(_title(text), text) for text in texts] or None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _title(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"

"""Probe of characters that were absent from training: how well a model reads them, and how well it predicts them.

Reading: the text after such a character is scored with the codes of the run and with random codes in their place; an oracle,
a run that was trained on these characters, shows how much could be gained. Writing: the probability of the characters where
they occur, relative to a smoothed unigram. Runs are compared in bits per byte of the same spans, so their vocabularies may
differ. A picture of each run shows what it predicts in the place of the characters. Shapes: T tokens of a document, N of
them the characters.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import Build
from glyphlm.base.progress import meter
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.base.tables import aligned
from glyphlm.corpus.reading import passages
from glyphlm.corpus.sources import describe, find_sources
from glyphlm.evaluation.stats import bootstrap
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.folder import load_run, read_summary, weights_sha256
from glyphlm.substrate.fonts import load_fonts, unifont_or_others
from glyphlm.substrate.glyphs import draw_tokens, glyph_sheet
from glyphlm.tokenizer.tokenizer import Piece, Tokenizer
from glyphlm.training.bits_per_byte import document_scores, windows

ROWS = "unseen.jsonl"
SIDE = 32  # pixels of a glyph
SPAN = 16  # bytes after a character that are scored: about the rest of its word
DRAWS = 4  # of random codes, whose scores are averaged
TOP = (1, 10, 100)
SHOWN, PREDICTED = 24, 10  # characters in a picture, and predicted tokens beside each
Row = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """An occurrence of a character: its id, the nats and the rank (from 0) of its prediction, and the likeliest ids."""

    id: int
    nats: float
    rank: int
    likeliest: list[int]


@dataclass
class Scored:
    """The ids of a document with the nats of each, and the byte offsets where they end."""

    nats_T: np.ndarray
    ends_T: np.ndarray
    ids_T: np.ndarray

    def after(self, places: Sequence[int], span: int = SPAN) -> tuple[float, int]:
        """Nats and bytes of the tokens that begin within `span` bytes after one of these byte offsets."""
        starts_T = np.concatenate([[0], self.ends_T[:-1]])
        inside_T = np.zeros(len(starts_T), bool)
        for place in places:
            inside_T |= (starts_T >= place) & (starts_T < place + span)
        return float(self.nats_T[inside_T].sum()), int((self.ends_T - starts_T)[inside_T].sum())


class RandomRows(nn.Module):
    """A substrate in which the vectors of some ids are replaced by random ones of the same norm."""

    def __init__(self, substrate: Substrate, ids: Sequence[int], seed: int):
        super().__init__()
        self.inner, self.config = substrate, substrate.config
        x_ND = substrate(torch.tensor([ids]))[0].detach()
        noise_ND = torch.randn(x_ND.shape, generator=torch.Generator().manual_seed(seed))
        self.x_ND = noise_ND / noise_ND.norm(dim=1, keepdim=True) * x_ND.norm(dim=1, keepdim=True)
        self.place_V = torch.full((substrate.config.vocab_size,), -1)
        self.place_V[torch.tensor(ids)] = torch.arange(len(ids))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """x_BTD."""
        place_BT1 = self.place_V[ids_BT][..., None]
        return torch.where(place_BT1 < 0, self.inner(ids_BT), self.x_ND[place_BT1[..., 0].clamp(min=0)])


def probe_unseen(
    runs: Sequence[str | Path], characters: str, text: str, out: Path, oracle: str | None = None, seed: int = 1
) -> list[Row]:
    """One row per run, also written to the folder `out`.

    Reading: bits per byte of the spans after the characters (`bits`), with random codes (`bits_random`), of the oracle
    (`bits_oracle`), and the share of the gap from random to oracle that the codes close (`closed`, its 95% interval over
    documents `low`, `high`). Writing: probability relative to the smoothed unigram, as geometric and arithmetic mean
    (`times_unigram`, `times_unigram_mean`), and the share of occurrences ranked in the top 1, 10 and 100. If the run has no
    ids for the characters, these and `bits_random` are null; of the others NUMBER-NAME.png shows predictions.

    Raises:
        InputError: a run is bad or fused, no document of the text has one of the characters, or `out` holds other work.
    """
    settings = {"characters": characters, "oracle": oracle, "seed": seed, "draws": DRAWS}
    inputs = {str(run): weights_sha256(run) for run in [*runs, *([oracle] if oracle else [])]}
    build = Build("unseen", settings, inputs | describe(find_sources([text])))
    if not build.is_done(out):
        documents = [passage.text for passage in passages([text]) if set(passage.text) & set(characters)]
        if not documents:
            raise InputError(f"no document of {text} holds one of the {len(characters)} characters; give a text that does")
        with meter("reading", len(documents) * len(inputs)) as bar:
            found = {run: readings(run, characters, documents, seed, bar=bar) for run in inputs}
        best = found[str(oracle)]["own"] if oracle else None
        rows = [{"run": run, **_row(found[run], best)} for run in map(str, runs)]
        with build.folder(out) as folder:
            (folder / ROWS).write_text(to_lines(rows), encoding="utf-8")
            for number, run in enumerate(map(str, runs), start=1):
                if found[run]["written"]:
                    draw_predictions(found[run]["written"], load_run(run)[1], folder / f"{number}-{Path(run).name}.png")
    return read_json_lines(out / ROWS)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned columns."""
    names = ("bits", "bits_random", "bits_oracle", "closed", "low", "high", "times_unigram", "top_1", "top_10", "top_100")
    lines = [[row["run"], *("" if row[name] is None else f"{row[name]:.3f}" for name in names)] for row in rows]
    return aligned([["run", *names], *lines])


def readings(
    run: str, characters: str, documents: Sequence[str], seed: int = 1, span: int = SPAN, bar: Any = None
) -> dict[str, Any]:
    """Nats and bytes after the characters by document, with `own` and `random` codes; `written`; `unigram` probability."""
    wrapped, tokenizer = load_run(run)
    gpt = wrapped.gpt
    if not isinstance(gpt, GPT):
        raise InputError(f"{run} is fused; probe the runs that it was made from")
    encoded = [tokenizer.encode(character) for character in characters]
    ids = sorted({one[0] for one in encoded if len(one) == 1})
    others = [_with_random_rows(gpt, ids, seed + draw) for draw in range(DRAWS)] if ids else []
    found: dict[str, Any] = {"own": [], "random": [] if ids else None, "written": []}
    for document in documents:
        places = [len(document[: at + 1].encode()) for at, one in enumerate(document) if one in characters]
        found["own"].append(read(gpt, tokenizer, document).after(places, span))
        if ids:
            drawn = [read(other, tokenizer, document).after(places, span) for other in others]
            found["random"].append((sum(nats for nats, _ in drawn) / DRAWS, drawn[0][1]))
            found["written"] += written(gpt, tokenizer, document, ids)
        if bar:
            bar.advance(1)
    tokens = (read_summary(Path(run)) or {}).get("tokens", 0)
    return found | {"unigram": 1 / (tokens + tokenizer.vocab_size)}


def _with_random_rows(gpt: GPT, ids: Sequence[int], seed: int) -> GPT:
    other = copy.copy(gpt)
    other._modules = dict(gpt._modules) | {"substrate": RandomRows(gpt.substrate, ids, seed)}
    return other


def read(gpt: GPT, tokenizer: Tokenizer, document: str) -> Scored:
    """Score all tokens of a document (see `document_scores`)."""
    nats, ids = [], []

    def keep(_: int, nats_N: Tensor, y_N: Tensor) -> None:
        nats.append(nats_N.numpy())
        ids.append(y_N.numpy())

    list(document_scores(gpt, _pieces(tokenizer, document), tokenizer.end_id, tokenizer.bytes_per_id_V, seen=keep))
    ids_T = np.concatenate(ids)
    return Scored(np.concatenate(nats), np.cumsum(tokenizer.bytes_per_id_V[ids_T].astype(np.int64)), ids_T)


def _pieces(tokenizer: Tokenizer, document: str) -> list[Piece]:
    return [Piece(np.array(tokenizer.encode(document), np.uint32), True)]


@torch.no_grad()
def written(gpt: GPT, tokenizer: Tokenizer, document: str, ids: Sequence[int]) -> list[Written]:
    """How each occurrence of `ids` in the document is predicted."""
    found, wanted = [], torch.tensor(ids)
    for ids_T, fresh, _ in windows(_pieces(tokenizer, document), tokenizer.end_id, gpt.config.block_size):
        y_T = torch.from_numpy(ids_T[1:].astype(np.int64))
        places_N = torch.isin(y_T, wanted).nonzero()[:, 0]
        places_N = places_N[places_N >= len(y_T) - fresh]
        if len(places_N):
            x_TD = gpt.hidden(torch.from_numpy(ids_T[None, :-1].astype(np.int64)))[0]
            logp_NV = gpt.logits(x_TD[places_N]).float().log_softmax(-1)
            right_N1 = logp_NV.gather(1, y_T[places_N, None])
            columns = y_T[places_N], -right_N1[:, 0], (logp_NV > right_N1).sum(1), logp_NV.topk(PREDICTED).indices
            found += [Written(*row) for row in zip(*(column.tolist() for column in columns))]
    return found


def draw_predictions(found: Sequence[Written], tokenizer: Tokenizer, path: Path) -> None:
    """A PNG with a line for each of SHOWN characters: its glyph, then those of the tokens predicted where it is first."""
    first = {one.id: one for one in reversed(found)}
    names = tokenizer.pictured()
    labels = [names[number] for one in [*first.values()][:SHOWN] for number in (one.id, *one.likeliest)]
    fonts = load_fonts(unifont_or_others(set("".join(labels)))[0], SIDE)
    glyph_sheet(draw_tokens(labels, fonts, SIDE).bits_VP, labels, path, fonts, columns=1 + PREDICTED)


def _row(found: dict[str, Any], oracle: list[tuple[float, int]] | None) -> Row:
    own, random, written_ = found["own"], found["random"], found["written"]
    row: Row = {"documents": len(own), "bits": bits_per_byte(own), "bits_random": random and bits_per_byte(random),
                "bits_oracle": oracle and bits_per_byte(oracle), "closed": None, "low": None, "high": None}
    if random and oracle:
        of_document = np.array([[r[0] - o[0], r[0] - b[0]] for r, o, b in zip(random, own, oracle)])
        row["closed"] = float(of_document[:, 0].sum() / of_document[:, 1].sum())
        row["low"], row["high"] = bootstrap(of_document)[:2]
    nats = np.array([one.nats for one in written_])
    ranks = np.array([one.rank for one in written_])
    row |= {"written": len(nats), "times_unigram": None, "times_unigram_mean": None, **{f"top_{k}": None for k in TOP}}
    if len(nats):
        row["times_unigram"] = math.exp(-float(nats.mean())) / found["unigram"]
        row["times_unigram_mean"] = float(np.exp(-nats).mean()) / found["unigram"]
        row |= {f"top_{k}": float((ranks < k).mean()) for k in TOP}
    return row


def bits_per_byte(pairs: Sequence[tuple[float, int]]) -> float:
    """Of (nats, bytes) of each document; NaN without any byte."""
    nats, size = (sum(column) for column in zip(*pairs))
    return nats / math.log(2) / size if size else math.nan

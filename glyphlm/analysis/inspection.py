"""Inspection of the codes of a substrate or run: duplicates, blanks, norms, rank, variance, nearest neighbours, a map.

Shapes: V tokens, E n_embed, U rows of a chunk.
"""

import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import WEIGHTS
from glyphlm.base.outputs import Build, write_atomic
from glyphlm.base.records import read_json, to_json, to_lines
from glyphlm.modeling.config import SubstrateConfig
from glyphlm.substrate.build import SHEET, TOKENS, read_run_codes, read_substrate
from glyphlm.substrate.codes import all_codes, chunks, fingerprint, first_equal, shown_chunks
from glyphlm.substrate.glyphs import LEGIBLE, pixels_a_character
from glyphlm.substrate.settings import MAX_EMBED, SubstrateSettings
from glyphlm.tokenizer.layouts import is_reserved
from glyphlm.tokenizer.tokenizer import Tokenizer

FINDINGS, MAP = "inspect.json", "map.png"
SHARES = (50, 90, 95, 99, 99.9)  # percent of the variance
NEIGHBOURS, SHOWN_GROUPS, SHOWN_TOKENS = 10, 5, 4
SIGNS = {"N": "numbers", "P": "punctuation", "S": "symbols", "Z": "spaces", "M": "marks"}
TINY = 1e-300  # avoids 0 / 0 if all codes are equal


@dataclass(frozen=True)
class Codes:
    """The codes of a folder.

    Args:
        tokens: The text that is drawn for each id.
        blank: Ids with a blank picture.
        side: Of the pictures, in pixels; None if the codes are not made from pictures.
    """

    folder: Path
    config: SubstrateConfig
    code_VE: Tensor
    tokens: list[str]
    blank: list[int]
    side: int | None = None


def inspect_folder(
    folder: Path, nearest: Sequence[str] = (), out: Path | None = None, as_json: bool = False
) -> str:
    """Inspect a substrate or run folder: the findings as text; as JSON and pictures in the folder `out`.

    Args:
        nearest: Tokens, or #ID, whose nearest neighbours are listed.
        as_json: Return the findings as one line of JSON.

    Raises:
        InputError: the folder is neither, a token is unknown, or `out` holds something else.
    """
    codes = open_codes(folder)
    chosen = [find_token(codes, name) for name in nearest]
    if out is None:
        return _printed(codes, analyse(codes, chosen)[0], as_json)
    contents = fingerprint(codes.config, "", {"table_VE": codes.code_VE})
    build = Build("inspection", {"nearest": chosen}, {"codes": contents})
    if not build.is_done(out):
        from glyphlm.analysis.layer_plots import draw_map  # loads matplotlib, needed only with --out

        findings, x_V2 = analyse(codes, chosen)
        with build.folder(out) as partial:
            (partial / FINDINGS).write_text(to_json(findings), encoding="utf-8")
            write_atomic(partial / MAP, draw_map(x_V2.numpy(), [script(token) for token in codes.tokens], findings["axes"]))
            if (folder / SHEET).exists():
                shutil.copyfile(folder / SHEET, partial / SHEET)
    try:
        return _printed(codes, read_json(out / FINDINGS), as_json)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{out / FINDINGS} is damaged ({reason}); remove {out} and inspect again") from None


def _printed(codes: Codes, findings: dict[str, Any], as_json: bool) -> str:
    return to_lines([findings]).rstrip() if as_json else findings_text(codes, findings)


def open_codes(folder: Path) -> Codes:
    """The codes of a substrate folder, or those of a run after training.

    Raises:
        InputError: the folder is neither, or damaged.
    """
    if (folder / WEIGHTS).exists():
        return _open_run(folder)
    build, config, tensors = read_substrate(folder)
    try:
        tokens = read_json(folder / TOKENS, list)
        _check_size(folder, config, tokens)
        side = build.settings["side"] if config.kind == "glyph" else None
        return Codes(folder, config, all_codes(config, tensors), tokens, build.result["blank"], side)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is damaged or older than this command ({error}); build the substrate again") from None


def _open_run(folder: Path) -> Codes:
    _, config, tensors = read_run_codes(folder)
    tokens = Tokenizer.load(folder).pictured()
    _check_size(folder, config, tokens)
    side = SubstrateSettings.side if config.kind == "glyph" else None
    return Codes(folder, config, all_codes(config, tensors).float(), tokens, [], side)


def _check_size(folder: Path, config: SubstrateConfig, tokens: Sequence[str]) -> None:
    """Check the size of the codes against the vocabulary before memory is allocated: a rule has no tensors to check."""
    if config.vocab_size != len(tokens) or config.n_embed > MAX_EMBED:
        raise InputError(f"{folder} describes {config.vocab_size:,} codes of width {config.n_embed:,} for {len(tokens):,} "
                         f"tokens (at most {MAX_EMBED:,} wide); put the right file back")


def find_token(codes: Codes, name: str) -> int:
    """The id of a token given by its text, or as #ID.

    Raises:
        InputError: there is no such token.
    """
    if name in codes.tokens:
        return codes.tokens.index(name)
    if name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(codes.tokens):
        return int(name[1:])
    raise InputError(f"{name!r} is not a token of {codes.folder}; spell one of its {len(codes.tokens):,} tokens, or an id "
                     f"as #0 to #{len(codes.tokens) - 1}")


def analyse(codes: Codes, nearest: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
    """All findings, and the codes projected on their first two principal axes, float32 [V, 2].

    Raises:
        InputError: a code is not finite.
    """
    norm_V = torch.cat([rows.norm(dim=1) for rows in chunks(codes.code_VE)])
    if not norm_V.isfinite().all():
        number = norm_V.isfinite().int().argmin().item()
        raise InputError(f"{codes.folder}: the code of id {number} holds NaN or infinity; give a run that did not diverge")
    spectrum, x_V2 = measure_spectrum(codes.code_VE)
    return {
        "substrate": asdict(codes.config),
        **find_sharing(codes),
        "blank": [_entry(codes, number) for number in sorted({*codes.blank, *torch.nonzero(norm_V == 0)[:, 0].tolist()})],
        "squeezed": [_entry(codes, number) for number in squeezed(codes.tokens, codes.side)] if codes.side else [],
        "norm": {"smallest": norm_V.min().item(), "largest": norm_V.max().item()},
        **spectrum,
        "nearest": [_entry(codes, number) | {"neighbours": find_nearest(codes, number)} for number in nearest],
    }, x_V2


def squeezed(tokens: Sequence[str], side: int) -> list[int]:
    """Ids with fewer than LEGIBLE pixels per character in their picture, without reserved ids."""
    return [number for number, token in enumerate(tokens)
            if pixels_a_character(token, side) < LEGIBLE and not is_reserved(number, token)]


def find_sharing(codes: Codes) -> dict[str, Any]:
    """How many codes are distinct, and the groups of tokens that share one, the largest first."""
    first_V = first_equal(row + 0.0 for row in codes.code_VE.numpy())  # 0.0 and -0.0 are equal
    members: dict[int, list[int]] = {}
    for number, first in enumerate(first_V.tolist()):
        members.setdefault(first, []).append(number)
    groups = sorted((group for group in members.values() if len(group) > 1), key=len, reverse=True)
    return {
        "distinct": len(members),
        "tokens_sharing": sum(map(len, groups)),
        "groups": [[_entry(codes, number) for number in group] for group in groups],
    }


def measure_spectrum(code_VE: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Rank, components for shares of the variance, participation ratio; and the projection on the first two axes [V, 2]."""
    together_EE, mean_E = _moments(code_VE)
    rank = _count_rank(torch.linalg.eigvalsh(together_EE))
    variance_E, axes_EE = torch.linalg.eigh(together_EE.sub_(torch.outer(mean_E, mean_E)))
    variance_E = variance_E.flip(0).clamp(min=0)
    total = max(variance_E.sum().item(), TINY)
    explained_E = variance_E.cumsum(0) / total
    spectrum = {
        "rank": rank,
        "components": {f"{share:g}%": int((explained_E[:-1] < share / 100).sum()) + 1 for share in SHARES},
        "participation_ratio": variance_E.sum().item() ** 2 / max(variance_E.square().sum().item(), TINY),
        "axes": [round(share, 6) for share in (F.pad(variance_E, (0, 1))[:2] / total).tolist()],
    }
    return spectrum, _project(code_VE, mean_E, axes_EE.flip(1)[:, :2])


def _moments(code_VE: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments [E, E] and means [E] of the columns, in float64: float32 is too coarse for the rank."""
    together_EE, sum_E = np.zeros((code_VE.shape[1],) * 2), np.zeros(code_VE.shape[1])
    for rows in shown_chunks(code_VE, "comparing columns"):
        x_UE = rows.double().numpy()
        together_EE += x_UE.T @ x_UE  # numpy computes one triangle
        sum_E += x_UE.sum(0)
    return torch.from_numpy(together_EE / len(code_VE)), torch.from_numpy(sum_E / len(code_VE))


def _count_rank(squares_E: Tensor) -> int:
    """The number of singular values (given squared) above the rounding error of float32."""
    limit = torch.finfo(torch.float32).eps * len(squares_E) ** 0.5
    return int((squares_E > squares_E.max() * limit**2).sum())


def _project(code_VE: Tensor, mean_E: Tensor, axes_E2: Tensor) -> Tensor:
    x_V2 = torch.cat([(rows - mean_E.float()) @ axes_E2.float() for rows in chunks(code_VE)])
    return F.pad(x_V2, (0, 2 - x_V2.shape[1]))  # codes of width 1 have one axis


def find_nearest(codes: Codes, number: int) -> list[dict[str, Any]]:
    """The nearest other tokens by the cosine of their codes."""
    code_E = F.normalize(codes.code_VE[number], dim=0)
    cosine_V = torch.cat([F.normalize(rows, dim=1) @ code_E for rows in chunks(codes.code_VE)])
    cosine_V[number] = -2  # below every cosine
    found = torch.sort(cosine_V, descending=True, stable=True).indices[: min(NEIGHBOURS, len(cosine_V) - 1)].tolist()
    return [_entry(codes, near) | {"cosine": round(cosine_V[near].item(), 6)} for near in found]


def script(token: str) -> str:
    """The script of the first letter, such as Latin or Han; without letters the kind of the first character."""
    letter = next((character for character in token if character.isalpha()), None)
    if letter is None:
        return SIGNS.get(unicodedata.category(token[0])[0], "other signs")
    name = unicodedata.name(letter, "unnamed").split()[0].partition("-")[0]
    return {"CJK": "Han"}.get(name, name.capitalize())


def _entry(codes: Codes, number: int) -> dict[str, Any]:
    return {"id": number, "token": codes.tokens[number]}


def findings_text(codes: Codes, findings: dict[str, Any]) -> str:
    """The findings as lines of text."""
    config, shares = codes.config, findings["components"].items()
    lines = [
        f"{codes.folder}: {config.kind}, {'trainable' if config.trainable else 'frozen'}, scale {config.scale}, "
        f"lift {config.lift}, {config.fingerprint[:12]}",
        f"codes                {config.vocab_size:,} of width {config.n_embed:,}",
        f"distinct             {findings['distinct']:,}",
        f"sharing a code       {findings['tokens_sharing']:,} tokens in {len(findings['groups']):,} groups",
        *_worst(findings["groups"]),
        f"blank                {len(findings['blank']):,} tokens  {_names(findings['blank'])}".rstrip(),
        *([f"squeezed             {len(cut):,} tokens, {len(cut) / config.vocab_size:.1%}, below {LEGIBLE} pixels a letter  "
           f"{_names(cut)}".rstrip()] if (cut := findings.get("squeezed")) else []),
        f"norm                 {findings['norm']['smallest']:.6g} to {findings['norm']['largest']:.6g}",
        f"rank                 {findings['rank']:,} of {config.n_embed:,}",
        f"variance             {', '.join(f'{share} in {number:,}' for share, number in shares)} components",
        f"participation ratio  {findings['participation_ratio']:.1f}",
    ]
    for each in findings["nearest"]:
        lines += [f"nearest to {_name(each)}", *(f"  {near['cosine']:>6.3f}  {_name(near)}" for near in each["neighbours"])]
    return "\n".join(lines)


def _worst(groups: Sequence[list[dict[str, Any]]]) -> list[str]:
    """The largest groups, and the largest with an ASCII character, which every text contains."""
    met = [group for group in groups if any(len(each["token"]) == 1 and each["token"].isascii() for each in group)]
    parts = (("largest", groups), (f"with a character of ASCII: {len(met):,}", met))
    return [line for title, chosen in parts if chosen
            for line in (f"  {title}", *(f"  {len(group):>6,}  {_names(group)}" for group in chosen[:SHOWN_GROUPS]))]


def _names(entries: Sequence[dict[str, Any]]) -> str:
    more = f" and {len(entries) - SHOWN_TOKENS:,} more" if len(entries) > SHOWN_TOKENS else ""
    return ", ".join(map(_name, entries[:SHOWN_TOKENS])) + more


def _name(entry: dict[str, Any]) -> str:
    """The token in quotes, with its code point if it is a single character (many look alike), else its id."""
    token = entry["token"]
    return f"{token!r} U+{ord(token):04X}" if len(token) == 1 else f"{token!r} #{entry['id']}"

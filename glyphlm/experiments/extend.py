"""Adding characters to a run or a tokenizer: they get new ids and codes at the end; no trained value changes.

Frozen codes follow from a rule or from pictures, so a model can read a character that was not in its training data and, with
a tied head, write it. Shapes: V ids before, U new ones, E n_embed, P pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import SETTINGS
from glyphlm.base.outputs import Build, one_writer, read_build
from glyphlm.base.progress import say
from glyphlm.experiments.resume import read_settings
from glyphlm.modeling.heads import CodeHead
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.card import write_card
from glyphlm.runs.folder import describe_model, export_model, load_run, read_summary, weights_sha256, write_summary
from glyphlm.substrate.build import draw_vocabulary, more_glyph_codes
from glyphlm.substrate.codes import fingerprint
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.build import with_characters
from glyphlm.tokenizer.tokenizer import Tokenizer


def extend(source: Path, characters: str, out: Path) -> int:
    """Write the run or tokenizer `source` with ids for more characters to `out`, and return how many are new.

    Raises:
        InputError: every character has an id, the codes or the head cannot be extended, or `out` holds something else.
    """
    is_run = (source / SETTINGS).is_file()
    before = Tokenizer.load(source)
    after = with_characters(before, characters)
    new = after.vocab_size - before.vocab_size
    inputs = {"tokenizer": before.fingerprint, **({"weights": weights_sha256(source)} if is_run else {})}
    build = Build("extension" if is_run else "tokenizer", {"characters": characters}, inputs)
    with one_writer(out):
        if build.is_done(out):
            say(f"{out} is done already")
            return new
        model = _extended_model(source, before, after) if is_run else None
        with build.folder(out) as partial:
            after.save(partial)
            build.result = {"fingerprint": after.fingerprint, "vocab_size": after.vocab_size}
            if model:
                (partial / SETTINGS).write_bytes((source / SETTINGS).read_bytes())
                export_model(model, after, partial)
                summary = (read_summary(source) or {}) | describe_model(model, after) | {"name": out.name}
                write_card(partial, summary)
                write_summary(partial, summary)
    say(f"{out}: {new:,} characters more, {after.vocab_size:,} ids")
    return new


@torch.no_grad()
def _extended_model(run: Path, before: Tokenizer, after: Tokenizer) -> GPT:
    """The model of a run with codes for the new ids, and rows for them in the head where it has a row for each id."""
    old = load_run(run)[0].gpt
    if not isinstance(old, GPT):
        raise InputError(f"{run} is fused; extend the runs that it was made from, and fuse them")
    config = replace(old.substrate.config, vocab_size=after.vocab_size)
    substrate = Substrate(config, old.substrate.d_model)
    tensors = dict(old.substrate.state_dict())
    if "table_VE" in tensors:
        tensors["table_VE"] = torch.cat([old.substrate.table_VE, _new_codes(run, old.substrate, before, after)])
    elif "shuffled_V" in tensors or config.places > config.n_embed or config.kind == "affine_bits":
        raise InputError(f"{run} has a rule for {before.vocab_size:,} ids ({config.kind}, n_embed {config.n_embed}), and "
                         f"no code for {after.vocab_size:,}; extend a run with token_bits of larger n_embed, or a table")
    stored = {name: values for name, values in tensors.items() if name != "lift_ED"}
    substrate.config = config = replace(config, fingerprint=fingerprint(config, after.fingerprint, stored))
    substrate.load_state_dict(tensors)
    model = GPT(old.config, substrate)
    if isinstance(model.head, CodeHead) and model.head.base != old.head.base:
        most = old.head.base**old.config.head.digits
        raise InputError(f"{run} has a head of {old.config.head.digits} digits, which number up to {most:,} ids, not "
                         f"{after.vocab_size:,}; give fewer characters, or train with more room")
    values = model.state_dict()
    for name, tensor in old.state_dict().items():
        if not name.startswith("substrate."):
            values[name] = _longer(name, tensor, values[name])
    model.load_state_dict(values)
    return model.eval()


def _longer(name: str, before: Tensor, place: Tensor) -> Tensor:
    """The tensor of a head with rows for the new ids: of a full head the mean of its rows, and its smallest bias."""
    new = len(place) - len(before)
    if not new:
        return before
    if name.endswith("place_V"):
        return torch.cat([before, torch.arange(len(before), len(place), dtype=before.dtype)])
    if ".biases." in name:  # of prefixes that no id had
        return torch.cat([before, before.new_zeros(new, before.shape[1])])
    if before.dim() == 1:
        return torch.cat([before, before.min().expand(new)])
    return torch.cat([before, before.mean(0).expand(new, -1)])


def _new_codes(run: Path, substrate: Substrate, before: Tokenizer, after: Tokenizer) -> Tensor:
    """Codes [U, E] of the new ids, from the pictures of glyphs; the mean of all codes where a table has other content."""
    config, new = substrate.config, range(before.vocab_size, after.vocab_size)
    if config.kind != "glyph" or config.trainable:
        say(f"{run}: codes of kind {config.kind}{' that were trained' if config.trainable else ''} say nothing of a new "
            "character; each gets the mean of all codes")
        return substrate.table_VE.mean(0).expand(len(new), -1)
    settings = _glyph_settings(run)
    fonts = load_fonts(settings.font or None, settings.side)
    pictured = after.pictured(settings.spelling)
    bits_VP, new_UP = (draw_vocabulary([pictured[number] for number in ids], fonts, settings).bits_VP
                       for ids in (range(before.vocab_size), new))
    codes_VE, new_UE = more_glyph_codes(config, settings, bits_VP, new_UP)
    if not torch.allclose(codes_VE, substrate.table_VE, atol=1e-4):
        raise InputError(f"{run} was made with other pictures than {', '.join(map(str, fonts.paths))} gives now; install "
                         "the font that it was made with")
    return new_UE


def _glyph_settings(run: Path) -> SubstrateSettings:
    """The settings that the codes of a run were drawn with, from the run or the folder that its substrate.path names."""
    settings = read_settings(run).substrate
    if not settings.path:
        return settings
    folder = Path(settings.path)
    if (folder / SETTINGS).is_file():
        return _glyph_settings(folder)
    recorded: dict[str, Any] = dict(read_build(folder).settings)
    return SubstrateSettings(**recorded)

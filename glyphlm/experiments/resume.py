"""The recorded settings and inputs of a run folder, and whether a recipe may resume it.

settings.yaml is the resolved recipe, inputs.json the digests of tokenizer, substrate, shards and runs. Paths are not
compared: a run and its inputs may be moved.
"""

import hashlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, CONFIG, INPUTS, METRICS, SETTINGS
from glyphlm.base.outputs import first_difference, read_build, write_atomic
from glyphlm.base.records import read_json, to_json
from glyphlm.data.source import Source
from glyphlm.experiments.recipe import Recipe, load_recipe, resolve, settings_text
from glyphlm.runs.folder import read_summary
from glyphlm.training.checkpoint import list_states

# Settings that change results at most by rounding: they may differ when a run is resumed.
OPERATIONAL = ("micro_batch_tokens", "recompute", "save_every", "keep", "log_every", "validate_every", "trackers")
FIRST_OF_SOURCE = ("shards", "text", "sft", "weight", "epochs", "loss")  # of version 0.2, in digests whatever their values
PATHS = (
    ("tokenizer", "path"), ("tokenizer", "ngrams"), ("tokenizer", "shared_strings"), ("tokenizer", "special_names"),
    ("tokenizer", "base"), ("substrate", "path"), ("substrate", "file"), ("substrate", "font"), ("growth", "base"),
)  # fmt: skip


def record_settings(out: Path, recipe: Recipe) -> tuple[Recipe, bool]:
    """Record the recipe in `out`, or compare it with the recorded one; the resolved recipe, and whether they are equal.

    Settings that change no result (OPERATIONAL, prompts) may differ when a run is resumed. Paths of inputs may differ too;
    `pin_inputs` compares their content, and records such changes.

    Raises:
        InputError: the recipe contradicts itself, or `out` holds something that is not a run, another run (the first
            difference is named) or damaged settings. A run that was refused before its first step is replaced.
    """
    path, begun = out / SETTINGS, has_begun(out)
    recorded = read_settings(out) if path.exists() else None
    if recorded is None and out.exists() and not (out.is_dir() and all(one.name.startswith(".") for one in out.iterdir())):
        raise InputError(f"{out} holds something that is not a run; choose another --out")
    recipe = as_used(resolve(recipe, recorded), recorded if begun else None)
    difference = first_difference(comparable(recorded), comparable(recipe)) if recorded else None
    if difference and begun:
        raise InputError(f"{out} was trained with other settings: {difference}; choose another --out or remove {out}")
    if recorded != recipe and not begun:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, settings_text(recipe))
    return recipe, recorded == recipe


def as_used(recipe: Recipe, recorded: Recipe | None) -> Recipe:
    """The recipe with the settings of the tokenizer and substrate that it names; a run that began keeps its record."""
    tokenizer, substrate = recipe.tokenizer, recipe.substrate
    if tokenizer.path:
        tokenizer = replace(recorded.tokenizer, path=tokenizer.path) if recorded else _described(tokenizer)
    if substrate.path:
        substrate = replace(recorded.substrate, path=substrate.path) if recorded else _described(substrate)
    return replace(recipe, tokenizer=tokenizer, substrate=substrate)


def _described(settings: Any) -> Any:
    """The settings of a tokenizer or substrate folder, from its build.json, or from the config.json of a run."""
    folder, found = Path(settings.path), {}
    if (folder / BUILD).is_file():
        found = read_build(folder).settings
    elif (folder / CONFIG).is_file():
        found = read_json(folder / CONFIG).get("substrate") or {}
    names = {field.name for field in fields(settings)} - {"path", "file", "font", "strict"}
    return replace(settings, **{name: value for name, value in found.items() if name in names})


def read_settings(out: Path) -> Recipe:
    """The recipe with which the run in `out` began.

    Raises:
        InputError: settings.yaml is damaged, is not a recipe, or has changed since the first step.
    """
    try:
        recorded = load_recipe(out / SETTINGS, kind=Recipe)
    except InputError as error:
        raise InputError(f"{out / SETTINGS} is not the settings of a training ({error}); put it back, or choose another "
                         "--out") from None
    digest = read_json(out / INPUTS).get("settings") if has_begun(out) else None
    if digest not in (None, digest_of(recorded)):
        raise InputError(f"{out / SETTINGS} is not what the run was begun with (sha256 {str(digest)[:12]}); put it back, or "
                         "choose another --out")
    return recorded


def comparable(recipe: Recipe) -> dict[str, Any]:
    """The values that determine the result; inputs only by number and kind, because their digests are compared."""
    values = asdict(replace(recipe, prompts=[]))
    train, growth = values["train"], values["growth"]
    for name in OPERATIONAL:
        if name != "validate_every" or train["flat_after"] is None:  # otherwise it affects where training ends
            del train[name]
    for section, name in PATHS:
        values[section][name] = values[section][name] not in (None, [])
    for source in values["data"]:
        source |= {name: bool(source[name]) for name in ("shards", "text", "sft")}
    values["fusion"]["experts"], values["validation"] = len(recipe.fusion.experts), len(recipe.validation)
    growth["cache"] = growth["cache"] if growth["cache"] in ("none", "memory") else "folder"
    return values


def digest_of(recipe: Recipe) -> str:
    """sha256 of the non-default values of `comparable`, which settings added by later versions do not change."""
    plain, values = comparable(Recipe()), comparable(recipe)
    found = {name: part for name, part in values.items() if part != plain[name]}
    found |= {name: {key: value for key, value in part.items() if value != plain[name].get(key)}
             for name, part in found.items() if isinstance(part, dict)}
    if found.get("data"):
        later = {key: value for key, value in asdict(Source()).items() if key not in FIRST_OF_SOURCE}
        found["data"] = [{key: value for key, value in source.items() if key not in later or value != later[key]}
                        for source in found["data"]]
    return hashlib.sha256(to_json(found).encode()).hexdigest()


def has_begun(out: Path) -> bool:
    """Whether any step was trained in `out`."""
    return (out / METRICS).exists() or bool(list_states(out))


def pin_inputs(out: Path, settings: Recipe, digests: dict[str, Any]) -> None:
    """Record the digests of the run's inputs before its first step; later, compare them.

    Raises:
        InputError: tokenizer, substrate, shards or runs differ; the first difference is named.
    """
    path, inputs = out / INPUTS, digests | {"settings": digest_of(settings)}
    if not has_begun(out):
        write_atomic(path, to_json(inputs))
        return
    for name, was in read_json(path).items():
        was = [*was.values()] if isinstance(was, dict) else was  # version 0.1 wrote digests by path
        if was != inputs.get(name):
            shown = (one if isinstance(one, str) else hashlib.sha256(to_json(one).encode()).hexdigest()
                     for one in (was, inputs.get(name)))
            raise InputError(f"{out} was begun with other inputs: {name} was {next(shown)[:12]}, is now {next(shown)[:12]}; "
                             "put back what it was begun with, or choose another --out")
    if read_summary(out) is None:
        write_atomic(out / SETTINGS, settings_text(settings))

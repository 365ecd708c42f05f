"""A study -> recipes of its arms and seeds -> the commands that make, fuse and evaluate their models.

Folders are named by a digest of their settings, so a changed study reuses what the change does not affect, and nothing is
overwritten. Arms share tokenizers, shards and substrates with equal settings.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glyphlm.base.names import ITEMS
from glyphlm.base.outputs import write_atomic
from glyphlm.corpus.sources import find_sources, is_data_set
from glyphlm.corpus.tasks import TASKS
from glyphlm.data.source import Source
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, load_recipe, settings_text
from glyphlm.studies.settings import Study
from glyphlm.studies.workflow import Command
from glyphlm.substrate.settings import OPTIONS, SubstrateSettings
from glyphlm.tokenizer.build import TAKEN
from glyphlm.tokenizer.settings import TokenizerSettings

FLAGS = ("lossless", "trainable", "unique", "strict", "allow_different_substrates")  # options that take no value
Values = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One model of a study.

    Args:
        arm: Its name in the results.
        run: Its run folder.
        made_by: Name of the command that makes it.
        is_whole: False for earlier stages and controls of a growth.
        rows: File of its results, written by the command `evaluated_by`.
    """

    arm: str
    seed: int
    run: Path
    made_by: str
    is_whole: bool = True
    rows: Path | None = None
    evaluated_by: str | None = None


def arm_recipe(settings: Study, changes: Values, seed: int, values: Values) -> GrowthRecipe:
    """The recipe of the study with `changes`, `values` (by dotted names), and all random draws from `seed`.

    Raises:
        InputError: the recipe does not exist, or does not accept a name or value.
    """
    recipe = load_recipe(settings.recipe, settings.recipe_profile, [changes, {"train.seed": seed}, values])
    if settings.data:
        recipe = replace(recipe, data=[_source(given) for given in settings.data])
    return replace(recipe, substrate=_drawn(recipe.substrate, seed))


def _source(given: str) -> Source:
    return Source(sft=[given]) if given.partition("=")[0] in TASKS else Source(text=given)


def _drawn(substrate: SubstrateSettings, seed: int) -> SubstrateSettings:
    """The substrate with all random draws from `seed`."""
    if substrate.path:
        return substrate
    drawn = {"seed": seed} if substrate.kind in OPTIONS["seed"] else {}
    return replace(substrate, **drawn, **({} if substrate.shuffle_seed is None else {"shuffle_seed": seed}))


class StudyCommands:
    """The distinct commands of a study, in an order in which they can be run, and the models that they make."""

    def __init__(self, settings: Study, out: Path):
        self._settings, self._out = settings, out
        self._texts = _texts(arm_recipe(settings, {}, 0, {}))
        self._all: dict[str, Command] = {}
        self.models: list[Model] = []

    @property
    def ordered(self) -> list[Command]:
        """All commands."""
        return [*self._all.values()]

    def train(self, arm: str, seed: int, values: Values) -> Model:
        """Add the commands of an arm and seed; the model of the arm."""
        return self._make(arm, arm_recipe(self._settings, self._settings.arms[arm] or {}, seed, values), seed)

    def fuse(self, name: str, fused: Values, seed: int) -> None:
        """Add the command that fuses the experts of a seed, if the study makes all of them."""
        experts, routers = (self._finished_arms(fused.get(key, []), seed) for key in ("experts", "routers"))
        if experts is None or routers is None:
            return
        needs = [model.made_by for model in (*experts, *routers)]
        runs = [str(model.run) for model in experts]
        options = {key: value for key, value in fused.items() if key not in ("experts", "recipe")}
        if routers:
            options["routers"] = [str(model.run) for model in routers]
        if "recipe" in fused:
            changes = fused["recipe"] | {"fusion": {"experts": runs, **options}}
            self._make(name, arm_recipe(self._settings, changes, seed, {}), seed, needs)
            return
        place = f"{name}-{_digest([runs, options])}"
        run, made_by = self._out / "runs" / place / f"{name}-{seed}", f"fuse_{_word(place)}_{seed}"
        self._add(made_by, ["glyphlm", "fuse", *runs, *_options(options), "--out", str(run)], run / "summary.json", needs)
        self.models.append(Model(name, seed, run, made_by))

    def _finished_arms(self, arms: Sequence[str], seed: int) -> list[Model] | None:
        """The whole models of the named arms of a seed; None if the study does not make one of them."""
        made = {model.arm.partition(".")[0]: model for model in self.models if model.seed == seed and model.is_whole}
        return [made[arm] for arm in arms] if made.keys() >= set(arms) else None

    def evaluate(self) -> None:
        """Add commands that evaluate each model that has none yet on the tasks of the study, one per protocol."""
        files = [path for task in self._settings.evaluate if (path := Path(task.partition("=")[2])).is_file()]
        for number, model in enumerate(self.models):
            if not model.evaluated_by:
                self.models[number] = self._evaluated(model, files)

    def _evaluated(self, model: Model, files: Sequence[Path]) -> Model:
        """The model with its results file, which the commands of all protocols write one after another."""
        name = f"eval_{_word(model.arm)}_{model.seed}_{_digest([str(model.run), self._settings.evaluate])}"
        rows, last = self._out / "evaluations" / f"{name}.jsonl", model.made_by
        for protocol in self._settings.protocols:
            sampled = protocol == "sampled"
            tasks = [task for task in self._settings.evaluate if not (sampled and task.startswith("bpb="))]
            if not tasks:
                continue
            options = ["--protocol", protocol] if sampled else []
            command = ["glyphlm", "eval", str(model.run), "--tasks", *tasks, *options, "--log-items",
                       str(self._out / ITEMS), "--out", str(rows)]
            self._add(f"{name}_{protocol}" if sampled else name, command, rows, [last], files)
            last = f"{name}_{protocol}" if sampled else name
        (self._out / "evaluations").mkdir(parents=True, exist_ok=True)
        return replace(model, rows=rows, evaluated_by=last) if last != model.made_by else model

    def _make(self, arm: str, recipe: GrowthRecipe, seed: int, needs: Sequence[str] = ()) -> Model:
        same = asdict(replace(recipe, train=replace(recipe.train, seed=0), substrate=_drawn(recipe.substrate, 0)))
        place = f"{arm}-{_digest([same, 'validation: text'] if _validates_text(recipe) else same)}"
        recipe, inputs = self._with_inputs(recipe)
        grown = bool(recipe.stages)
        kept = recipe if grown else Recipe(**{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__})
        file, run = self._out / "recipes" / place / f"{arm}-{seed}.yaml", self._out / "runs" / place / f"{arm}-{seed}"
        _write_if_new(file, settings_text(kept))
        name = f"train_{_word(place)}_{seed}"
        verb, made = ("grow", run / "report.html") if grown else ("train", run / "summary.json")
        self._add(name, ["glyphlm", verb, str(file), "--out", str(run)], made, [*inputs, *needs], [file])
        models = [Model(f"{arm}.{part}", seed, run / part, name, is_whole=part == f"stage-{len(recipe.stages)}")
                  for part in _parts(recipe)] or [Model(arm, seed, run, name)]
        self.models += models
        return next(model for model in models if model.is_whole)

    def _with_inputs(self, recipe: GrowthRecipe) -> tuple[GrowthRecipe, list[str]]:
        """The recipe with paths of tokenizer, substrate and text shards, and the commands that make them.

        Examples (sft) are left to each training, as they are few. If they are mixed with text, validation is on text alone.
        """
        if recipe.growth.base:
            return recipe, []
        tokenizer, before = self._tokenizer(recipe)
        data = [self._shards(tokenizer, before, source) for source in recipe.data]
        substrate, after = self._substrate(tokenizer, before, recipe.substrate)
        recipe = replace(
            recipe, tokenizer=TokenizerSettings(path=tokenizer), substrate=substrate, data=[source for source, _ in data],
            validation=[str(source.shards) for source, _ in data if source.shards] if _validates_text(recipe)
            else recipe.validation,
        )  # fmt: skip
        return recipe, [*dict.fromkeys([*before, *(name for _, names in data for name in names), *after])]

    def _tokenizer(self, recipe: GrowthRecipe) -> tuple[str, list[str]]:
        settings = recipe.tokenizer
        if settings.path:
            return settings.path, []
        texts = (self._texts or _texts(recipe)) if TAKEN[settings.layout][1] == "text" else []
        name = f"tokenizer_{_digest([asdict(settings), texts])}"
        options = {"from" if key == "base" else key: value for key, value in _not_default(settings).items()}
        return self._input(name, ["tokenizer", "build", *_options(options), *texts], texts)

    def _shards(self, tokenizer: str, needs: Sequence[str], source: Source) -> tuple[Source, list[str]]:
        if not source.text:
            return source, []
        exclude = ["--exclude", source.exclude, "--excluding", source.excluding] if source.exclude else []
        command = ["prepare", "--tokenizer", tokenizer, *exclude, *source.texts]
        folder, names = self._input(f"shards_{_digest(command)}", command, source.texts, needs)
        return replace(source, text=None, shards=folder, exclude=None), names

    def _substrate(
        self, tokenizer: str, needs: Sequence[str], settings: SubstrateSettings
    ) -> tuple[SubstrateSettings, list[str]]:
        if settings.path:
            return settings, []
        command = ["substrate", "build", "--tokenizer", tokenizer, *_options(_not_default(settings))]
        folder, names = self._input(f"{settings.kind}_{_digest(command)}", command, (), needs)
        return replace(settings, path=folder), names

    def _input(
        self, name: str, command: Sequence[str], texts: Sequence[str], needs: Sequence[str] = ()
    ) -> tuple[str, list[str]]:
        folder = self._out / "inputs" / name.replace("_", "-")
        files = [Path(source) for source in find_sources(texts) if not is_data_set(source)] if texts else []
        self._add(name, ["glyphlm", *command, "--out", str(folder)], folder / "build.json", needs, files)
        return str(folder), [name]

    def _add(
        self, name: str, command: Sequence[str], makes: Path, needs: Sequence[str] = (), reads: Sequence[Path] = ()
    ) -> None:
        self._all.setdefault(name, Command(name, tuple(command), makes, tuple(needs), tuple(reads)))


def model_names(settings: Study) -> list[str]:
    """The names of the models of a study: its arms, those with stages part by part, and its fused models.

    Raises:
        InputError: as `arm_recipe`.
    """
    names = []
    for arm, changes in settings.arms.items():
        names += [f"{arm}.{part}" for part in _parts(arm_recipe(settings, changes or {}, 0, {}))] or [arm]
    return [*names, *settings.fuse]


def arms_of(settings: Study, models: Sequence[str]) -> list[str]:
    """The distinct arms that the named models are made of."""
    fused = {name: [*given["experts"], *given.get("routers", [])] for name, given in settings.fuse.items()}
    arms = [fused.get(model, [model.partition(".")[0]]) for model in models]
    return [*dict.fromkeys(arm for of_model in arms for arm in of_model)]


def _parts(recipe: GrowthRecipe) -> list[str]:
    """The stages and controls of a growth; none if the recipe has no stages."""
    stages = [f"stage-{number}" for number in range(1, len(recipe.stages) + 1)]
    return [*stages, *(f"monolithic-{kind}" for kind in recipe.controls)] if stages else []


def _validates_text(recipe: Recipe) -> bool:
    """Whether the recipe mixes text with examples and names no validation."""
    return not recipe.validation and len({bool(source.sft) for source in recipe.data}) > 1


def _texts(recipe: Recipe) -> list[str]:
    return [text for source in recipe.data for text in source.texts]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _word(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _not_default(settings: TokenizerSettings | SubstrateSettings) -> Values:
    """The settings that differ from their defaults."""
    empty = asdict(type(settings)())
    return {key: value for key, value in asdict(settings).items() if value != empty[key]}


def _options(settings: Values) -> Iterator[str]:
    """Settings as command-line options."""
    for key, value in settings.items():
        if key in FLAGS:
            yield from [f"--{key.replace('_', '-')}"] * bool(value)
        else:
            yield f"--{key.replace('_', '-')}"
            values = value if isinstance(value, list) else [value]
            yield from (str(one).lower() if isinstance(one, bool) else str(one) for one in values)


def _write_if_new(path: Path, text: str) -> None:
    """Write a file only if its content changes, since Snakemake reruns commands by modification times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)

"""A recipe describes one model completely: tokenizer, substrate, data, shape, training. Files of recipes are read here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from glyphlm.base.errors import InputError
from glyphlm.base.names import shipped_recipes
from glyphlm.base.ranges import Range, check_values
from glyphlm.base.records import read_yaml, to_yaml
from glyphlm.composition.settings import FusionSettings, GrowthSettings
from glyphlm.data.source import Source
from glyphlm.experiments.schedules import SCHEDULES
from glyphlm.modeling.config import ModelConfig
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.settings import TokenizerSettings
from glyphlm.training.settings import RANGES, TrainSettings, batch_rows, count_steps

Settings = TypeVar("Settings")


@dataclass
class Recipe:
    """One model and its training.

    Args:
        tokenizer: A folder (path), or a layout to build on the text of the data.
        substrate: A folder (path), or a kind to build.
        model: The shape of the transformer.
        data: Training sources, each shards (a folder of glyphlm prepare), text (files, folders, hf:NAME) or sft
            (NAME=PATH of supervised examples), with weight or epochs.
        validation: Shard folders to validate on; by default the held-out parts of the data sources.
        prompts: Texts that the trained model continues, for samples.jsonl and the report.
        train: How to train.
        growth: The run that the model is grown out of, and how.
        head_start: Initial head of a new model without blocks: random, or solved, the one with the lowest loss on the tokens
            of this training, a softmax regression on the codes (from which stages then grow).
        fusion: The runs that it is fused from, and how; it has their model shape, tokenizer and substrate.
    """

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    substrate: SubstrateSettings = field(default_factory=SubstrateSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: list[Source] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    train: TrainSettings = field(default_factory=TrainSettings)
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    head_start: Literal["random", "solved"] = "random"

    def __post_init__(self) -> None:
        if self.fusion.experts and self.growth.base:
            raise InputError(f"a model is fused or grown, not both; leave out fusion.experts {self.fusion.experts} or "
                             f"growth.base {self.growth.base}")


@dataclass
class Stage:
    """One stage of growth; values that are not given are those of `train`, `growth` and `data` of the recipe.

    Args:
        layers: Blocks to add; 0 trains adapters, head and norm alone.
        steps: As train.steps.
        tokens: As train.tokens.
        lr: As train.lr.
        schedule: As train.schedule.
        flat_after: As train.flat_after.
        warmup: As train.warmup.
        decay: As train.decay.
        start: As growth.start.
        place: As growth.place.
        carry: As growth.carry.
        blocks: As growth.blocks.
        head: As growth.head.
        lora_rank: As growth.lora.rank.
        data: As data of the recipe.
    """

    layers: int = 1
    steps: int | None = None
    tokens: float | None = None
    lr: float | None = None
    schedule: Literal["cosine", "wsd", "constant"] | None = None
    flat_after: int | None = None
    warmup: float | None = None
    decay: float | None = None
    start: Literal["random", "zero", "copy", "stack"] | None = None
    place: Literal["top", "interleaved"] | None = None
    carry: bool | None = None
    blocks: Literal["new", "all"] | None = None
    head: Literal["full", "low_rank", "frozen"] | None = None
    lora_rank: int | None = None
    data: list[Source] | None = None

    def __post_init__(self) -> None:
        ranges = {name: RANGES[name] for name in ("steps", "tokens", "lr", "flat_after", "warmup", "decay")}
        check_values(self, "stages.", ranges | {"lora_rank": Range(0, 1 << 16, whole=True)})


@dataclass
class GrowthRecipe(Recipe):
    """A recipe with stages.

    Args:
        stages: From the first to the last; they set model.n_layer.
        schedule: Instead of stages: those of a schedule from the literature, which grow to model.n_layer and share the
            tokens of train: one late expansion of a model of one block (late_one) or none (late_zero), G_stack (stack, and
            stack_frozen, its control), llama_pro, or published.
        controls: Models of the final depth, trained at once, all of them: with as many tokens as all stages together, or
            with as many floating-point operations.
    """

    stages: list[Stage] = field(default_factory=list)
    schedule: Literal["late_one", "late_zero", "stack", "stack_frozen", "llama_pro", "published"] | None = None
    controls: list[Literal["tokens", "flops"]] = field(default_factory=list)


def resolve(recipe: Recipe, recorded: Recipe | None = None) -> Recipe:
    """The recipe with `auto` settings decided for this machine, or as `recorded` when the run was begun.

    Raises:
        InputError: settings are out of range or do not apply, or a data source is not one of shards, text and sft.
    """
    from glyphlm.base.devices import resolve_compile, resolve_device, resolve_precision  # loads torch

    for source in recipe.data:
        if sum(map(bool, (source.shards, source.text, source.sft))) != 1:
            raise InputError(f"a data source needs shards, text or sft, one of them (shards: {source.shards}, "
                             f"text: {source.text}, sft: {source.sft})")
    if recipe.head_start == "solved" and (recipe.model.n_layer or recipe.growth.base or recipe.fusion.experts):
        raise InputError(f"head_start solved is for a new model of no blocks, not of {recipe.model.n_layer}; set "
                         "model.n_layer to 0, or a first stage to layers: 0, or head_start to random")
    if recipe.growth.base is None and recipe.growth != GrowthSettings():
        raise InputError("growth describes how a model is grown out of another; name that run as growth.base")
    if not recipe.fusion.experts and recipe.fusion != FusionSettings():
        raise InputError("fusion describes how runs become one model; name them as fusion.experts")
    count_steps(recipe.train)
    batch_rows(recipe.train, recipe.model.block_size)
    before = recorded.train if recorded else recipe.train
    device, precision, compiled = (
        getattr(before if getattr(recipe.train, name) == "auto" else recipe.train, name)
        for name in ("device", "precision", "compile")
    )
    device = resolve_device(device)
    precision, compiled = resolve_precision(precision, device), resolve_compile(compiled, device)
    return replace(recipe, train=replace(recipe.train, device=device, precision=precision, compile=compiled))


def load_recipe(
    source: str | Path | Mapping[str, Any] | None,
    profile: str | None = None,
    overrides: Iterable[Mapping[str, Any]] = (),
    kind: type[Settings] = GrowthRecipe,
) -> Settings:
    """The recipe of a file, or of nested dictionaries, with each of `overrides` merged over it in turn.

    Args:
        source: A YAML file, the name of one that comes with glyphlm, its content, or None for the defaults.
        profile: One of the profiles of the recipe: values that replace those of the same name, lists as a whole.
        overrides: Parts of a recipe; a key may be dotted, such as train.lr.
        kind: Recipe, GrowthRecipe, which also has stages and controls, or another dataclass of settings.

    Raises:
        InputError: the file is missing or damaged, has no such profile, or a key or value is unknown, out of range or of
            the wrong type.
    """
    read = dict(source or {}) if isinstance(source, Mapping | None) else read_yaml(find_recipe(source))
    values = _with_profile(read, profile)
    for override in overrides:
        for name, value in override.items():
            for part in reversed(name.split(".")):
                value = {part: value}
            values = _laid_over(values, value)
    found: Any = settings_of(kind, values)
    if isinstance(found, GrowthRecipe):
        found = _with_stages(found)
    return found


def _with_stages(recipe: GrowthRecipe) -> GrowthRecipe:
    """The recipe with the stages of its growth schedule, which grow to `model.n_layer` and share `train.tokens` or steps."""
    if recipe.schedule is None:
        return recipe
    if recipe.stages:
        raise InputError(f"schedule {recipe.schedule} makes the stages, but the recipe has {len(recipe.stages)} of its own; "
                         "remove one of the two")
    stages, depth, train = [], recipe.model.n_layer, recipe.train
    for blocks, share, settings in SCHEDULES[recipe.schedule]:
        missing = depth - sum(stage.layers for stage in stages)
        layers = missing if blocks < 0 else blocks if blocks in (0, 1) else max(1, round(blocks * depth))
        if not (blocks == 0 or 0 < layers <= missing):
            raise InputError(f"schedule {recipe.schedule} needs more blocks than model.n_layer {depth}; raise it")
        amount = {"steps": max(1, round(train.steps * share))} if train.steps else {"tokens": (train.tokens or 0) * share}
        stages.append(Stage(layers=int(layers), **amount, **settings))
    return replace(recipe, schedule=None, stages=stages)


def find_recipe(name: str | Path) -> Path:
    """The file `name`, or the recipe of that name that comes with glyphlm, such as best_bvv_ru.

    Raises:
        InputError: it is neither, or a folder.
    """
    if Path(name).is_dir():
        raise InputError(f"{name} is a folder; give a YAML file")
    if Path(name).exists():
        return Path(name)
    shipped = {path.stem: path for path in sorted(shipped_recipes().glob("*.yaml"))}
    if str(name) not in shipped:
        near = get_close_matches(Path(name).stem, shipped, 1)
        cure = f"did you mean {near[0]}?" if near else f"give a YAML file, or one of {', '.join(shipped)}"
        raise InputError(f"{name} does not exist, and is not a recipe that comes with glyphlm; {cure}")
    return shipped[str(name)]


def schema_of(kind: str) -> str:
    """Where the JSON schema of recipes, or of studies, is; its first line in a file lets an editor complete it."""
    return (shipped_recipes() / f"{kind}.schema.json").as_uri()


def _with_profile(recipe: Mapping[str, Any], profile: str | None) -> dict[str, Any]:
    """The values of a recipe with one of its `profiles`, if any, merged over them."""
    values = dict(recipe)
    profiles = values.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(one, dict) for one in profiles.values()):
        raise InputError("profiles must be a mapping of names to parts of the recipe, such as {tiny: {train: {steps: 100}}}")
    if profile is None:
        return values
    if profile not in profiles:
        raise InputError(f"the recipe has no profile {profile!r}; it has {', '.join(profiles) or 'none'}")
    return _laid_over(values, profiles[profile])


def settings_of(kind: Any, value: Any, name: str = "") -> Any:
    """The `value` of a YAML file as type `kind`: a dataclass, a list or mapping of some, a number, text or a choice.

    Names in a file are never imported, unlike in some configuration libraries.

    Raises:
        InputError: a key is unknown, or a value is of another type or out of range.
    """
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    fitting = next((one for one in choices if _fits(one, value)), None)
    if fitting is None:
        wanted = " or ".join(_described(one) for one in choices if one is not NoneType)
        raise InputError(f"{name or 'the recipe'} is {_shown(value)}, and must be {wanted}; fix or remove it")
    if is_dataclass(fitting):
        return _section(fitting, value, name)
    if get_origin(fitting) is list:
        return [settings_of(get_args(fitting)[0], part, f"{name}[{number}]") for number, part in enumerate(value)]
    if get_origin(fitting) is dict:
        return {key: settings_of(get_args(fitting)[1], part, f"{name}.{key}") for key, part in value.items()}
    return fitting(value) if fitting in (int, float) else value


def _section(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        near = get_close_matches(str(unknown[0]), hints, 1)
        cure = f"did you mean {near[0]}?" if near else f"choose from {', '.join(hints)}"
        raise InputError(f"unknown key {unknown[0]!r}{f' in {name}' if name else ''}; {cure}")
    if missing := [one.name for one in fields(kind) if one.name not in values and one.default is one.default_factory]:
        raise InputError(f"{name or 'the file'} has no {missing[0]!r}; give one")
    parts = {key: settings_of(hints[key], part, f"{name}.{key}".lstrip(".")) for key, part in values.items()}
    try:
        return kind(**parts)
    except ValueError as error:  # that settings raise about their own ranges
        raise InputError(str(error)) from None


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value of a YAML file can be of this type; a whole number may be written as 1e6."""
    if is_dataclass(kind) or get_origin(kind) is dict:
        return isinstance(value, Mapping)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or value == value // 1)
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if is_dataclass(kind):
        return f"a mapping such as {{{fields(kind)[0].name}: ..}}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list", dict: "a mapping"}
    return names[get_origin(kind) or kind]


def _shown(value: Any) -> str:
    return "empty" if value is None else repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}.."


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def settings_text(recipe: Any) -> str:
    """A recipe, or another dataclass of settings, as YAML."""
    return to_yaml(asdict(recipe))

"""Growth: GPT of n blocks -> GPT of n + k, with its new blocks initialized, its old ones frozen or adapted.

Published growth (arXiv 2507.07129, sections 3 and 4) trains blocks on a frozen substrate, freezes them, and trains new
random blocks on top of them, with the head; in deep models low-rank adapters (LoRA, 2106.09685) change the old blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.composition.settings import GrowthSettings
from glyphlm.modeling.config import ModelConfig
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.runs.adapters import add_adapters
from glyphlm.substrate.codes import fingerprint


def grow(base: GPT, config: ModelConfig, settings: GrowthSettings, seed: int, tokenizer_fingerprint: str,
         scale: Callable[[GPT], None] = lambda model: None) -> GPT:
    """A model of `config.n_layer` blocks that contains those of `base`; what does not train has requires_grad False.

    New blocks are initialized from `seed` as by `GPT.init_weights`, and scaled by `scale`. `base` is not changed.

    Raises:
        InputError: the shapes differ in more than the depth, there are fewer blocks than before, or nothing would train.
    """
    check_growth(base.config, config, settings)
    substrate = base.substrate
    if substrate.config.trainable and settings.blocks == "new":
        substrate = frozen(substrate, tokenizer_fingerprint)
    model = GPT(config, substrate)
    model.init_weights(seed)
    scale(model)
    old = places_of_old(base.config.n_layer, config.n_layer, settings.place)
    for place, block in zip(old, base.blocks):
        model.blocks[place].load_state_dict(block.state_dict())
    model.norm.load_state_dict(base.norm.state_dict())
    model.head.load_state_dict(base.head.state_dict())
    _start(model, old, settings.start)
    choose_trained(model, old, settings, seed)
    return model


def carried(moments: Mapping[str, Tensor], before: int, after: int, settings: GrowthSettings) -> dict[str, Tensor]:
    """The optimizer moments of the base, under the names of the grown model.

    Old blocks keep theirs, blocks that start as copies copy them, other new blocks have none.

    Args:
        moments: Named TENSOR/KEY, as in a checkpoint.
        before: Blocks of the base.
        after: Blocks of the grown model.
    """
    old, kept = places_of_old(before, after, settings.place), {}
    sources = dict(zip(old, range(before)))
    for place, source in sources_of_new(old, after, settings.start).items():
        sources[place] = sources[source]
    for name, values in moments.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            kept |= {f"blocks.{place}.{rest}": values for place, source in sources.items() if source == int(number)}
        else:
            kept[name] = values
    return kept


def check_growth(was: ModelConfig, now: ModelConfig, settings: GrowthSettings) -> None:
    """Refuse what cannot be grown.

    Raises:
        InputError: with both values.
    """
    for name, value in vars(was).items():
        if name != "n_layer" and value != getattr(now, name):
            raise InputError(f"the base has {name} {value}, the recipe {getattr(now, name)}; growth changes the depth only: "
                             f"set model.{name} to {value}")
    if now.n_layer < was.n_layer:
        raise InputError(f"the base has {was.n_layer} blocks, the recipe {now.n_layer}; growth adds blocks")
    if was.n_layer == 0 and settings.start in ("copy", "stack"):
        raise InputError(f"the base has no blocks, of which start {settings.start} could make copies; choose random or zero")
    if settings.start == "stack" and settings.place != "top":
        raise InputError("start stack puts copies of the whole stack on top; place interleaved does not fit it")
    if settings.blocks == "all" and adapts(settings, now.n_layer):
        raise InputError(f"blocks all trains the old blocks, so adapters of rank {settings.lora.rank} on them have no use; "
                         "set lora.rank to 0, or blocks to new")
    trains = now.n_layer > was.n_layer or settings.blocks == "all" or settings.head != "frozen" or settings.norm
    if not trains and not adapts(settings, now.n_layer):
        raise InputError(f"nothing would train: the base has {was.n_layer} blocks already, head and norm are frozen, and "
                         "there are no adapters")


def adapts(settings: GrowthSettings, depth: int) -> bool:
    """Whether the old blocks of a model of `depth` blocks get adapters."""
    return settings.lora.rank > 0 and depth >= settings.lora.from_depth


def places_of_old(before: int, after: int, place: str) -> list[int]:
    """The numbers that the old blocks have in the grown model."""
    if place == "top":
        return list(range(before))
    return [number + number * (after - before) // before for number in range(before)]


def frozen(substrate: Substrate, tokenizer_fingerprint: str) -> Substrate:
    """A trained table as a frozen one, with the fingerprint of its present values."""
    tensors = {"table_VE": substrate.table_VE.detach().cpu()}
    config = replace(substrate.config, trainable=False)
    config = replace(config, fingerprint=fingerprint(config, tokenizer_fingerprint, tensors))
    still = Substrate(config, substrate.d_model)
    still.load_state_dict(substrate.state_dict())
    return still


def _start(model: GPT, old: Sequence[int], start: str) -> None:
    """Initialize the new blocks, which are random so far; from below, so that copies can be copied."""
    for place, block in enumerate(model.blocks):
        if start == "zero" and place not in old:  # LLaMA-Pro: the block adds nothing yet, but its gradients are not zero
            for values in (block.attention.out.weight, block.mlp.down.weight, block.mlp.down.bias):
                nn.init.zeros_(values)
    for place, source in sources_of_new(old, len(model.blocks), start).items():
        model.blocks[place].load_state_dict(model.blocks[source].state_dict())


def sources_of_new(old: Sequence[int], after: int, start: str) -> dict[int, int]:
    """The block that each new block is a copy of, from below; empty if new blocks are no copies."""
    new = [place for place in range(after) if place not in old]
    if start == "stack":
        return {place: old[number % len(old)] for number, place in enumerate(new)}
    return {place: max(0, place - 1) for place in new} if start == "copy" else {}


def choose_trained(model: GPT, old: Sequence[int], settings: GrowthSettings, seed: int) -> None:
    """Freeze what does not train, and add the adapters; `old` are the numbers of the old blocks."""
    names = [f"blocks.{place}.{target}" for place in old for target in settings.lora.targets]
    ranks = dict.fromkeys(names if adapts(settings, len(model.blocks)) else [], settings.lora.rank)
    if settings.head == "low_rank":
        matrices = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "head" in name]
        ranks |= dict.fromkeys(matrices, settings.head_rank)
    if ranks:
        add_adapters(model, ranks, settings.lora.alpha, seed)
    for name, values in model.named_parameters():
        values.requires_grad_("lora_" in name)
    for place, block in enumerate(model.blocks):
        if settings.blocks == "all" or place not in old:
            block.requires_grad_(True)
    if settings.blocks == "all":
        model.substrate.requires_grad_(True)
    model.norm.requires_grad_(settings.norm)
    if settings.head == "full":
        model.head.requires_grad_(True)

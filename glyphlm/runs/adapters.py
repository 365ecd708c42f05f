"""Low-rank adapters (LoRA, arXiv 2106.09685) on the matrices of a model, by peft: added, merged, kept in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range
from glyphlm.base.records import read_json
from glyphlm.base.tensors import load_tensors, save_tensors
from glyphlm.modeling.model import GPT

ADAPTER, ADAPTER_WEIGHTS = "adapter", "adapter_model.safetensors"  # the folder of adapters that are kept apart, as peft's

ADAPTER_CONFIG = "adapter_config.json"
USED = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
UNUSED = ("peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision", "lora_dropout",
          "auto_mapping")  # no result of a trained adapter depends on them


def add_adapters(model: nn.Module, ranks: dict[str, int], alpha: float, seed: int) -> None:
    """Put a peft adapter on each matrix named in `ranks`; before training, adapters do not change the model."""
    from peft import LoraConfig, inject_adapter_in_model  # takes 2 seconds to import

    fraction: Any = alpha  # peft accepts it, although its annotation is int
    config = LoraConfig(r=max(ranks.values()), lora_alpha=fraction, target_modules=list(ranks), rank_pattern=ranks,
                        alpha_pattern=dict.fromkeys(ranks, alpha))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to the weights that it adapts, and remove it."""
    for name, layer in adapted(model):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


def detach_adapters(model: GPT, folder: Path) -> None:
    """Write the adapters into a peft folder and take them off `model`, whose weights stay those of the base.

    `PeftModel.from_pretrained` puts them on the Hugging Face model of the run folder again.
    """
    from peft import get_peft_model_state_dict

    config: Any = next(iter(cast(Any, model).peft_config.values()))
    config.target_modules = {f"gpt.{name}" for name in config.target_modules}
    config.rank_pattern, config.alpha_pattern = (
        {f"gpt.{name}": value for name, value in pattern.items()} for pattern in (config.rank_pattern, config.alpha_pattern)
    )
    tensors = {f"base_model.model.gpt.{name}": values for name, values in get_peft_model_state_dict(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)
    config.save_pretrained(str(folder))
    for name, layer in adapted(model):
        model.set_submodule(name, layer.get_base_layer())


def attach_adapters(model: nn.Module, folder: Path) -> None:
    """Put the adapters of a peft folder on the Hugging Face model that they were trained with.

    Raises:
        InputError: a file is missing or damaged, it is of another model, or of a kind of adapter that is not known here.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    tensors = load_tensors(folder / ADAPTER_WEIGHTS)
    try:
        inject_adapter_in_model(_read_config(folder, tensors), model)
        unknown = set_peft_model_state_dict(model, tensors).unexpected_keys
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded ({str(error).splitlines()[0]})") from None
    if unknown:
        raise InputError(f"{folder} holds adapters of another model: {', '.join(unknown[:3])}")


def _read_config(folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    """The LoraConfig of a folder. Only fields whose meaning is known are passed on: others can import modules.

    Raises:
        InputError: another field has a value of its own, or a rank is larger than those of the `tensors`.
    """
    from peft import LoraConfig

    path, plain = folder / ADAPTER_CONFIG, LoraConfig().to_dict()
    found = read_json(path)
    for name, value in found.items():
        if name not in (*USED, *UNUSED) and value not in (plain.get(name), None, [], {}):
            raise InputError(f"{path} sets {name} to {value!r:.60}, which is not known here; merge the adapters with peft "
                             "into a model of its own")
    config: Any = LoraConfig(**{name: found[name] for name in USED if name in found})
    largest = max((min(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for rank in (config.r, *config.rank_pattern.values()):
        if rank not in Range(1, largest, whole=True):
            raise InputError(f"{path} names the rank {rank!r:.60}, its tensors have at most {largest}; put the right file "
                             "back")
    return config


def adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """Matrices with an adapter, recognised by a method of peft's layers, so that peft need not be imported."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight")]

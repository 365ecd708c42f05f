"""The model as a class of Hugging Face transformers. This file and those it imports travel inside every run folder."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .assembly import Shape, count_blocks, make_model, shapes_of
from .attention import capacity
from .config import FusionConfig
from .decoding_step import DecodingStep, can_record
from .fusion import OF_PROBABILITIES
from .heads import CodeHead, damaged_order
from .model import GPT

# Keys allowed in config.json besides our own and the fields of PretrainedConfig. Others are refused, because some select
# code or how weights are read: quantization_config, per_layer_config, configuration_files ..
KEYS = set("""attn_implementation auto_map bos_token_id eos_token_id model_type name_or_path num_labels output_attentions
pad_token_id tie_word_embeddings tokenizer_class tokenizer_fingerprint torch_dtype use_cache""".split())
ATTENTION = (None, "sdpa", "eager")
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # renamed in 5.24


class GlyphLMConfig(PretrainedConfig):
    """config.json: `model` holds the fields of ModelConfig, `substrate` those of SubstrateConfig.

    Of a fused model: `experts` holds such a pair for each expert, with a number for the substrate where it is that of an
    earlier expert, and `fusion` the fields of FusionConfig.
    """

    model_type = "glyphlm"
    experts = fusion = None  # of a single model, whose config.json does not name them

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        substrate: dict[str, Any] | None = None,
        experts: list[dict[str, Any]] | None = None,
        fusion: dict[str, Any] | None = None,
        **others: Any,
    ):
        """`others` are fields of PretrainedConfig.

        Raises:
            ValueError: a key is unknown or missing, or a value is not allowed.
        """
        _check_keys(others, single=bool(model or substrate), fused=bool(experts or fusion))
        if fusion is None:
            self.model, self.substrate = model or {}, substrate or {}
        else:
            self.experts, self.fusion = experts, fusion
        if model or substrate or fusion:  # transformers make one without arguments to compare with
            self.shapes()
        super().__init__(**others)

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Model and substrate of each expert; the one pair of a single model."""
        return [{"model": self.model, "substrate": self.substrate}] if self.fusion is None else self.experts or []

    def shapes(self) -> list[Shape]:
        """Sizes of each expert, and the number of the first one that reads the same substrate.

        Raises:
            ValueError: a key is unknown or missing, or a value is not allowed.
        """
        return shapes_of(self.pairs, self.fusion)

    # The names under which caches and other libraries read the sizes.
    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.pairs[0]["substrate"].get("vocab_size", 0)  # 0 of GlyphLMConfig()

    @property
    def hidden_size(self) -> int:
        """d_model, of all experts together."""
        return sum(pair["model"]["d_model"] for pair in self.pairs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the cache: n_layer of all experts together, and those in which the fusion records."""
        records = 0 if self.fusion is None else FusionConfig(**self.fusion).records
        return sum(pair["model"]["n_layer"] for pair in self.pairs) + records

    @property
    def num_attention_heads(self) -> int:
        """n_head of the first expert."""
        return self.pairs[0]["model"]["n_head"]

    @property
    def max_position_embeddings(self) -> int:
        """block_size, the longest context that all experts were trained with."""
        return min(pair["model"]["block_size"] for pair in self.pairs)


def _check_keys(others: dict[str, Any], single: bool, fused: bool) -> None:
    known = KEYS | {field.name for field in fields(PretrainedConfig)}
    unknown = sorted(key for key in others if key not in known and not key.startswith("_"))
    if unknown:
        raise ValueError(f"config.json has unknown keys: {', '.join(unknown)}; remove them")
    if single and fused:
        raise ValueError("config.json has model and substrate beside experts and fusion; only one of the pairs is right")
    if others.get("attn_implementation") not in ATTENTION:
        raise ValueError(f"attn_implementation {others['attn_implementation']!r} is not supported: attention is torch's "
                         "scaled_dot_product_attention; set it to sdpa or leave it out")


class GlyphLMForCausalLM(PreTrainedModel, GenerationMixin):
    """`generate()`, caches, padding and loss around GPT or Fusion."""

    config_class = GlyphLMConfig
    base_model_prefix = "gpt"
    _no_split_modules = ["Block"]
    _supports_sdpa = supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # transformers' Trainer then averages accumulated batches itself
    no_text: list[int] | None = None  # ids that are never to be generated

    def __init__(self, config: GlyphLMConfig):
        super().__init__(config)
        self.gpt = make_model(config.pairs, config.fusion)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *inputs: Any, output_loading_info: bool = False, **options: Any
    ) -> Any:
        """As of any model of transformers, but weights that do not fit config.json are refused instead of completed.

        Raises:
            ValueError: tensors are missing, unknown, of another shape, or hold NaN or infinity; the first is named.
        """
        folder = Path(str(pretrained_model_name_or_path), options.get("subfolder") or "")
        if folder.is_dir():
            _check_depth(folder, options.get("config") or GlyphLMConfig.from_pretrained(folder))
        options.setdefault("use_safetensors", True)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *inputs, output_loading_info=True, **options
        )
        model, report = loaded
        _check_tensors(model, report)
        return (model, report) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: a run folder holds every tensor, and a training starts with GPT.init_weights."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        """Blocks are recomputed by torch's own checkpoint, whichever function is passed: the gradients are the same."""
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers {every_n_layers} is not supported: every block is recomputed; leave it at 1")
        self.gpt.recompute = enable

    @property
    def base_model(self) -> Any:
        """Computes the states that the head reads; trainers with a loss of their own call it, by transformers' names."""
        return self._states

    def get_input_embeddings(self) -> nn.Module:
        """The substrate, of a fused model that of its first expert."""
        return self.gpt.substrate

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; none where no one matrix [V, D] gives the logits: a fusion of probabilities, or heads of other kinds."""
        mixed = self.config.fusion is not None and self.config.fusion["method"] in OF_PROBABILITIES
        full = all(model.head.kind == "full" for model, *_ in self.config.shapes())
        return self.gpt.head if full and not mixed else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: Any = None,
        likeliest: int | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids [B, T] -> logits [B, T, V]; with `labels` (shifted here) also the mean loss in nats.

        `likeliest` makes a head of kind code compute only that many logits, the highest at the last position; the others are
        -inf: generate(do_sample=True, top_k=50, likeliest=50) samples from the same distribution.

        The cache has two names: `past_key_values` until transformers 5.23, `cache` since. `more` are other arguments of
        `_states`.

        Raises:
            ValueError: an argument has a value that this model does not support.
            TypeError: an argument is unknown.
        """
        held = past_key_values if cache is None else cache
        bare = labels is likeliest is None and not any(value is not None for value in more.values())
        if input_ids is not None and bare and self._can_replay(input_ids, held):
            logits = self._replay(input_ids, attention_mask, position_ids, held)
            out = CausalLMOutputWithPast(logits=logits, **{CACHE: held})
            return out if self._returns_dict(return_dict) else out.to_tuple()
        states: Any = self._states(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, True, cache, **more
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if likeliest is None:
            logits = self.gpt.logits(states.last_hidden_state[:, kept])
        elif isinstance(self.gpt.head, CodeHead) and labels is None:
            logits = self.gpt.head.best(states.last_hidden_state[:, -1], likeliest)[:, None]
        else:
            raise ValueError(f"likeliest {likeliest} is for a head of kind code, without labels; leave it out")
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: getattr(states, CACHE)})
        return out if self._returns_dict(return_dict) else out.to_tuple()

    def _states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
        inputs_embeds: None = None,  # peft passes this and the next two as None
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,  # this and the next four: packing collators repeat what position_ids say
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("this model reads input_ids only, as its codes are computed from ids; leave out inputs_embeds")
        if output_attentions or output_hidden_states:
            raise ValueError("output_attentions and output_hidden_states are not supported; leave them out")
        if (seq_idx is not None or cu_seq_lens_q is not None) and position_ids is None:
            raise ValueError("packed documents need position_ids, each beginning at 0; they are not read from seq_idx")
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one argument; give one of them")
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if use_cache and cache is None else cache
        _check_shapes(input_ids, attention_mask, cache)
        packed = position_ids is not None and attention_mask is None and cache is None
        x_BTD = self.gpt.hidden(
            input_ids, cache=cache, attended_BS=attention_mask, positions_BT=position_ids,
            documents_BT=(position_ids == 0).cumsum(1) if packed else None,  # as transformers: each begins at 0
        )
        out = BaseModelOutputWithPast(last_hidden_state=x_BTD, **{CACHE: cache})
        return out if self._returns_dict(return_dict) else out.to_tuple()

    def _can_replay(self, ids_BT: Tensor, cache: Any) -> bool:
        """Whether this is one more token of each sequence, on a GPU, after a filled cache of fixed length."""
        return (
            can_record(self.device) and not torch.is_grad_enabled() and isinstance(self.gpt, GPT)
            and ids_BT.shape[1] == 1 and capacity(cache) is not None and cache.layers[-1].is_initialized
        )  # fmt: skip

    def _replay(self, ids_B1: Tensor, attended_BS: Tensor | None, positions_B1: Tensor | None, cache: Any) -> Tensor:
        _check_shapes(ids_B1, attended_BS, cache)
        step = getattr(cache, "step", None)  # goes with the cache, whose tensors it was recorded with
        if step is None or not step.fits(ids_B1, positions_B1):
            gpt: Any = self.gpt
            cache.step = step = DecodingStep(gpt, cache, ids_B1, positions_B1)
        return step(ids_B1, attended_BS, positions_B1)

    def _valid_auto_compile_criteria(self, model_kwargs: Any, generation_config: Any) -> bool:
        """False: transformers would compile forward() for a cache of fixed length, which takes longer than recording it."""
        return False

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **unused: Any) -> Tensor | None:
        """The attention_mask given to generate(), [B, S], also for caches of fixed length."""
        return attention_mask

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)


def _check_depth(folder: Path, config: GlyphLMConfig) -> None:
    """Compare the number of blocks with that in the files, before blocks are built: config.json could ask for 10^9.

    Raises:
        ValueError: they differ; both are named.
    """
    files = [file for file in folder.glob("*.safetensors") if file.is_file()]
    names: list[str] = []
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names += tensors.keys()
    found = count_blocks(names)
    expected = sum(model.n_layer for model, *_ in config.shapes())
    if files and found != expected:
        raise ValueError(f"config.json describes {expected} blocks, the weights hold {found}; put the right file back")


def _check_tensors(model: nn.Module, report: Any) -> None:
    for kind in ("missing", "unexpected", "mismatched"):
        if keys := sorted(str(key) for key in report.get(f"{kind}_keys") or ()):
            more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
            raise ValueError(f"the weights do not fit config.json: {kind} {keys[0]}{more}; put the right file back")
    for name, values in model.state_dict().items():
        if values.is_floating_point() and not values.is_meta and not bool(values.isfinite().all()):
            raise ValueError(f"tensor {name} holds NaN or infinity; its training has diverged or the file is damaged: "
                             "take another checkpoint")
    if damaged := damaged_order(model):
        raise ValueError(f"tensor {damaged} does not hold each number from 0 to V - 1 once; the file is damaged: take "
                         "another checkpoint")


def _check_shapes(ids_BT: Tensor, attended_BS: Tensor | None, cache: Any) -> None:
    """Refuse caches and masks that would silently give wrong results.

    Raises:
        ValueError: the cache has a fixed length, or the mask does not cover the cache and the new ids.
    """
    fixed = capacity(cache)
    if fixed is not None:  # how many positions it holds is known on its device only
        if not all(hasattr(layer, "cumulative_length") for layer in cache.layers):
            raise ValueError("this cache does not count its positions; leave out cache_implementation, or set it to dynamic")
        if attended_BS is not None and (len(attended_BS) != len(ids_BT) or attended_BS.shape[1] > fixed):
            raise ValueError(f"attention_mask has shape {tuple(attended_BS.shape)}; the cache has {fixed} positions of "
                             f"{len(ids_BT)} sequences")
        return
    expected = (len(ids_BT), ids_BT.shape[1] + (0 if cache is None else cache.get_seq_length()))
    if attended_BS is not None and tuple(attended_BS.shape) != expected:
        raise ValueError(f"attention_mask has shape {tuple(attended_BS.shape)}; cache and new ids together need {expected}")


AutoConfig.register("glyphlm", GlyphLMConfig, exist_ok=True)
AutoModelForCausalLM.register(GlyphLMConfig, GlyphLMForCausalLM, exist_ok=True)
# save_pretrained then copies these files into the folder, and config.json names them.
GlyphLMConfig.register_for_auto_class()
GlyphLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")

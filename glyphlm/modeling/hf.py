"""The model as Hugging Face transformers know it. This file travels inside every run folder, with those it imports."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .fusion import OF_PROBABILITIES, Fusion, FusionConfig
from .model import GPT, ModelConfig, Substrate, SubstrateConfig


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
        if fusion is None:
            self.model, self.substrate = dict(model or {}), dict(substrate or {})
        else:
            self.experts, self.fusion = experts, fusion
        super().__init__(**others)

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Model and substrate of each expert; the one pair of a single model."""
        return [{"model": self.model, "substrate": self.substrate}] if self.fusion is None else self.experts

    # The names under which caches and other libraries look for the sizes.
    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.pairs[0]["substrate"]["vocab_size"]

    @property
    def hidden_size(self) -> int:
        """d_model, of all experts together."""
        return sum(pair["model"]["d_model"] for pair in self.pairs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the cache: n_layer of all experts together, and what the fusion records."""
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


def make_model(config: GlyphLMConfig) -> GPT | Fusion:
    """The model that a config describes, its weights still to be filled in."""
    experts, substrates = [], []
    for pair in config.pairs:
        model, substrate = ModelConfig(**pair["model"]), pair["substrate"]
        shared = isinstance(substrate, int)
        substrates.append(substrates[substrate] if shared else Substrate(SubstrateConfig(**substrate), model.d_model))
        experts.append(GPT(model, substrates[-1]))
    return experts[0] if config.fusion is None else Fusion(FusionConfig(**config.fusion), experts)


class GlyphLMForCausalLM(PreTrainedModel, GenerationMixin):
    """`generate()`, caches, padding and loss around GPT or Fusion."""

    config_class = GlyphLMConfig
    base_model_prefix = "gpt"
    _no_split_modules = ["Block"]
    _supports_sdpa = supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # or transformers' Trainer, seeing **unused, leaves it to us to average accumulated batches

    def __init__(self, config: GlyphLMConfig):
        super().__init__(config)
        self.gpt = make_model(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: a run folder holds every tensor, and GPT.init_weights starts a training."""

    def _set_gradient_checkpointing(self, enable: bool = True, **unused: Any) -> None:
        self.gpt.recompute = enable

    @property
    def base_model(self) -> Callable[..., BaseModelOutputWithPast]:
        """What gives the states that the head reads; trainers with a loss of their own call it (GPT takes other names)."""
        return self._states

    def get_input_embeddings(self) -> nn.Module:
        """The substrate, of a fused model that of its first expert."""
        return self.gpt.substrate

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, never tied; none where a fusion mixes probabilities, which no one matrix gives."""
        mixed = self.config.fusion is not None and self.config.fusion["method"] in OF_PROBABILITIES
        return None if mixed else self.gpt.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids [B, T] -> logits [B, T, V]; with `labels` (shifted here) also the mean loss in nats."""
        states = self._states(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        x_BTD = states.last_hidden_state
        logits = self.gpt.logits(x_BTD[:, -logits_to_keep:] if logits_to_keep else x_BTD)
        loss = None if labels is None else self._loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=states.past_key_values)

    def _states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        packed = position_ids is not None and attention_mask is None and past_key_values is None
        x_BTD = self.gpt.hidden(
            input_ids, cache=past_key_values, attended_BS=attention_mask, positions_BT=position_ids,
            documents_BT=(position_ids == 0).cumsum(1) if packed else None,  # as transformers: each begins at 0
        )
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, past_key_values=past_key_values)

    def _loss(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten())


AutoConfig.register("glyphlm", GlyphLMConfig, exist_ok=True)
AutoModelForCausalLM.register(GlyphLMConfig, GlyphLMForCausalLM, exist_ok=True)
# Whoever saves the model saves these files with it, as config.json names them.
GlyphLMConfig.register_for_auto_class()
GlyphLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")

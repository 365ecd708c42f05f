"""The model as Hugging Face transformers know it. This file travels inside every run folder, next to model.py."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .model import GPT, ModelConfig, Substrate, SubstrateConfig


class GlyphLMConfig(PretrainedConfig):
    """config.json: `model` holds the fields of ModelConfig, `substrate` those of SubstrateConfig."""

    model_type = "glyphlm"

    def __init__(self, model: dict[str, Any] | None = None, substrate: dict[str, Any] | None = None, **others: Any):
        self.model = dict(model or {})
        self.substrate = dict(substrate or {})
        super().__init__(**others)

    # The names under which caches and other libraries look for the sizes.
    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.substrate["vocab_size"]

    @property
    def hidden_size(self) -> int:
        """d_model."""
        return self.model["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        """n_layer."""
        return self.model["n_layer"]

    @property
    def num_attention_heads(self) -> int:
        """n_head."""
        return self.model["n_head"]

    @property
    def max_position_embeddings(self) -> int:
        """block_size, the longest context that was trained."""
        return self.model["block_size"]


class GlyphLMForCausalLM(PreTrainedModel, GenerationMixin):
    """`generate()`, caches, padding and loss around GPT."""

    config_class = GlyphLMConfig
    base_model_prefix = "gpt"
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    accepts_loss_kwargs = False  # or transformers' Trainer, seeing **unused, leaves it to us to average accumulated batches

    def __init__(self, config: GlyphLMConfig):
        super().__init__(config)
        model = ModelConfig(**config.model)
        self.gpt = GPT(model, Substrate(SubstrateConfig(**config.substrate), model.d_model))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: a run folder holds every tensor, and GPT.init_weights starts a training."""

    def get_input_embeddings(self) -> nn.Module:
        """The substrate."""
        return self.gpt.substrate

    def get_output_embeddings(self) -> nn.Module:
        """The head; it is never tied."""
        return self.gpt.head

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
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        x_BTD = self.gpt.hidden(
            input_ids, cache=past_key_values, attended_BS=attention_mask, positions_BT=position_ids
        )
        logits = self.gpt.logits(x_BTD[:, -logits_to_keep:] if logits_to_keep else x_BTD)
        loss = None if labels is None else self._loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _loss(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten())


AutoConfig.register("glyphlm", GlyphLMConfig, exist_ok=True)
AutoModelForCausalLM.register(GlyphLMConfig, GlyphLMForCausalLM, exist_ok=True)

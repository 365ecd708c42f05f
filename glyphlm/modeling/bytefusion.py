"""Experts of different vocabularies as one model of the next byte. Torch and transformers; travels in its run folders.

Shapes: as in model.py; M experts, O ids of the fused model (specials and bytes).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from .attention import Cache
from .bytecover import END, FIRST_BYTE, FLOOR, OUTCOMES, UNKNOWN, ByteExpert, Cover
from .config import FusionConfig
from .fusion import FusedShape
from .hf import GlyphLMConfig, GlyphLMForCausalLM
from .mixing import max_confidence, mean_probs, posterior, updated_nats

LONGEST = 1 << 20  # bytes of a text
MEMORY = 64  # texts whose covers are cached


@dataclass(frozen=True, eq=False)
class Reading:
    """The state of all experts after a text: their covers, their distributions logp_MO over the next id, and the summed
    nats_M that `posterior` reads."""

    covers: tuple[Cover, ...]
    logp_MO: Tensor
    nats_M: Tensor


class ByteFusion(nn.Module):
    """Experts of any vocabularies, with the interface of GPT, over ids that are bytes; logits are log-probabilities.

    Texts are read one after another. A cache holds only the ids, which are the key of the covers of a text.
    """

    def __init__(self, fusion: FusionConfig, docked: Sequence[dict[str, Any]]):
        super().__init__()
        self.fusion, self.recompute, self.frozen_cache = fusion, False, None
        self.experts: Any = nn.ModuleList(map(ByteExpert, docked))
        weights = fusion.weights or [1 / len(docked)] * len(docked)
        self.weights_M = nn.Parameter(torch.tensor(weights), requires_grad=False)
        self.config = FusedShape(OUTCOMES, 1, 1, LONGEST)
        self.vocab_size, self.no_text = OUTCOMES, [UNKNOWN]
        self.blocks: list[Any] = []
        self._memory: OrderedDict[bytes, Reading] = OrderedDict()

    @property
    def weights(self) -> list[float]:
        """Weights of the experts, in their order."""
        return self.weights_M.tolist()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weights_M.device

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> log-probabilities [B, T, O]."""
        return self.hidden(ids_BT)

    def logits(self, x_BTO: Tensor) -> Tensor:
        """x_BTO, unchanged: `hidden` returns log-probabilities."""
        return x_BTO

    def nats(self, x_NO: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target, float32 [N]."""
        return -x_NO.gather(1, y_N[:, None])[:, 0]

    @torch.no_grad()
    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        attended_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [B, T, O] of the next id at each position; arguments as those of `GPT.hidden`."""
        past = int(cache.get_seq_length()) if cache is not None else 0
        all_BS = ids_BT
        if cache is not None:
            held_B1S1, _ = cache.update(ids_BT[:, None, :, None].float(), ids_BT[:, None, :, None].float(), 0)
            all_BS = held_B1S1[:, 0, : past + ids_BT.shape[1], 0].long()
        text_BS = torch.ones_like(all_BS) if attended_BS is None else attended_BS[:, : all_BS.shape[1]]
        rows = [self._row(*row, past, None if documents_BT is None else documents_BT[number].tolist())
                for number, row in enumerate(zip(all_BS.tolist(), text_BS.tolist()))]
        return torch.stack(rows).to(self.device)

    def _row(self, ids: list[int], attended: list[int], past: int, documents: list[int] | None) -> Tensor:
        """Log-probabilities after each id from number `past` on, float32 [T, O]."""
        before = [one for one, counts in zip(ids[:past], attended) if counts]
        text = _last_text(before)
        reading, found = self._recall(text), []
        for place in range(past, len(ids)):
            begins = documents is not None and place > 0 and documents[place] != documents[place - 1]
            if begins:
                text, reading = b"", self._begin()
            if attended[place]:
                text, reading = self._read(text, reading, ids[place])
            found.append(self._mix(reading.logp_MO, reading.nats_M))
        self._remember(text, reading)
        return F.pad(torch.stack(found), (END, 0), value=-torch.inf).float()

    def _read(self, text: bytes, reading: Reading, number: int) -> tuple[bytes, Reading]:
        if number == END:
            return b"", self._begin()
        if number < FIRST_BYTE:
            return text, reading
        covers = tuple(expert.step(cover, number - FIRST_BYTE) for expert, cover in zip(self.experts, reading.covers))
        how = self.fusion
        nats_M = updated_nats(
            reading.nats_M, -reading.logp_MO[:, number - END], self._prior(), how.temperature, how.memory, how.reset
        )
        return text + bytes([number - FIRST_BYTE]), self._reading(covers, nats_M)

    def _begin(self) -> Reading:
        covers = tuple(expert.begin() for expert in self.experts)
        return self._reading(covers, torch.zeros(len(covers), dtype=torch.float64))

    def _reading(self, covers: tuple[Cover, ...], nats_M: Tensor) -> Reading:
        return Reading(covers, torch.stack([e.log_probs(cover) for e, cover in zip(self.experts, covers)]), nats_M)

    def _prior(self) -> Tensor:
        return self.weights_M.cpu().double()

    def _mix(self, logp_MO: Tensor, nats_M: Tensor) -> Tensor:
        """Log-probabilities of the fused model, [POSSIBLE]."""
        method, weights_M = self.fusion.method, self._prior()
        if method == "max_confidence":
            return max_confidence(logp_MO[:, None, None])[0, 0]
        if method in ("mean_logits", "weighted_logits"):
            return (weights_M[:, None] * logp_MO).sum(0).log_softmax(-1)
        if method == "posterior":
            weights_M = posterior(nats_M, weights_M, self.fusion.temperature)
        return mean_probs(logp_MO[:, None, None], weights_M[:, None, None])[0, 0]

    @torch.no_grad()
    def document_nats(self, ids_T: Sequence[int]) -> Tensor:
        """Nats of each id after the first one, which precedes the text; float64.

        The last value includes the event that a token ends where the text does, as in the bits per byte of a token model.
        """
        text, reading, nats = b"", self._begin(), []
        for number in ids_T[1:]:
            nats.append(-float(self._mix(reading.logp_MO, reading.nats_M)[int(number) - END]))
            text, reading = self._read(text, reading, int(number))
        closed_M = torch.tensor([cover.closed for cover in reading.covers], dtype=torch.float64).clamp(FLOOR, 1 - FLOOR)
        closing_M2 = torch.stack([closed_M, 1 - closed_M], -1).log()
        nats[-1] -= float(self._mix(closing_M2, reading.nats_M)[0])
        return torch.tensor(nats, dtype=torch.float64)

    def _recall(self, text: bytes) -> Reading:
        """The state of the experts after a text, from the longest prefix whose state is cached."""
        reading, known = self._memory.get(text), text
        while reading is None and known:
            known = known[:-1]
            reading = self._memory.get(known)
        reading = reading or self._begin()
        for byte in text[len(known) :]:
            known, reading = self._read(known, reading, byte + FIRST_BYTE)
        return reading

    def _remember(self, text: bytes, reading: Reading) -> None:
        self._memory[text] = reading
        self._memory.move_to_end(text)
        while len(self._memory) > MEMORY:
            self._memory.popitem(last=False)


def _last_text(ids: Sequence[int]) -> bytes:
    """The bytes after the last end-of-text id."""
    begin = max((place for place, number in enumerate(ids, 1) if number == END), default=0)
    return bytes(number - FIRST_BYTE for number in ids[begin:] if number >= FIRST_BYTE)


class ByteFusionConfig(GlyphLMConfig):
    """config.json: `docked` holds the arguments of `ByteExpert` for each expert, `fusion` the fields of FusionConfig.

    The experts themselves are complete folders, experts/1, experts/2 ..
    """

    model_type = "glyphlm_bytes"

    def __init__(self, docked: list[dict[str, Any]] | None = None, fusion: dict[str, Any] | None = None, **others: Any):
        super().__init__(**{key: value for key, value in others.items() if key not in ("model", "substrate")})
        self.docked, self.fusion = docked or [], fusion or {}

    def shapes(self) -> list[Any]:
        """None: each expert has a config.json of its own."""
        return []

    vocab_size = hidden_size = OUTCOMES  # type: ignore[assignment]
    num_hidden_layers = num_attention_heads = 1  # type: ignore[assignment]
    max_position_embeddings = LONGEST  # type: ignore[assignment]


class ByteFusionForCausalLM(GlyphLMForCausalLM):
    """`generate()`, caches, padding and loss around ByteFusion."""

    config_class = ByteFusionConfig
    no_text = [UNKNOWN]

    def __init__(self, config: ByteFusionConfig):
        super(GlyphLMForCausalLM, self).__init__(config)
        self.gpt: Any = ByteFusion(FusionConfig(**config.fusion), config.docked)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *inputs: Any, **options: Any) -> Any:
        """As of any model of transformers, but from a local folder, whose experts are loaded with it.

        Raises:
            ValueError: it is no folder, or a file of an expert is not the one that was fused.
        """
        folder = Path(str(pretrained_model_name_or_path), options.get("subfolder") or "")
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; download all of it first (huggingface_hub.snapshot_download)")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *inputs, **options)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        for number, expert in enumerate(model.gpt.experts, 1):
            expert.open(folder / "experts" / str(number))
        return loaded

    def get_input_embeddings(self) -> Any:
        """None: each expert has its own."""
        return None

    def get_output_embeddings(self) -> Any:
        """None: logits are log-probabilities, not the product of one matrix."""
        return None


AutoConfig.register("glyphlm_bytes", ByteFusionConfig, exist_ok=True)
AutoModelForCausalLM.register(ByteFusionConfig, ByteFusionForCausalLM, exist_ok=True)
ByteFusionConfig.register_for_auto_class()
ByteFusionForCausalLM.register_for_auto_class("AutoModelForCausalLM")

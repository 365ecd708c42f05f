"""Models for evaluation: run folders, and folders or Hub models that transformers open without remote code.

Shapes: B rows, T new positions, S all positions (cached and new), V vocabulary.
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import CONFIG, HUB, TOKENIZER, TOKENIZER_CONFIG
from glyphlm.base.outputs import sha256_file
from glyphlm.base.records import read_json
from glyphlm.evaluation.answers import first_letter
from glyphlm.modeling.heads import CodeHead, cross_entropy
from glyphlm.modeling.hf import CACHE, GlyphLMForCausalLM
from glyphlm.modeling.model import LanguageModel
from glyphlm.runs.adapters import ADAPTER
from glyphlm.runs.folder import load_run
from glyphlm.runs.foreign import context_of, load_foreign
from glyphlm.tokenizer.tokenizer import Tokenizer

WEIGHT_SUFFIXES, DESCRIBED = (".safetensors", ".bin"), (CONFIG, TOKENIZER)
SHOWN_CHARS = 60  # of a text in a message
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Prefix(NamedTuple):
    """Cached keys and values of a batch of texts, and which positions are text (1) and which padding (0)."""

    cache: Any
    attended_BS: Tensor

    def select(self, rows: Sequence[int]) -> "Prefix":
        """The prefix of the selected rows, which may repeat. The cache is changed in place: do not use the old prefix."""
        index = torch.tensor(rows, device=self.attended_BS.device)
        self.cache.batch_select_indices(index)
        return Prefix(self.cache, self.attended_BS[index])


@dataclass(frozen=True, eq=False)
class EvalModel:
    """A model with its tokenizer.

    Args:
        name: As given by the user.
        block_size: Longest context in tokens.
        start: Ids that the tokenizer prepends to every text; none in our tokenizers.
        first_id: Id that precedes a document in bits per byte; the end-of-text id in our models.
        digest: sha256 of weights, configuration and tokenizer; of a Hub model its commit.
        folder: Run folder that results are written to; None for models of other libraries.
    """

    name: str
    model: transformers.PreTrainedModel
    tokenizer: Tokenizer
    block_size: int
    start: tuple[int, ...]
    first_id: int
    digest: str
    folder: Path | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def prompt(self, text: str, room: int) -> tuple[list[int], bool]:
        """At most `room` ids of a prompt, and whether it was truncated (on the left)."""
        return self.last_ids(self.tokenizer.encode(text), room)

    def last_ids(self, ids: Sequence[int], room: int) -> tuple[list[int], bool]:
        """`start` and as many of the last `ids` as fit into `room`, at least one; and whether some were cut."""
        room = max(room - len(self.start), 1)
        return [*self.start, *ids[-room:]] or [self.first_id], len(ids) > room

    @torch.no_grad()
    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Prefix]:
        """logits_BV after each prompt, and the prefix of all. Shorter prompts are padded on the left."""
        longest = max(map(len, prompts))
        pads = [longest - len(ids) for ids in prompts]
        ids_BT = torch.tensor([[self.first_id] * pad + list(ids) for pad, ids in zip(pads, prompts)], device=self.device)
        attended_BT = torch.tensor([[0] * pad + [1] * len(ids) for pad, ids in zip(pads, prompts)], device=self.device)
        out = self._forward(ids_BT, attended_BT, None, logits_to_keep=1)
        logits_BV = out.logits[:, -1].float()
        self.check_numbers(logits_BV.logsumexp(-1), prompts)
        return logits_BV, Prefix(out[CACHE], attended_BT)

    @torch.no_grad()
    def extend(self, prefix: Prefix, ids_BT: Tensor) -> tuple[Tensor, Prefix]:
        """logits_BV after the new ids, and the extended prefix."""
        attended_BS = torch.cat([prefix.attended_BS, torch.ones_like(ids_BT)], dim=1)
        out = self._forward(ids_BT, attended_BS, prefix.cache, logits_to_keep=1)
        return out.logits[:, -1], Prefix(out[CACHE], attended_BS)

    @torch.no_grad()
    def score(self, prefix: Prefix, ids_BT: Tensor, text_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Nats of the target of each new position, float32 [B, T]; undefined at padding, where `text_BT` is 0.

        A head of kind code computes them without logits of the whole vocabulary.
        """
        attended_BS = torch.cat([prefix.attended_BS, text_BT], dim=1)
        if isinstance(self.model, GlyphLMForCausalLM) and isinstance(self.model.gpt.head, CodeHead):
            positions_BT = _positions(attended_BS, ids_BT.shape[1])
            x_BTD = self.model.gpt.hidden(ids_BT, cache=prefix.cache, attended_BS=attended_BS, positions_BT=positions_BT)
            return self.model.gpt.nats(x_BTD.flatten(0, 1), y_BT.flatten()).view(y_BT.shape)
        logits_BTV = self._forward(ids_BT, attended_BS, prefix.cache, logits_to_keep=0).logits
        return torch.stack([cross_entropy(logits_TV, y_T) for logits_TV, y_T in zip(logits_BTV, y_BT)])

    def check_numbers(self, values_B: Tensor, texts: Sequence[Sequence[int]]) -> None:
        """Refuse logits that are NaN or infinite.

        Raises:
            InputError: a value is not finite; the message has the model and the text of that row.
        """
        bad_N = torch.nonzero(~values_B.isfinite())
        if len(bad_N):
            text = self.tokenizer.decode(list(texts[int(bad_N[0, 0])]))
            shown = text if len(text) <= SHOWN_CHARS else f"..{text[-SHOWN_CHARS:]}"
            raise self.not_finite(f"after {shown!r}")

    def not_finite(self, where: str) -> InputError:
        """The error for NaN or infinite logits, for the caller to raise."""
        return InputError(f"{self.name} gives no probabilities (NaN or infinite logits) {where}; its training has diverged "
                          "or a weight is damaged: give another checkpoint")

    def _forward(self, ids_BT: Tensor, attended_BS: Tensor, cache: Any, logits_to_keep: int) -> Any:
        options = {"position_ids": _positions(attended_BS, ids_BT.shape[1])} if self._takes_positions else {}
        options |= {"attention_mask": attended_BS, CACHE: cache, "use_cache": True}
        return self.model(ids_BT, logits_to_keep=logits_to_keep, **options)

    @cached_property
    def scorer(self) -> LanguageModel:
        """The model as bits per byte need it."""
        return self.model.gpt if isinstance(self.model, GlyphLMForCausalLM) else _Foreign(self.model, self.block_size)

    def letter_mass(self, p_V: Tensor, labels: Sequence[str]) -> float:
        """The probability that the next token begins with the first letter of a label, as in the published protocol."""
        return float(p_V[self.begin_with(labels)].sum())

    def begin_with(self, labels: Sequence[str]) -> Tensor:
        """The ids whose text, stripped and upper-cased, begins with the first letter of a label."""
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        letters = dict.fromkeys(map(first_letter, labels))  # in their order, so that sums over the ids are reproducible
        return torch.cat([self._ids_by_letter.get(letter, none) for letter in letters])

    @cached_property
    def _ids_by_letter(self) -> dict[str, Tensor]:
        found: dict[str, list[int]] = {}
        for number, text in enumerate(self._texts):
            found.setdefault(first_letter(text), []).append(number)
        return {letter: torch.tensor(ids, device=self.device) for letter, ids in found.items()}

    @cached_property
    def line_ends(self) -> frozenset[int]:
        """The ids whose text contains a newline."""
        return frozenset(number for number, text in enumerate(self._texts) if "\n" in text)

    @cached_property
    def _texts(self) -> list[str]:
        return [self.tokenizer.decode([number]) for number in range(self.tokenizer.vocab_size)]


def _positions(attended_BS: Tensor, new: int) -> Tensor:
    """The positions of the last `new` columns, counted without padding; 0 at padding."""
    return (attended_BS.cumsum(1) - 1).clamp(min=0)[:, -new:]


class _Sizes(NamedTuple):
    block_size: int


class _Foreign:
    """A model of another library as a `LanguageModel`, whose `hidden` returns logits already."""

    def __init__(self, model: transformers.PreTrainedModel, block_size: int):
        self._model, self.device = model, model.device
        self.vocab_size = cast(torch.nn.Linear, model.get_output_embeddings()).weight.shape[0]
        self.config = _Sizes(block_size)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self._model(ids_BT, use_cache=False).logits

    def logits(self, x_BTV: Tensor, /) -> Tensor:
        return x_BTV

    def nats(self, x_NV: Tensor, y_N: Tensor, /) -> Tensor:
        return cross_entropy(x_NV, y_N)


def load_eval_model(name: str, device: str = "cpu", precision: str = "fp32") -> EvalModel:
    """Load a run folder, another folder, or hf:NAME, in eval mode.

    A text is scored after the token that precedes documents in training: `</s>` in our models, whatever an old config.json
    says of `<s>`; in others the bos token or, if the tokenizer has none, the eos token, as in lm-eval.

    Raises:
        InputError: it cannot be loaded, lacks tensors or has others, needs code of its own, or has no usable tokenizer.
    """
    ours = is_run(name)
    if ours or not (name.startswith(HUB) or (Path(name) / CONFIG).is_file()):
        model, tokenizer = load_run(name)  # its errors name what a folder lacks
        start, first = (), tokenizer.end_id
    else:
        model, tokenizer, start = load_foreign(name.removeprefix(HUB))
        first = tokenizer.end_id if tokenizer.start_id is None else tokenizer.start_id
    block = context_of(model.config)
    model = cast(Any, model).to(device, DTYPES[precision]).eval()
    return EvalModel(name, model, tokenizer, block, start, first, _digest(name, model, ours), Path(name) if ours else None)


def is_run(name: str | Path) -> bool:
    """Whether a folder holds a model of ours.

    Raises:
        InputError: its config.json is damaged.
    """
    path = Path(name) / CONFIG
    return path.is_file() and str(read_json(path).get("model_type")).startswith("glyphlm")


def _digest(name: str, model: transformers.PreTrainedModel, ours: bool) -> str:
    """sha256 of all files that determine what the model computes; of a Hub model its commit."""
    if name.startswith(HUB):
        return str(model.config._commit_hash)
    described = DESCRIBED if ours else (*DESCRIBED, TOKENIZER_CONFIG)  # it names the bos token
    found = [path for folder in (Path(name), Path(name) / ADAPTER) if folder.is_dir() for path in sorted(folder.iterdir())
             if path.suffix in WEIGHT_SUFFIXES or path.name in described]
    return hashlib.sha256("".join(map(sha256_file, found)).encode()).hexdigest()

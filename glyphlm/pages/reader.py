"""An open run for the page of `glyphlm show`: codes, nearest tokens, predictions after each layer.

Shapes: T positions of a text, V vocabulary, E n_embed, D d_model, C candidate tokens, L rows of predictions.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphlm.analysis.probes import layer_outputs
from glyphlm.base.errors import InputError
from glyphlm.base.names import SUMMARY
from glyphlm.base.progress import meter
from glyphlm.base.records import read_json
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.pages.run_data import finite
from glyphlm.runs.opening import Opened
from glyphlm.substrate.build import TENSORS
from glyphlm.substrate.codes import all_codes
from glyphlm.tokenizer.layouts import BYTES

SHOWN_CODE = 256  # values of a code that are drawn
SHOWN_LAYERS = 12
NEIGHBOURS = 5
COMPARED = 1 << 14  # most tokens whose states are computed
BATCH = 512


class Reader:
    """An open run with lookups in its codes, states and predictions.

    Raises:
        InputError: the model is of another library.
    """

    def __init__(self, opened: Opened):
        self.folder, self.label, self.tokenizer = opened.folder, opened.name, opened.tokenizer
        if not isinstance(opened.model, GPT | Fusion):
            raise InputError(f"{opened.name} is no run of glyphlm: its model has no codes to show; give a run folder, or "
                             "make one with glyphlm import")
        self.gpt = opened.model
        self.config = self.gpt.substrate.config
        tensors = {name: tensor for name, tensor in self.gpt.substrate.state_dict().items() if name in TENSORS}
        self.code_VE = all_codes(self.config, tensors).float()

    @property
    def words(self) -> str:
        """The substrate in words, such as "frozen glyph codes"."""
        kind = self.config.kind.replace("_", " ")
        return "learned codes" if kind == "learned" else f"{'trained' if self.config.trainable else 'frozen'} {kind} codes"

    def facts(self) -> dict[str, Any]:
        """The run as described at the head of the page, and `missing`: parts of the page that do not apply to it."""
        config, path = self.gpt.config, self.folder / SUMMARY
        summary = read_json(path) if path.is_file() else {}
        return {
            "label": self.label,
            "codes": self.words,
            "kind": self.config.kind,
            "trainable": self.config.trainable,
            "fused": isinstance(self.gpt, Fusion),
            "width": self.config.n_embed,
            "model": {"layers": config.n_layer, "width": config.d_model, "context": config.block_size},
            "tokens": summary.get("tokens"),
            "bits": finite((summary.get("bits_per_byte") or {}).get("validation")),
            "layers": self.layer_names,
            "missing": self._missing(),
        }

    def _missing(self) -> list[str]:
        found, ids, width = [], len(self.comparable), self.config.n_embed
        if isinstance(self.gpt, Fusion):
            experts, tables = len(self.gpt.experts), len(self.gpt.substrates)
            found.append(f"{self.label} is fused from {experts} experts, which have no layers in common: predictions are "
                         "shown by expert, and states after a first layer do not apply")
            found += [f"The experts of {self.label} read {tables} tables of codes; the first is shown"] if tables > 1 else []
        elif ids > COMPARED:
            found.append(f"States of {self.label} after the first layer are compared among {COMPARED:,} of {ids:,} tokens")
        if width > SHOWN_CODE:
            found.append(f"Of the {width:,} values of a code of {self.label} the first {SHOWN_CODE} are drawn")
        return found

    @property
    def layer_names(self) -> list[str]:
        """Names of the rows of predictions: the codes, after each layer; of a fused run its experts and the whole."""
        if isinstance(self.gpt, Fusion):
            return [*(f"expert {number + 1}" for number in range(len(self.gpt.experts))), "fused"]
        names = ["codes alone", *(f"after layer {number + 1}" for number in range(self.gpt.config.n_layer))]
        return [names[number] for number in self._rows(len(names))]

    @staticmethod
    def _rows(count: int) -> list[int]:
        return sorted({round(row) for row in np.linspace(0, count - 1, min(count, SHOWN_LAYERS))})

    @torch.no_grad()
    def predict(self, ids: Sequence[int]) -> Tensor:
        """Probabilities of the next token [L, T, V] at each row of `layer_names`; the last is that of the model."""
        ids_BT = torch.tensor([ids])
        if isinstance(self.gpt, Fusion):
            rows = [F.linear(expert.hidden(self.gpt.substrates[read](ids_BT)), *head)
                    for expert, read, head in zip(self.gpt.experts, self.gpt.reads, self.gpt.head.of_experts())]
            rows.append(self.gpt(ids_BT))
        else:
            states = layer_outputs(self.gpt, ids_BT)[:-1]
            rows = [self.gpt.logits(self.gpt.norm(states[number])) for number in self._rows(len(states))]
        return torch.cat(rows).float().softmax(-1)

    @cached_property
    def comparable(self) -> list[int]:
        """Ids of tokens that are text, neither special nor a byte."""
        special, tokens = self.tokenizer.special_ids, self.tokenizer.tokens
        return [number for number, token in enumerate(tokens) if number not in special and token not in BYTES]

    def near_codes(self, number: int) -> list[list[float]]:
        """The nearest other tokens by the cosine of codes: [id, cosine]."""
        return self._nearest(self._unit_code_CE, F.normalize(self.code_VE[number], dim=0), self.comparable, number)

    def near_states(self, number: int) -> list[list[float]] | None:
        """The nearest by the state after the first layer, each token alone after `</s>`; None for a fused run."""
        if isinstance(self.gpt, Fusion):
            return None
        return self._nearest(self._unit_state_CD, self._first_states([number])[0], self._compared, number)

    @cached_property
    def _unit_code_CE(self) -> Tensor:
        return F.normalize(self.code_VE[torch.tensor(self.comparable)], dim=1)

    @cached_property
    def _compared(self) -> list[int]:
        places = np.linspace(0, len(self.comparable) - 1, min(COMPARED, len(self.comparable))).round().astype(int)
        return [self.comparable[place] for place in places]

    @cached_property
    def _unit_state_CD(self) -> Tensor:
        return self._first_states(self._compared, f"{self.label}: states after the first layer")

    @torch.no_grad()
    def _first_states(self, numbers: Sequence[int], title: str | None = None) -> Tensor:
        found, first = [], self._first_layer
        with meter(title, len(numbers)) as bar:
            for start in range(0, len(numbers), BATCH):
                part = numbers[start : start + BATCH]
                ids_BT = torch.tensor([[self.tokenizer.end_id, number] for number in part])
                found.append(F.normalize(layer_outputs(first, ids_BT)[1][:, 1], dim=1))
                bar.advance(len(part))
        return torch.cat(found)

    @cached_property
    def _first_layer(self) -> GPT:
        """The model cut off after its first layer."""
        assert isinstance(self.gpt, GPT)
        with torch.device("meta"):
            first = GPT(replace(self.gpt.config, n_layer=1), self.gpt.substrate)
        blocks: Any = nn.ModuleList(self.gpt.blocks[:1])
        first.blocks, first.norm = blocks, self.gpt.norm
        return first.eval()

    @staticmethod
    def _nearest(unit_CX: Tensor, own_X: Tensor, ids: Sequence[int], number: int) -> list[list[float]]:
        cosine_C = unit_CX @ own_X
        found = torch.sort(cosine_C, descending=True, stable=True).indices[: NEIGHBOURS + 1].tolist()
        others = [place for place in found if ids[place] != number][:NEIGHBOURS]
        return [[ids[place], round(cosine_C[place].item(), 4)] for place in others]

    def strip(self, number: int) -> str:
        """The first values of a code as base64, a signed byte each, scaled to a maximum of 127."""
        value_E = self.code_VE[number, :SHOWN_CODE]
        return as_base64((value_E / value_E.abs().max().clamp(min=1e-30) * 127).round().to(torch.int8).numpy())


def as_base64(values: np.ndarray) -> str:
    """The bytes of an array, as text."""
    return base64.b64encode(values.tobytes()).decode()

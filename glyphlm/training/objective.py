"""(x_BT, y_BT) -> loss as one module, because DDP and FSDP2 act where a module's forward begins and ends."""

import torch
from torch import Tensor, nn

from glyphlm.data.batches import IGNORED
from glyphlm.modeling.model import GPT
from glyphlm.training.loss import head_loss, target_nats


class Objective(nn.Module):
    """Next-token cross-entropy of a GPT.

    Args:
        dtype: Of matrix products.
        end_id: With it a position sees only its own document, which begins at the id that ends the one before.
    """

    def __init__(self, model: GPT, dtype: torch.dtype, end_id: int | None = None):
        super().__init__()
        self.model, self._dtype, self._end_id = model, dtype, end_id

    def forward(self, x_BT: Tensor, y_BT: Tensor, targets: int | None = None) -> Tensor:
        """The summed loss in nats over `targets` (float32 scalar); without it the nats of each target [N], in order.

        Targets that are IGNORED take no part.
        """
        kept_N = (y_BT != IGNORED).flatten()
        with torch.autocast(x_BT.device.type, self._dtype, enabled=self._dtype != torch.float32):
            x_ND = self.model.hidden(x_BT, documents_BT=self._documents(x_BT)).flatten(0, 1)
        y_N, head = y_BT.flatten(), self.model.head
        if not bool(kept_N.all()):
            x_ND, y_N = x_ND[kept_N], y_N[kept_N]
        if targets is None:
            return target_nats(self.model.logits, x_ND, y_N, self.model.vocab_size)
        return head_loss(x_ND, _whole(head), head.bias, y_N, self._dtype, targets)

    def _documents(self, x_BT: Tensor) -> Tensor | None:
        return None if self._end_id is None else (x_BT == self._end_id).cumsum(1)


def _whole(head: nn.Module) -> Tensor:
    """The head's matrix [V, D], with its low-rank change where it has a peft adapter."""
    if not hasattr(head, "get_delta_weight"):
        return head.weight
    return head.weight + head.get_delta_weight(head.active_adapters[0])

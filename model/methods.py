"""Methods that pretrain one stream, by name: one row for each. Co-training, of two streams, has a main of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from model.loss import supcon_loss
from model.pretrain import InfoNCE, UberNCE


@dataclass(frozen=True)
class Method:
    """``model`` gives two things from the clips of a batch and the entries named by ``inputs``; ``loss`` takes them."""

    model: type[InfoNCE]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: tuple[str, ...] = ()


METHODS = {
    "infonce": Method(InfoNCE, F.cross_entropy),
    "ubernce": Method(UberNCE, supcon_loss, inputs=("label",)),
}

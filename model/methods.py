"""Methods that pretrain one stream, by name: a row each. Co-training, of two, has a main of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from model.loss import supcon_loss
from model.pretrain import InfoNCE, UberNCE


@dataclass(frozen=True)
class Method:
    """``model`` gives two things from a batch's clips and its entries ``inputs``; ``loss`` takes them.

    label: what checkpoints, records and tables call the method.
    """

    label: str
    model: type[InfoNCE]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: tuple[str, ...] = ()


METHODS = {
    "infonce": Method("InfoNCE", InfoNCE, F.cross_entropy),
    "ubernce": Method("UberNCE", UberNCE, supcon_loss, inputs=("label",)),
}

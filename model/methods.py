"""Pretraining methods by name: one row for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from model.loss import mil_nce_loss, supcon_loss
from model.pretrain import CoCLR, InfoNCE, UberNCE


@dataclass(frozen=True)
class Method:
    """A method of pretraining.

    ``model`` gives (logits, positives) from the clips of a batch and the entries of it that ``inputs`` names; ``loss``
    follows from these two. ``streams`` are those of a sample: one is trained alone, or by another.
    """

    model: type[InfoNCE]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: tuple[str, ...] = ()
    streams: int = 1


METHODS = {
    "infonce": Method(InfoNCE, F.cross_entropy),
    "ubernce": Method(UberNCE, supcon_loss, inputs=("label",)),
    "coclr": Method(CoCLR, mil_nce_loss, inputs=("source",), streams=2),
}


def methods_of(streams: int) -> list[str]:
    """Names of the methods whose samples have so many streams."""
    return [name for name, method in METHODS.items() if method.streams == streams]

"""Networks by name: one row for each; options, messages and the sizes of layers follow from it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from backbone.resnet_2d3d import ResNet2d3d50
from backbone.s3dg import S3D
from utils.errors import UserError


@dataclass(frozen=True)
class Network:
    """``make(first_channel)`` gives the module; its features have ``feature_size`` channels."""

    make: Callable[[int], nn.Module]
    feature_size: int


NETWORKS = {
    "s3d": Network(partial(S3D, gating=False), 1024),
    "s3dg": Network(partial(S3D, gating=True), 1024),
    "s3d_quarter": Network(partial(S3D, divisor=4), 256),  # for small trials, on a CPU
    "r50": Network(ResNet2d3d50, 2048),
}


def select_backbone(network: str, first_channel: int = 3) -> tuple[nn.Module, dict[str, int]]:
    """Return the backbone module and {"feature_size": C}; [B, first_channel, T, H, W] -> [B, C, T', H', W'].

    Raises ValueError, naming the known networks, for any other name.
    """
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}")
    row = NETWORKS[network]
    return row.make(first_channel), {"feature_size": row.feature_size}


def feature_shape(network: str, seq_len: int, img_dim: int) -> torch.Size:
    """Shape [C, T', H', W'] of a clip's features; computes nothing. Raises UserError for too small a clip."""
    with torch.device("meta"):
        backbone = select_backbone(network)[0].eval()
        try:
            return backbone(torch.empty(1, 3, seq_len, img_dim, img_dim)).shape[1:]
        except RuntimeError as error:
            raise UserError(
                f"clips of --seq_len {seq_len} --img_dim {img_dim} are too small for --net {network} "
                "(s3d needs 8 frames of 32 pixels)"
            ) from error

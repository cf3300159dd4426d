"""Backbones by name."""

import torch
from torch import nn

from backbone.resnet_2d3d import ResNet2d3d50
from backbone.s3dg import S3D
from utils.errors import UserError

BACKBONES = {
    "s3d": lambda first_channel: S3D(first_channel, gating=False),
    "s3dg": lambda first_channel: S3D(first_channel, gating=True),
    "r50": ResNet2d3d50,
}


def select_backbone(network: str, first_channel: int = 3) -> tuple[nn.Module, dict[str, int]]:
    """Return the backbone module and {"feature_size": C}; input [B, first_channel, T, H, W], output [B, C, T', H', W'].

    Raises ValueError, naming the known networks, for any other name.
    """
    if network not in BACKBONES:
        raise ValueError(f"unknown network {network!r}; choose one of {', '.join(BACKBONES)}")
    module = BACKBONES[network](first_channel)
    return module, {"feature_size": module.feature_size}


def feature_shape(network: str, seq_len: int, img_dim: int) -> torch.Size:
    """Shape [C, T', H', W'] of the features of a clip; nothing is computed. Raises UserError for too small a clip."""
    with torch.device("meta"):
        backbone = select_backbone(network)[0].eval()
        try:
            return backbone(torch.empty(1, 3, seq_len, img_dim, img_dim)).shape[1:]
        except RuntimeError as error:
            raise UserError(
                f"clips of --seq_len {seq_len} --img_dim {img_dim} are too small for --net {network} "
                "(s3d needs 8 frames of 32 pixels)"
            ) from error

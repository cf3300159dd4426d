"""Backbones by name."""
from torch import nn

from backbone.resnet_2d3d import ResNet2d3d50
from backbone.s3dg import S3D

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

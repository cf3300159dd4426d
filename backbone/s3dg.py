"""S3D and S3D-G (Xie et al. 2018, arXiv 1712.04851) with the state-dict names of the released checkpoints."""

import torch
from torch import Tensor, nn

from backbone.layers import Conv3d, MaxPool3d

# name: [b0, b1 reduce, b1, b2 reduce, b2, b3]
INCEPTION_WIDTHS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class BasicConv3d(nn.Module):
    """Unit convolution: 1x1x1 Conv3d without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class STConv3d(nn.Module):
    """Separable convolution: (1,k,k) then (k,1,1), each with BatchNorm and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ):
        super().__init__()
        k, s, p = kernel_size, stride, padding
        self.conv1 = Conv3d(in_channels, out_channels, (1, k, k), (1, s, s), (0, p, p), bias=False)
        self.conv2 = Conv3d(out_channels, out_channels, (k, 1, 1), (s, 1, 1), (p, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class SelfGating(nn.Module):
    """Feature gating: sigmoid(Linear(mean over T, H, W)) times the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        weights = torch.sigmoid(self.fc(x.mean(dim=(2, 3, 4))))  # [B, C]
        return x * weights[:, :, None, None, None]


class SepInception(nn.Module):
    """Inception block with separable convolutions and, in S3D-G, a gate after each branch."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], gating: bool):
        super().__init__()
        b0, b1_reduce, b1, b2_reduce, b2, b3 = widths
        self.branch0 = nn.Sequential(BasicConv3d(in_channels, b0))
        self.branch1 = nn.Sequential(
            BasicConv3d(in_channels, b1_reduce), STConv3d(b1_reduce, b1, 3, padding=1)
        )
        self.branch2 = nn.Sequential(
            BasicConv3d(in_channels, b2_reduce), STConv3d(b2_reduce, b2, 3, padding=1)
        )
        self.branch3 = nn.Sequential(MaxPool3d(3, stride=1, padding=1), BasicConv3d(in_channels, b3))
        self.gating = gating
        if gating:
            self.gating_b0 = SelfGating(b0)
            self.gating_b1 = SelfGating(b1)
            self.gating_b2 = SelfGating(b2)
            self.gating_b3 = SelfGating(b3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)]
        if self.gating:
            gates = (self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3)
            branches = [gate(branch) for gate, branch in zip(gates, branches, strict=True)]
        return torch.cat(branches, dim=1)


class S3D(nn.Module):
    """S3D backbone, [B, first_channel, T, H, W] -> [B, 1024 / divisor, T/8, H/32, W/32].

    ``divisor`` thins all layers out: 4 leaves a quarter of their channels.

    Every stage is registered twice, under its TensorFlow name and inside ``block1`` ... ``block5``: the
    released checkpoints hold each tensor under both names.
    """

    def __init__(self, first_channel: int = 3, gating: bool = False, divisor: int = 1):
        super().__init__()
        self.gating, self.divisor = gating, divisor
        self.Conv_1a = STConv3d(first_channel, 64 // divisor, kernel_size=7, stride=2, padding=3)
        self.block1 = nn.Sequential(self.Conv_1a)

        self.MaxPool_2a = MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.Conv_2b = BasicConv3d(64 // divisor, 64 // divisor)
        self.Conv_2c = STConv3d(64 // divisor, 192 // divisor, kernel_size=3, padding=1)
        self.block2 = nn.Sequential(self.MaxPool_2a, self.Conv_2b, self.Conv_2c)

        self.MaxPool_3a = MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.block3 = self._stage("3", "bc", 192 // divisor, self.MaxPool_3a)

        self.MaxPool_4a = MaxPool3d(3, 2, 1)
        self.block4 = self._stage("4", "bcdef", 480 // divisor, self.MaxPool_4a)

        self.MaxPool_5a = MaxPool3d(2, 2)
        self.block5 = self._stage("5", "bc", 832 // divisor, self.MaxPool_5a)

        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, mean=0.0, std=0.01)

    def _stage(self, number: str, letters: str, channels: int, pool: nn.Module) -> nn.Sequential:
        layers = [pool]
        for letter in letters:
            name = f"Mixed_{number}{letter}"
            widths = tuple(width // self.divisor for width in INCEPTION_WIDTHS[name])
            self.add_module(name, SepInception(channels, widths, self.gating))
            layers.append(getattr(self, name))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5):
            x = block(x)
        return x

"""R2+3D-50: the ResNet-50 of CVRL (Qian et al. 2021, arXiv 2008.03800), 2D in stages 1-2 and 3D in 3-4."""

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.layers import Conv3d, MaxPool3d


class Bottleneck(nn.Module):
    """1x1x1 or (3,1,1) conv, (1,3,3) conv with the stride, 1x1x1 conv to 4x width; plus the residual."""

    ends_without_relu = False

    def __init__(self, in_channels: int, width: int, stride: int, temporal: int):
        super().__init__()
        out_channels = 4 * width
        self.conv1 = Conv3d(in_channels, width, (temporal, 1, 1), padding=(temporal // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = Conv3d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x)) + residual
        return x if self.ends_without_relu else F.relu(x, inplace=True)


class ResNet2d3d50(nn.Module):
    """R2+3D-50 backbone, [B, first_channel, T, H, W] -> [B, 2048, T/2, H/32, W/32]."""

    def __init__(self, first_channel: int = 3):
        super().__init__()
        self.conv1 = Conv3d(first_channel, 64, (5, 7, 7), (2, 2, 2), (2, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.layer1 = self._stage(64, 64, blocks=3, stride=1, temporal=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2, temporal=1)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2, temporal=3)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2, temporal=3)
        self.layer4[-1].ends_without_relu = True
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, stride: int, temporal: int) -> nn.Sequential:
        first = Bottleneck(in_channels, width, stride, temporal)
        others = [Bottleneck(4 * width, width, 1, temporal) for _ in range(blocks - 1)]
        return nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.relu(x, inplace=True)

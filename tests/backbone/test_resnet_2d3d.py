"""Parts of R2+3D-50; the whole is held against the original's outputs in tests/test_conformance.py."""

import torch

from backbone.resnet_2d3d import Bottleneck, ResNet2d3d50


def test_stages_are_flat_in_time_until_the_third():
    with torch.device("meta"):
        network = ResNet2d3d50()
    first = [
        stage[1].conv1.kernel_size
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4)
    ]
    assert first == [(1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)]
    assert [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)] == [
        3,
        4,
        6,
        3,
    ]
    assert network.layer3[0].conv2.stride == (1, 2, 2)


def test_residual_is_added_and_the_last_block_ends_without_relu():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 2, 4, 4).abs()
    for last in (False, True):
        block = Bottleneck(8, 2, stride=1, temporal=1).eval()
        block.ends_without_relu = last
        torch.nn.init.zeros_(block.bn3.weight)
        torch.nn.init.constant_(block.bn3.bias, -100)
        y = block(x)
        torch.testing.assert_close(y, x - 100 if last else torch.zeros_like(x))

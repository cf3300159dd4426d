"""Parts of S3D; the whole is held against the original's outputs in tests/test_conformance.py."""

import torch

from backbone.s3dg import S3D, BasicConv3d, SelfGating, SepInception, STConv3d


def test_stride_of_a_separable_convolution_is_shared_by_its_two_parts():
    conv = STConv3d(3, 4, kernel_size=7, stride=2, padding=3)
    assert (conv.conv1.kernel_size, conv.conv1.stride) == ((1, 7, 7), (1, 2, 2))
    assert (conv.conv2.kernel_size, conv.conv2.stride) == ((7, 1, 1), (2, 1, 1))
    assert conv(torch.zeros(2, 3, 8, 16, 16)).shape == (2, 4, 4, 8, 8)


def test_unit_convolution_ends_in_relu():
    assert BasicConv3d(3, 4)(torch.randn(2, 3, 2, 4, 4)).min() == 0


def test_gating_scales_each_channel_by_its_mean():
    torch.manual_seed(0)
    gate, x = SelfGating(3), torch.randn(2, 3, 2, 4, 4)
    expected = torch.empty_like(x)
    for sample in range(2):
        means = x[sample].flatten(1).mean(1)
        for channel in range(3):
            weight = torch.sigmoid(gate.fc.weight[channel] @ means + gate.fc.bias[channel])
            expected[sample, channel] = weight * x[sample, channel]
    torch.testing.assert_close(gate(x), expected)


def test_branches_are_concatenated_in_order():
    torch.manual_seed(0)
    block = SepInception(6, (2, 3, 4, 2, 5, 1), gating=False).eval()
    x = torch.randn(1, 6, 2, 4, 4)
    y = block(x)
    assert y.shape == (1, 2 + 4 + 5 + 1, 2, 4, 4)
    torch.testing.assert_close(y[:, :2], block.branch0(x))
    torch.testing.assert_close(y[:, 11:], block.branch3(x))


def test_start_of_weights():
    torch.manual_seed(0)
    weight = S3D().Mixed_4b.branch1[1].conv1.weight
    assert abs(weight.std().item() - 0.01) < 2e-4

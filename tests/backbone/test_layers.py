"""The quick paths of flat convolutions and of max pooling against torch.nn's."""

import pytest
import torch
from torch import nn

from backbone.layers import Conv3d, MaxPool3d


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (1, 1, 0),
        (1, (1, 2, 2), 0),
        ((1, 3, 3), 1, (0, 1, 1)),
        ((1, 7, 7), (1, 2, 2), (0, 3, 3)),
        ((3, 1, 1), 1, (1, 0, 0)),
        ((7, 1, 1), (2, 1, 1), (3, 0, 0)),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_convolution(kernel, stride, padding, layout):
    torch.manual_seed(0)
    ours = Conv3d(3, 5, kernel, stride, padding).double().to(memory_format=layout)
    plain = nn.Conv3d(3, 5, kernel, stride, padding).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 9, 10, dtype=torch.double)
    a, b = x.clone(memory_format=layout).requires_grad_(), x.clone().requires_grad_()
    got, want = ours(a), plain(b)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=layout)
    weight = torch.randn(want.shape, dtype=torch.double)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_max_pooling_stays_in_the_type_of_autocast(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 8, 8, dtype=torch.bfloat16).to(memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = MaxPool3d(3, 2, 1)(x), nn.MaxPool3d(3, 2, 1)(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float())
    assert got.is_contiguous(memory_format=layout)

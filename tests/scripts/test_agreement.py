import pytest
import torch

from scripts.evidence.agreement import agreement, neighbour_precision


def test_agreement_is_the_correlation_of_two_views():
    first = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    other = torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
    assert agreement(first, first + 7) == pytest.approx(
        1, abs=1e-4
    )  # what is common to all videos does not count
    assert agreement(first, first + other) == pytest.approx(0.5**0.5, abs=0.02)
    assert agreement(first + 7, other + 7) == pytest.approx(0, abs=0.03)


def test_precision_leaves_the_video_itself_out():
    labels = torch.arange(2).repeat_interleave(6)
    apart = torch.eye(2)[labels] + 0.01 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    assert neighbour_precision(apart, apart, labels) == 1
    assert neighbour_precision(apart, apart, torch.arange(12)) == 0  # no other video is of its class

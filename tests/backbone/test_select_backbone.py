"""The table of networks: sizes as in the table of the specification, one row for each."""

import pytest
import torch

from backbone.select_backbone import NETWORKS, Network, feature_shape, select_backbone
from utils.errors import UserError


@pytest.mark.parametrize(
    ("network", "size", "millions"),
    [("s3d", 1024, 7.91), ("s3dg", 1024, 9.10), ("s3d_quarter", 256, 0.50), ("r50", 2048, 31.67)],
)
def test_sizes(network, size, millions):
    with torch.device("meta"):
        module, param = select_backbone(network)
    assert param == {"feature_size": size}
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_shapes_of_features():
    assert feature_shape("s3d", 32, 128) == (1024, 4, 4, 4)
    assert feature_shape("r50", 16, 64) == (2048, 8, 2, 2)
    with pytest.raises(UserError, match="--seq_len 4 --img_dim 32 are too small for --net s3d"):
        feature_shape("s3d", 4, 32)


def test_an_unknown_network_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=f"unknown network 'vgg'; choose one of {', '.join(NETWORKS)}"):
        select_backbone("vgg")


def test_one_row_makes_a_network(monkeypatch):
    def make(first_channel):
        return torch.nn.Conv3d(first_channel, 7, 1, 2)

    monkeypatch.setitem(NETWORKS, "mine", Network(make, 7))
    module, param = select_backbone("mine", first_channel=2)
    assert module.in_channels == 2
    assert param["feature_size"] == 7
    assert feature_shape("mine", 8, 32) == (7, 4, 16, 16)

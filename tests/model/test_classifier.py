import pytest
import torch

from backbone.select_backbone import NETWORKS, Network
from model.classifier import LinearClassifier


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(
        NETWORKS, "s3d", Network(lambda first_channel: torch.nn.Conv3d(first_channel, 5, 1), 5)
    )
    torch.manual_seed(0)


@pytest.mark.parametrize("use_l2_norm", [False, True])
@pytest.mark.parametrize("use_final_bn", [False, True])
def test_pool_norm_and_layer(use_l2_norm, use_final_bn):
    model = LinearClassifier(3, use_dropout=False, use_l2_norm=use_l2_norm, use_final_bn=use_final_bn)
    clips = torch.randn(4, 3, 2, 6, 6)
    logit, feature = model(clips)
    expected = torch.stack([model.backbone(clip[None])[0].flatten(1).mean(1) for clip in clips])
    if use_l2_norm:
        expected = expected / (expected**2).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(feature, expected)
    if use_final_bn:
        mean, variance = expected.mean(0), expected.var(0, unbiased=False)
        expected = (expected - mean) / (variance + model.final_bn.eps).sqrt()
    layer = model.final_fc[0]
    torch.testing.assert_close(logit, expected @ layer.weight.T + layer.bias)


def test_dropout_only_in_training():
    model = LinearClassifier(3, dropout=0.9)
    clips = torch.randn(4, 3, 2, 6, 6)
    assert list(model.state_dict())[-2:] == ["final_fc.1.weight", "final_fc.1.bias"]
    assert not torch.equal(model(clips)[0], model(clips)[0])
    model.eval()
    assert torch.equal(model(clips)[0], model(clips)[0])


def test_start_of_the_layer():
    layer = LinearClassifier(1000, use_dropout=False).final_fc[0]
    assert layer.weight.std().item() == pytest.approx(0.01, abs=5e-4)
    assert not layer.bias.any()

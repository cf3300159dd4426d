"""Each row of the table: what the model gives is what the loss takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import pretrain
from model.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_model_and_loss_fit(name, monkeypatch):
    def encoder(network, dim):
        return nn.Sequential(nn.Conv3d(3, 6, 1), nn.AdaptiveAvgPool3d(1), nn.Conv3d(6, dim, 1))

    monkeypatch.setattr(pretrain, "projection_encoder", encoder)
    torch.manual_seed(0)
    method = METHODS[name]
    model = method.model("s3d", 4, 6)
    batch = {"label": torch.tensor([1, 0])}
    logits, positives = model(torch.randn(2, 2, 3, 2, 4, 4), *(batch[entry] for entry in method.inputs))
    loss = method.loss(logits, positives)
    if name in ("infonce", "ubernce"):
        # in the first step no queue entry is a positive: both are cross-entropy with the own key
        torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(2, dtype=torch.long)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder_q.parameters())

"""Model, loss and meters never wait for a GPU: on a pretended one, reading a value from it is an error."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import main_coclr
import main_nce
from backbone.layers import Conv3d, MaxPool3d
from model import pretrain
from model.pretrain import CoCLR, InfoNCE, UberNCE
from model.split_batch_norm import split_batch_norm
from utils.metrics import Meters


@pytest.mark.parametrize("model_class", [InfoNCE, UberNCE, CoCLR])
def test_step_reads_nothing_from_the_device(model_class, monkeypatch):
    monkeypatch.setattr(
        pretrain,
        "projection_encoder",
        lambda network, dim: nn.Sequential(
            Conv3d(3, 6, 1), nn.BatchNorm3d(6), MaxPool3d(2), nn.AdaptiveAvgPool3d(1), Conv3d(6, dim, 1)
        ),
    )
    args = main_coclr.make_parser().parse_args(["--topk", "2"])
    with FakeTensorMode(), torch.device("cuda"):
        model = split_batch_norm(model_class("s3d", 8, 16), 2)
        clips = torch.rand(4, 2, 2, 3, 4, 8, 8)
        batch = {"label": torch.arange(4), "source": torch.arange(4)}
        if model_class is CoCLR:
            model.queue_is_full = True
            step = main_coclr.make_step(args, torch.zeros(4, dtype=torch.long))
        else:
            step, clips = main_nce.step, clips[:, :, :1]
        meters = Meters()
        for iteration in range(2):
            loss, scalars = step(model, clips, batch, iteration)
            meters.add(scalars)
        assert loss.requires_grad
        assert loss.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            meters.flush()

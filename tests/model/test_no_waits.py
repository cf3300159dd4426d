"""Model, loss and meters never wait for a GPU: on a pretended one, reading a value from it is an error."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import main_coclr
from backbone.layers import Conv3d, MaxPool3d
from model import pretrain
from model.methods import METHODS
from model.pretrain import CoCLR, InfoNCE, UberNCE
from model.split_batch_norm import split_batch_norm
from utils.metrics import Meters, top_k_hits


@pytest.mark.parametrize("model_class", [InfoNCE, UberNCE, CoCLR])
def test_step_reads_nothing_from_the_device(model_class, monkeypatch):
    monkeypatch.setattr(
        pretrain,
        "projection_encoder",
        lambda network, dim: nn.Sequential(
            Conv3d(3, 6, 1), nn.BatchNorm3d(6), MaxPool3d(2), nn.AdaptiveAvgPool3d(1), Conv3d(6, dim, 1)
        ),
    )
    with FakeTensorMode(), torch.device("cuda"):
        model = split_batch_norm(model_class("s3d", 8, 16), 2)
        clips = torch.rand(4, 2, 2, 3, 4, 8, 8)
        batch = {"label": torch.arange(4), "source": torch.arange(4)}
        if model_class is CoCLR:
            model.queue_is_full = True
        meters = Meters()
        for _ in range(2):
            if model_class is CoCLR:
                source_label = torch.zeros(4, dtype=torch.long)
                loss, scalars = main_coclr.co_training_step(model, model, clips, batch, source_label, True)
            else:
                method = next(method for method in METHODS.values() if method.model is model_class)
                outputs = model(clips[:, :, 0], *(batch[name] for name in method.inputs))
                loss = method.loss(*outputs)
                scalars = {"loss": loss, **top_k_hits(*outputs)}
            meters.add(scalars)
        assert loss.requires_grad
        assert loss.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            meters.flush()

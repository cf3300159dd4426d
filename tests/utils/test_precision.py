"""What a CPU computes wrongly is refused, what rounding alone does is told."""

import logging
import math
import re

import pytest
import torch
from torch import nn

from model.pretrain import projection_encoder
from utils.errors import UserError
from utils.precision import autocast, refuse_unsound_precision, relative_error, watch_layers

CPU = torch.device("cpu")


class Layer(nn.Conv3d):
    """A convolution whose gradient is ``factor`` times what it should be, except in fp32."""

    factor = 1.0

    def forward(self, x):
        y = super().forward(x)
        return y if y.dtype == torch.float32 else self.factor * y + (1 - self.factor) * y.detach()


def encoder(factor):
    layers = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), Layer(4, 4, 1))
    layers[3].factor = factor
    return layers


def test_fp16_on_a_cpu_is_refused_by_name():
    with pytest.raises(UserError, match="--precision fp16"):
        refuse_unsound_precision("fp16", CPU, nn.Identity(), (1, 3, 8, 32, 32))


@pytest.mark.parametrize("factor", [-1.0, 2.0, math.inf])
def test_a_layer_that_bf16_computes_wrongly_is_refused_by_name(factor):
    torch.manual_seed(0)
    refuse_unsound_precision("fp32", CPU, encoder(factor), (2, 3, 8, 32, 32))
    with pytest.raises(UserError, match=r"bf16.*layer 3 for clips of 8x32x32 is off by .*--precision fp32"):
        refuse_unsound_precision("bf16", CPU, encoder(factor), (2, 3, 8, 32, 32))


def test_right_layers_are_told(caplog):
    torch.manual_seed(0)
    layers = encoder(1.0)
    before = {key: value.clone() for key, value in layers.state_dict().items()}
    with caplog.at_level(logging.INFO, "coclr"):
        refuse_unsound_precision("bf16", CPU, layers, (2, 3, 8, 32, 32))
    assert re.search(r"those of fp32 within 0\.\d%", caplog.text)
    assert all(parameter.grad is None for parameter in layers.parameters())
    for key, value in layers.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_emulated_bf16_is_warned_of(capability, warned, monkeypatch, caplog):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    refuse_unsound_precision("fp32", CPU, encoder(1.0), (2, 3, 8, 32, 32))
    assert not caplog.text
    refuse_unsound_precision("bf16", CPU, encoder(1.0), (2, 3, 8, 32, 32))
    assert ("no bf16 instructions" in caplog.text) == warned


@pytest.mark.slow
def test_a_deep_network_that_has_not_trained_is_not_refused():
    """Its layers are right one by one; together they multiply the rounding of bf16."""
    torch.manual_seed(0)
    try:
        refuse_unsound_precision("bf16", CPU, projection_encoder("s3d", 128), (4, 3, 8, 32, 32))
    except UserError as error:
        pytest.skip(f"this CPU computes bf16 wrongly: {error}")


def test_errors_of_layers():
    torch.manual_seed(0)
    layers = encoder(0.5)
    errors = watch_layers(layers, "bf16", CPU)
    with autocast("bf16", CPU):
        layers(torch.randn(2, 3, 2, 4, 4))
    assert list(errors) == ["0", "1", "3"]
    assert max(errors["0"], errors["1"]) < 0.02
    assert errors["3"] == pytest.approx(0.5, abs=0.02)


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf

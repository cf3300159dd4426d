import copy

import pytest
import torch
from torch import nn

from backbone.select_backbone import select_backbone
from model.split_batch_norm import SplitBatchNorm3d, split_batch_norm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_equals_separate_batch_norms(memory_format):
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(4)
    nn.init.uniform_(plain.weight)
    nn.init.normal_(plain.bias)
    separate = [copy.deepcopy(plain) for _ in range(3)]
    split = split_batch_norm(nn.Sequential(copy.deepcopy(plain)), 3)
    for _ in range(3):
        x = (torch.randn(6, 4, 2, 5, 5) * torch.arange(1, 7).view(6, 1, 1, 1, 1)).to(
            memory_format=memory_format
        )
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        got = split(ours)
        want = torch.cat([norm(part) for norm, part in zip(separate, theirs.chunk(3), strict=True)])
        torch.testing.assert_close(got, want)
        weight = torch.randn(got.shape)
        (got * weight).sum().backward()
        (want * weight).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    norm = split[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([s.running_mean for s in separate]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([s.running_var for s in separate]).mean(0))
    torch.testing.assert_close(norm.weight.grad, sum(s.weight.grad for s in separate))
    assert norm.num_batches_tracked == 3

    split.eval(), plain.load_state_dict(norm.state_dict()), plain.eval()
    torch.testing.assert_close(split(x), plain(x))


def test_names_and_shared_layers_of_s3d_stay():
    module, _ = select_backbone("s3d")
    before = {key: value.shape for key, value in module.state_dict().items()}
    split_batch_norm(module, 2)
    assert {key: value.shape for key, value in module.state_dict().items()} == before
    assert isinstance(module.Conv_1a.bn1, SplitBatchNorm3d)
    assert module.Conv_1a is module.block1[0]


def test_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError):
        split_batch_norm(nn.BatchNorm3d(2), 3)(torch.randn(4, 2, 2, 2, 2))

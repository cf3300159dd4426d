"""Queue contents entry by entry, momentum, positives: against slow transcriptions, on a tiny encoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model.pretrain as pretrain
from backbone.select_backbone import select_backbone
from model.pretrain import CoCLR, InfoNCE, UberNCE


@pytest.fixture(autouse=True)
def tiny_encoder(monkeypatch):
    def encoder(network, dim):
        return nn.Sequential(nn.Conv3d(3, 6, 1), nn.AdaptiveAvgPool3d(1), nn.Conv3d(6, dim, 1))

    monkeypatch.setattr(pretrain, "projection_encoder", encoder)
    torch.manual_seed(0)


def clips(batch=2):
    return torch.randn(batch, 2, 3, 2, 4, 4)


def test_queue_entry_by_entry_with_wrap_around():
    model = InfoNCE(dim=4, K=6, m=0.5)
    expected = model.queue.clone()
    pointer = 0
    for _ in range(7):
        block = clips()
        logits, labels = model(block)
        keys = F.normalize(model.encoder_k(block[:, 1]).flatten(1), dim=1)
        queries = F.normalize(model.encoder_q(block[:, 0]).flatten(1), dim=1)
        for row in range(2):
            want = [queries[row] @ keys[row]] + [queries[row] @ expected[:, j] for j in range(6)]
            torch.testing.assert_close(logits[row], torch.stack(want) / 0.07)
        assert labels.tolist() == [0, 0]
        for row in range(2):
            expected[:, pointer] = keys[row]
            pointer = (pointer + 1) % 6
        torch.testing.assert_close(model.queue, expected)
        assert model.queue_ptr.tolist() == [pointer]


def test_momentum_moves_key_parameters_before_keys_are_made():
    model = InfoNCE(dim=4, K=4, m=0.9)
    with torch.no_grad():
        for parameter in model.encoder_q.parameters():
            parameter.add_(torch.randn_like(parameter))
    want = [
        0.9 * k + 0.1 * q
        for q, k in zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True)
    ]
    model(clips())
    for got, expected in zip(model.encoder_k.parameters(), want, strict=True):
        torch.testing.assert_close(got, expected)
        assert not got.requires_grad


def test_nothing_moves_without_gradients():
    model = CoCLR(dim=4, K=4, m=0.9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.encoder_q[0].weight.add_(1)
        before["encoder_q.0.weight"] += 1
        model(clips(), clips(), torch.tensor([1, 2]))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_gradients_reach_the_query_encoder_alone():
    model = InfoNCE(dim=4, K=4)
    logits, labels = model(clips())
    F.cross_entropy(logits, labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder_q.parameters())
    assert all(p.grad is None for p in model.encoder_k.parameters())


def test_ubernce_positives_are_the_queue_entries_of_the_class():
    model = UberNCE(dim=4, K=4)
    _, first = model(clips(), torch.tensor([3, 5]))
    assert first.tolist() == [[True, False, False, False, False]] * 2
    _, second = model(clips(), torch.tensor([5, 4]))
    assert second.tolist() == [[True, False, True, False, False], [True, False, False, False, False]]
    assert model.queue_label.tolist() == [3, 5, 5, 4]


def slow_positives(model, source, second, queue_vname, queue_second):
    rows = []
    for row in range(len(source)):
        siblings = [bool(name == source[row]) for name in queue_vname]
        candidates = [(float(second[row] @ queue_second[:, j]), j) for j in range(model.K) if not siblings[j]]
        mined = (
            {j for _, j in sorted(candidates, reverse=True)[: model.topk]} if model.queue_is_full else set()
        )
        rows.append([True] + [siblings[j] or j in mined for j in range(model.K)])
    return rows


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("topk", [0, 2])
def test_coclr_positives_against_transcription(topk, reverse):
    model = CoCLR(dim=4, K=8, m=0.9, topk=topk, reverse=reverse)
    draw = torch.Generator().manual_seed(1)
    for step in range(9):
        block1, block2 = clips(), clips()
        source = torch.randint(0, 5, (2,), generator=draw)
        before = model.queue_vname.clone(), model.queue_second.clone()
        logits, positives = model(block1, block2, source)
        own, other = (1, 0) if reverse else (0, 1)
        second = F.normalize(model.sampler(block2[:, other]).flatten(1), dim=1)
        assert model.queue_is_full == (step >= 4)
        assert positives.tolist() == slow_positives(model, source, second, *before)
        key = F.normalize(model.encoder_k(block2[:, own]).flatten(1), dim=1)
        query = F.normalize(model.encoder_q(block1[:, own]).flatten(1), dim=1)
        torch.testing.assert_close(logits[:, 0] * 0.07, (query * key).sum(1))
        slots = [(2 * step + i) % 8 for i in range(2)]
        torch.testing.assert_close(model.queue_second[:, slots].T, second)
        assert model.queue_vname[slots].tolist() == source.tolist()
        if topk and model.queue_is_full:
            names = before[0].tolist()
            mined = [
                sorted(names[j] for j in range(8) if positives[row, 1 + j] and names[j] != source[row])
                for row in range(2)
            ]
            assert [sorted(row) for row in model.mined_source.tolist()] == mined
    assert (model.queue_label == 1).all()


def test_sampler_is_frozen_and_stays_in_eval_mode():
    model = CoCLR(dim=4, K=4).train()
    assert model.encoder_q.training
    assert not model.sampler.training
    assert not any(p.requires_grad for p in model.sampler.parameters())


def test_clips_are_normalised_in_shuffled_groups():
    """With batch norm in groups, keys do not always share their statistics with the same neighbours."""
    model = InfoNCE(dim=4, K=8)
    seen = set()
    model.encoder_k.register_forward_pre_hook(
        lambda module, args: seen.add(tuple(args[0][:, 0, 0, 0, 0].tolist()))
    )
    x = clips(4)
    for _ in range(12):
        model(x)
    assert len(seen) > 1
    assert all(sorted(order) == sorted(x[:, 1, 0, 0, 0, 0].tolist()) for order in seen)


def test_bias_of_every_batch_norm_and_of_nothing_else():
    network = select_backbone("s3dg")[0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pretrain.set_batch_norm_bias(network, 1.0)
    biased = [name for name in before if ".bn" in name and name.endswith(".bias")]
    assert len(biased) > 100
    for name, value in network.state_dict().items():
        expected = torch.ones_like(value) if name in biased else before[name]
        assert torch.equal(value, expected), name

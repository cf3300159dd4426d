import numpy as np
import pytest
import torch

from model.loss import hide_self_positive, mil_nce_loss, supcon_loss


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 9)) * 5
    positives = rng.random((5, 9)) < 0.3
    positives[:, 0] = True
    return logits, positives


def test_supcon_against_transcription(case):
    logits, positives = case
    rows = []
    for row, positive in zip(logits, positives, strict=True):
        log_prob = [value - np.log(sum(np.exp(row))) for value in row]
        rows.append(
            -sum(p for p, is_positive in zip(log_prob, positive, strict=True) if is_positive) / positive.sum()
        )
    loss = supcon_loss(torch.tensor(logits), torch.tensor(positives))
    assert loss.item() == pytest.approx(np.mean(rows), rel=1e-12)


def test_mil_nce_against_transcription(case):
    logits, positives = case
    rows = [
        -np.log(np.exp(row[positive]).sum() / np.exp(row).sum())
        for row, positive in zip(logits, positives, strict=True)
    ]
    loss = mil_nce_loss(torch.tensor(logits), torch.tensor(positives))
    assert loss.item() == pytest.approx(np.mean(rows), rel=1e-12)


def test_mil_nce_does_not_underflow():
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    positives = torch.tensor([[True, False, False]])
    loss = mil_nce_loss(logits, positives)
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert logits.grad[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_both_are_cross_entropy_for_one_positive():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    positives = torch.zeros(4, 7, dtype=torch.bool)
    positives[:, 0] = True
    want = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(supcon_loss(logits, positives), want)
    torch.testing.assert_close(mil_nce_loss(logits, positives), want)


def test_hide_self_positive_only_where_another_is_left():
    positives = torch.tensor([[True, False, True], [True, False, False]])
    assert hide_self_positive(positives).tolist() == [[False, False, True], [True, False, False]]
    assert positives[0, 0], "the argument stays as it was"

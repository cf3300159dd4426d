"""Accuracies and R@k, one stream and two, against loops."""

import numpy as np
import pytest
import torch

from eval import metrics
from eval.features import Features
from eval.metrics import KS, accuracies, nearest, retrieve


def test_accuracies_are_percent():
    scores = torch.eye(7)[[0, 1, 2, 3]] + 0.5 * torch.eye(7)[[3, 1, 6, 6]]
    assert accuracies(scores, torch.tensor([0, 1, 6, 5])) == {"top1": 50, "top5": 100}
    assert accuracies(scores[:3], torch.tensor([0, 2, 3]))["top1"] == 33.3333


def random_features(n: int, seed: int, width: int = 6, classes: int = 4) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = 5 + 0.7 * centres[labels] + rng.normal(size=(n, width))
    return Features(
        torch.tensor(features, dtype=torch.float32), torch.tensor(labels), [f"v{i}" for i in range(n)]
    )


def slow_recalls(streams) -> list[float]:
    """R@1, R@2 ... by the definition, one pair of videos at a time; streams: (train, test) per stream."""
    train_labels, test_labels = streams[0][0].labels.tolist(), streams[0][1].labels.tolist()
    centred = [[part.features.double().numpy() for part in stream] for stream in streams]
    centred = [[part - part.mean(axis=0) for part in stream] for stream in centred]
    hits = np.zeros(len(train_labels))
    for q, label in enumerate(test_labels):
        scores = []
        for g in range(len(train_labels)):
            score = 0.0
            for train, test in centred:
                a, b = test[q], train[g]
                score += a @ b / np.sqrt((a @ a) * (b @ b))
            scores.append(score)
        order = sorted(range(len(scores)), key=lambda g: -scores[g])
        first = next(rank for rank, g in enumerate(order) if train_labels[g] == label)
        hits[first:] += 1
    return (100 * hits / len(test_labels)).tolist()


@pytest.mark.parametrize("streams", [1, 2])
def test_recall_against_loops(streams, monkeypatch):
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 7)
    pairs = [(random_features(60, 1), random_features(23, 2))]
    if streams == 2:
        other = (random_features(60, 3), random_features(23, 4))
        pairs.append(
            tuple(Features(o.features, p.labels, p.names) for o, p in zip(other, pairs[0], strict=True))
        )
    numbers, neighbours, curve = retrieve([train for train, _ in pairs], [test for _, test in pairs])
    assert neighbours.shape == (23, 50)
    recalls = slow_recalls(pairs)
    assert numbers == pytest.approx({f"R@{k}": recalls[k - 1] for k in KS})
    assert curve == pytest.approx(recalls[:50])
    assert 20 < numbers["R@1"] < 100  # not vacuous


def test_fewer_training_videos_than_k():
    train, test = random_features(12, 1, classes=2), random_features(9, 2, classes=2)
    numbers, neighbours, curve = retrieve([train], [test])
    assert neighbours.shape == (9, 12)
    assert len(curve) == 12
    assert numbers["R@50"] == numbers["R@20"] == 100


def test_features_of_any_magnitude_are_normalised():
    train, test = random_features(30, 1).features, random_features(5, 2).features
    expected = nearest([test], [train], 30)
    assert torch.equal(nearest([test * 1e-15], [train * 1e-15], 30), expected)


def test_nearest_are_in_order():
    train, test = random_features(30, 1), random_features(5, 2)
    order = nearest([test.features], [train.features], 30)
    a, b = metrics.centred(test.features), metrics.centred(train.features)
    similarity = (a @ b.T).gather(1, order)
    assert (similarity.diff(dim=1) <= 0).all()
    assert [sorted(row) for row in order.tolist()] == [list(range(30))] * 5

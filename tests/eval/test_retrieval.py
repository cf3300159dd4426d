"""R@k, one stream and two, against loops; pictures."""

import base64
import re

import cv2
import numpy as np
import pytest
import torch
from databases import make_dataset

from dataset.registry import open_videos
from eval import metrics
from eval.features import Features
from eval.metrics import KS, nearest, retrieve
from eval.pictures import confusion_matrix, confusion_picture, gallery, recall_curve, stage_chart


def random_features(n: int, seed: int, width: int = 6, classes: int = 4) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = 5 + 0.7 * centres[labels] + rng.normal(size=(n, width))
    return Features(
        torch.tensor(features, dtype=torch.float32), torch.tensor(labels), [f"v{i}" for i in range(n)]
    )


def slow_recall(streams, k: int) -> float:
    """The definition, one pair of videos at a time; streams: (train, test) per stream."""
    hits = 0
    train_labels, test_labels = streams[0][0].labels.tolist(), streams[0][1].labels.tolist()
    for q, label in enumerate(test_labels):
        scores = []
        for g in range(len(train_labels)):
            score = 0.0
            for train, test in streams:
                a = test.features[q].double().numpy() - test.features.double().numpy().mean(axis=0)
                b = train.features[g].double().numpy() - train.features.double().numpy().mean(axis=0)
                score += a @ b / np.sqrt((a @ a) * (b @ b))
            scores.append(score)
        best = sorted(range(len(scores)), key=lambda g: -scores[g])[:k]
        hits += any(train_labels[g] == label for g in best)
    return 100 * hits / len(test_labels)


@pytest.mark.parametrize("streams", [1, 2])
def test_recall_against_loops(streams, monkeypatch):
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 7)
    pairs = [(random_features(60, 1), random_features(23, 2))]
    if streams == 2:
        other = (random_features(60, 3), random_features(23, 4))
        pairs.append(
            tuple(Features(o.features, p.labels, p.names) for o, p in zip(other, pairs[0], strict=True))
        )
    numbers, neighbours = retrieve([train for train, _ in pairs], [test for _, test in pairs])
    assert neighbours.shape == (23, 50)
    assert numbers == pytest.approx({f"R@{k}": slow_recall(pairs, k) for k in KS})
    assert 20 < numbers["R@1"] < 100  # not vacuous


def test_fewer_training_videos_than_k():
    train, test = random_features(12, 1, classes=2), random_features(9, 2, classes=2)
    numbers, neighbours = retrieve([train], [test])
    assert neighbours.shape == (9, 12)
    assert numbers["R@50"] == numbers["R@20"] == 100


def test_nearest_are_in_order():
    train, test = random_features(30, 1), random_features(5, 2)
    order = nearest([test.features], [train.features], 30)
    a, b = metrics.centred(test.features), metrics.centred(train.features)
    similarity = (a @ b.T).gather(1, order)
    assert (similarity.diff(dim=1) <= 0).all()
    assert [sorted(row) for row in order.tolist()] == [list(range(30))] * 5


def test_confusion_matrix_counts():
    assert confusion_matrix([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0], 3).tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [1, 0, 2],
    ]


def image_of(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def pixels_of(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return (np.abs(image.astype(int) - colour).sum(axis=2) < 30).sum()


@pytest.mark.parametrize("classes", [2, 101])
def test_confusion_picture_is_dark_where_counts_are(classes):
    def dark(counts: np.ndarray) -> int:
        image = image_of(confusion_picture(counts, [f"Class {i}" for i in range(classes)]))
        return pixels_of(image, (8, 48, 107))

    right = np.eye(classes, dtype=int) * 3
    assert dark(right * 0) == 0
    assert dark(right) > 50 * classes
    right[classes // 2 :] = 0
    assert dark(right) / dark(np.eye(classes, dtype=int)) == pytest.approx((classes // 2) / classes, abs=0.02)


BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def test_recall_curve_draws_each_curve():
    image = image_of(recall_curve({"rgb": [10, 50, 90], "flow": [20, 30, 40]}))
    assert min(pixels_of(image, BLUE), pixels_of(image, ORANGE)) > 300
    assert pixels_of(image, GREEN) == 0


def test_stage_chart_draws_bars_as_high_as_the_means():
    stages = {"InfoNCE": {"rgb": [19.0, 20.0, 21.0]}, "CoCLR": {"rgb": [60.0], "flow": [40.0]}}
    image = image_of(stage_chart({"retrieval on tiny": stages}, "R@1 (%)"))
    column = {
        colour: (np.abs(image.astype(int) - colour).sum(axis=2) < 30).sum(axis=0) for colour in (BLUE, ORANGE)
    }
    heights = sorted(
        {int(n) for counts in column.values() for n in counts if (counts == n).sum() > 20 and n > 20}
    )
    assert len(heights) == 3
    assert heights[1] / heights[0] == pytest.approx(2, abs=0.1)
    assert heights[2] / heights[0] == pytest.approx(3, abs=0.1)


def test_gallery_is_one_file_that_frames_right_and_wrong(tmp_path):
    make_dataset(tmp_path / "tiny", per_class=4, frames=12, size=24)
    where = {}
    for part in ("train", "test"):
        videos = open_videos("tiny", part, 2, 1, tmp_path)
        where[part] = {
            name: (videos.stores["rgb"], int(position))
            for name, position in zip(videos.names, videos.positions["rgb"], strict=True)
        }
    train = sorted(where["train"])
    found = [(sorted(where["test"])[0], [train[0], train[-1], train[1]])]  # classes 0; 0, 2, 0
    page = gallery(found, where, still=False).decode()
    assert re.findall(r'figure class="(\w+)"', page) == ["query", "right", "wrong", "right"]
    assert "(2 of 3)" in page
    assert "http" not in page
    strips = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
        for data in re.findall(r"base64,([^)]+)\)", page)
    ]
    assert [strip.shape for strip in strips] == [(96, 8 * 96, 3)] * 4
    image = image_of(gallery(found, where, still=True))
    right, wrong = pixels_of(image, (46, 139, 87)), pixels_of(image, (200, 60, 60))
    assert wrong > 1000
    assert right / wrong == pytest.approx(2, rel=0.2)  # two frames and one

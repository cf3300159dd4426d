"""Pictures show what they should: their pixels are counted."""

import base64
import re

import cv2
import numpy as np
import pytest
from databases import make_dataset, write_database

from dataset.registry import open_videos
from dataset.store import VideoStore
from eval.pictures import (
    Clip,
    confusion_matrix,
    confusion_picture,
    gallery,
    moments,
    recall_curve,
    stage_chart,
)


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


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_recall_curve_is_drawn():
    image = image_of(recall_curve("rgb", [10, 50, 90]))
    assert pixels_of(image, BLUE) > 300
    assert pixels_of(image, ORANGE) == 0


def test_stage_chart_draws_bars_as_high_as_the_means():
    stages = {
        "InfoNCE": {"rgb": ([19.0, 20.0, 21.0], 0.6)},
        "CoCLR": {"rgb": ([60.0], None), "flow": ([40.0], None)},
    }
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
    videos = open_videos("tiny", "test", 2, 1, tmp_path)
    store, positions = videos.stores["rgb"], videos.positions["rgb"].tolist()
    clips = [Clip(store, position, 12, f"caption {i}") for i, position in enumerate(positions)]
    borders = ("query", "right", "wrong", "right")
    rows = [[clips[i % 3]._replace(border=border) for i, border in enumerate(borders)]]
    page = gallery(rows)
    assert re.findall(r'figure class="(\w+)"', page) == list(borders)
    assert re.findall(r">(caption \d)<", page) == ["caption 0", "caption 1", "caption 2", "caption 0"]
    assert f'title="{videos.names[0]}"' in page
    assert "(2 of 3)" in page
    assert "http" not in page
    strips = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
        for data in re.findall(r"base64,([^)]+)\)", page)
    ]
    assert [strip.shape for strip in strips] == [(96, 8 * 96, 3)] * 4


def test_gallery_without_labels_says_nothing_of_right_and_wrong(tmp_path):
    make_dataset(tmp_path / "tiny", per_class=4, frames=12, size=24)
    store = open_videos("tiny", "test", 2, 1, tmp_path).stores["rgb"]
    rows = [[Clip(store, 0, 12, "a", "query"), Clip(store, 1, 12, "b")], [Clip(store, 2, 5, "c", "query")]]
    page = gallery(rows)
    assert re.findall(r'figure class="(\w+)"', page) == ["query", "unknown", "query"]
    assert "same class" not in page


def test_video_that_cannot_be_read_is_shown_grey(tmp_path):
    write_database(tmp_path / "rgb.lmdb", {"A/a": [b"no JPEG"] * 3})
    images = moments(Clip(VideoStore(tmp_path / "rgb.lmdb"), 0, 3, "a"))
    assert len(images) == 8
    assert all((image == 128).all() for image in images)

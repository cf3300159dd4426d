"""Windows of test videos against decoding, cropping and resizing every frame of every window by itself."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from databases import jpeg, make_dataset, write_database
from torchvision.transforms.v2 import functional as tv

from dataset import crop as crop_module
from dataset import window_dataset
from dataset.clips import test_windows as windows_of
from dataset.crop import crop_resize
from dataset.registry import open_videos
from dataset.window_dataset import WindowDataset, crop_boxes


@pytest.mark.parametrize(("height", "width"), [(256, 340), (341, 256), (256, 256), (256, 455)])
def test_boxes_are_torchvisions_five_crop_of_224(height, width):
    image = torch.arange(height * width).view(1, height, width)
    expected = tv.five_crop(image, [224, 224])  # corners, then the centre
    boxes = crop_boxes(height, width, 5)
    for (top, left, h, w), crop in zip(boxes, expected, strict=True):
        assert torch.equal(image[:, top : top + h, left : left + w], crop)
    assert crop_boxes(height, width, 1) == [boxes[4]]


def test_boxes_scale_with_the_short_side():
    assert crop_boxes(48, 64, 1) == [(3, 11, 42, 42)]
    assert crop_boxes(1, 1, 5) == [(0, 0, 1, 1)] * 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root / "tiny", per_class=4, frames=30, size=48)
    return open_videos("tiny", "train", 8, 1, root)


def decoded(videos, index: int) -> list[np.ndarray]:
    count = int(videos.frames[index])
    jpegs = videos.stores["rgb"].read_frames(int(videos.positions["rgb"][index]), list(range(count)))
    return [cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for j in jpegs]


@pytest.mark.parametrize("crops", [1, 5])
def test_item_shows_every_frame_of_every_window(videos, crops):
    item = WindowDataset(videos, 8, 2, 24, crops)[3]
    frames, windows = decoded(videos, 3), windows_of(30, 8, 2)
    assert item["video"] == 3
    assert item["broken"] == ""
    assert item["frames"].shape == (crops, len(np.unique(windows)), 24, 24, 3)
    assert item["windows"].shape == windows.shape
    for crop, box in enumerate(crop_boxes(48, 48, crops)):
        for window, indices in enumerate(windows):
            for t, frame in enumerate(indices):
                shown = item["frames"][crop, item["windows"][window, t]]
                assert torch.equal(shown, crop_resize([frames[frame]], box, 24)[0])


def test_parts_of_a_long_video_are_its_windows_in_order(videos, monkeypatch):
    whole = WindowDataset(videos, 8, 1, 16)
    monkeypatch.setattr(window_dataset, "WINDOWS_PER_ITEM", 3)
    monkeypatch.setattr(crop_module, "FRAMES_AT_ONCE", 5)
    parts = WindowDataset(videos, 8, 1, 16)
    assert len(parts) == 3 * len(videos)  # 8 windows: 3, 3, 2
    for video in range(len(videos)):
        items = [parts[i] for i in range(3 * video, 3 * video + 3)]
        clips = torch.cat([item["frames"][0][item["windows"]] for item in items])
        expected = whole[video]
        assert torch.equal(clips, expected["frames"][0][expected["windows"]])


def test_middle_window_only(videos):
    dataset = WindowDataset(videos, 8, 1, 16, middle_only=True)
    item = dataset[0]
    assert len(dataset) == len(videos)
    frames = decoded(videos, 0)
    middle = windows_of(30, 8, 1)[4]
    assert torch.equal(
        item["frames"][0][item["windows"][0]],
        crop_resize([frames[i] for i in middle], crop_boxes(48, 48, 1)[0], 16),
    )


def test_unreadable_video_is_told_not_raised(tmp_path: Path):
    good = [jpeg(np.zeros((20, 30, 3), np.uint8))] * 12
    write_database(tmp_path / "bad/rgb.lmdb", {"A/good": good, "A/bad": [*good[:6], b"no jpeg", *good[7:]]})
    (tmp_path / "bad/split.csv").write_text("A/good,test\nA/bad,test\n")
    items = {v["video"]: v for v in WindowDataset(open_videos("bad", "test", 8, 1, tmp_path), 8, 1, 16)}
    assert items[0]["broken"] == ""
    assert "A/bad" in items[1]["broken"]
    assert items[1]["frames"].shape == (1, 0, 16, 16, 3)

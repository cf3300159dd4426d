import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from databases import both_light, jpeg, make_dataset, open_tiny, write_database

from dataset.clip_dataset import ClipDataset
from dataset.registry import open_videos
from utils.errors import UserError

RELEASED = Path(__file__).parent.parent / "conformance" / "released_lmdb"


def test_released_database_by_the_names_of_ucf101(tmp_path):
    """Positions, labels and frames of the tiny pair in the released form, split 1 by the rule."""
    expected = json.loads((RELEASED / "expected.json").read_text())
    (tmp_path / "ucf101").mkdir()
    shutil.copy(RELEASED / "ucf101_frame.lmdb", tmp_path / "ucf101" / "rgb.lmdb")
    shutil.copy(RELEASED / "ucf101_tvl1_frame.lmdb", tmp_path / "ucf101" / "flow.lmdb")
    videos = open_videos("ucf101-2stream-2clip", "train", 8, 1, tmp_path)
    test = open_videos("ucf101", "test", 8, 1, tmp_path)
    assert sorted(test.names) == sorted(expected["split01_test"])
    assert set(videos.names) == set(expected["rgb_frames"]) - set(test.names)
    assert videos.classes == ["Archery", "HandstandPushups", "YoYo"]
    assert videos.frames.tolist() == [expected["flow_frames"][name] for name in videos.names]
    ranked = sorted(expected["rgb_frames"])
    sample = ClipDataset(videos, 8, 1, 32, seed=0, draw_views=both_light)
    for index, name in enumerate(videos.names):
        number = ranked.index(name)
        item = sample[3, index]
        assert item["label"] == videos.classes.index(name.split("/")[0])
        rgb, flow = item["clips"][0].float().mean((2, 3)).unbind(0)  # [T, 3]
        start = (rgb[0, 2] - 40) / 3
        want = torch.tensor([[200.0, 20 + 10 * (number % 20), 40 + 3 * (start + k)] for k in range(8)])
        assert (rgb - want).abs().max() < 3
        want_flow = torch.tensor([[128.0, 40 + 3 * (start + k), 20 + 10 * (number % 20)] for k in range(8)])
        assert (flow - want_flow).abs().max() < 4, "the flow clip shows the same moment"


def test_two_parts_share_classes_and_not_videos(root):
    train, test = open_tiny(root), open_tiny(root, part="test")
    assert len(train) == 18
    assert len(test) == 6
    assert not set(train.names) & set(test.names)
    assert train.classes == test.classes == ["Class0", "Class1", "Class2"]
    assert np.bincount(train.labels).tolist() == [6, 6, 6]


def test_no_video_long_enough(root):
    with pytest.raises(UserError, match="--seq_len 64 --ds 2"):
        open_videos("tiny-2clip", "train", 64, 2, root)


def test_kinetics_has_a_database_per_part(tmp_path):
    make_dataset(tmp_path / "k400" / "train", per_class=4)
    make_dataset(tmp_path / "k400" / "val", per_class=2)
    train = open_videos("k400-2stream-2clip", "train", 4, 1, tmp_path)
    assert len(train) == 12
    assert sorted(train.sources) == list(range(12)), "every video is its own source"
    assert len(open_videos("k400", "test", 4, 1, tmp_path)) == 6


def test_a_database_that_is_named_stands_for_its_part(tmp_path):
    for part, number in (("train", 4), ("val", 2)):
        make_dataset(tmp_path / "ssd" / part, per_class=number)
    given = {"rgb_lmdb": str(tmp_path / "ssd/train/rgb.lmdb")}
    for name in ("k400", "mine"):
        parts = [open_videos(name, part, 4, 1, tmp_path, given) for part in ("train", "test")]
        assert list(map(len, parts)) == [12, 6]
    with pytest.raises(UserError, match="k400 has one split, in train/ and val/, not --which_split 2"):
        open_videos("k400", "train", 4, 1, tmp_path, given, split=2)
    (tmp_path / "ssd/val/rgb.lmdb").unlink()
    with pytest.raises(UserError, match=r"--rgb_lmdb names .*train, but the other part is not at .*val"):
        open_videos("k400", "test", 4, 1, tmp_path, given)
    given = {"rgb_lmdb": str(shutil.move(given["rgb_lmdb"], tmp_path / "k400_train.lmdb"))}
    assert len(open_videos("k400-2clip", "train", 4, 1, tmp_path, given)) == 12  # no even split
    with pytest.raises(UserError, match=r"--rgb_lmdb .* is one database, and k400 has one of each part"):
        open_videos("k400", "test", 4, 1, tmp_path, given)


def test_sources_are_ranked_among_all_parts(tmp_path):
    """As the ids in a checkpoint of the original are."""
    names = [f"{label}/v_{label}_g{g:02d}_c01" for label in ("A", "B") for g in (1, 8, 9)]
    record = [jpeg(np.full((48, 64, 3), 40, np.uint8))] * 16
    write_database(tmp_path / "ucf101/rgb.lmdb", dict.fromkeys(names, record))
    train = open_videos("ucf101-2clip", "train", 8, 1, tmp_path)
    assert sorted(zip(train.names, train.sources.tolist(), strict=True)) == [
        (names[i], i) for i in (1, 2, 4, 5)
    ]


def test_any_name_may_have_a_database_per_part(tmp_path):
    """As Kinetics, but videos of half a clip are kept."""
    make_dataset(tmp_path / "mine" / "train", per_class=4, frames=14)
    make_dataset(tmp_path / "mine" / "val", per_class=2, frames=14)
    train, test = (open_videos("mine", part, 16, 1, tmp_path) for part in ("train", "test"))
    assert (len(train), len(test)) == (12, 6)
    assert sorted(train.sources) == list(range(12))
    shutil.move(tmp_path / "mine", tmp_path / "k400")
    with pytest.raises(UserError, match="long enough"):
        open_videos("k400", "train", 16, 1, tmp_path)


def test_a_database_without_labels_trains_and_has_no_test_part(tmp_path):
    make_dataset(tmp_path / "mine")
    (tmp_path / "mine/classes.txt").write_text("")
    for part in ("train", "test"):
        (tmp_path / f"mine/{part}list01.txt").unlink()
    videos = open_videos("mine-2clip", "train", 4, 2, tmp_path)
    assert (len(videos), videos.classes, set(videos.labels)) == (24, [], {0})
    with pytest.raises(UserError, match="mine has no test part"):
        open_videos("mine", "test", 4, 2, tmp_path)

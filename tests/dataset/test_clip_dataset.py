import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from databases import make_dataset

import dataset.clip_dataset as module
from dataset import crop
from dataset.augmentation import View
from dataset.clip_dataset import ClipDataset, ShuffledBatches, make_loader
from dataset.registry import open_videos
from utils.errors import UserError

RELEASED = Path(__file__).parent.parent / "conformance" / "released_lmdb"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root / "tiny")
    return root


def open_tiny(root, name="tiny-2clip", part="train"):
    return open_videos(name, part, seq_len=4, ds=2, data_root=root)


def both_light(rng):
    return View(0, "light"), View(1, "light")


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


def test_item_shapes(root):
    item = ClipDataset(open_tiny(root, "tiny-2stream-2clip"), 4, 2, 16, seed=0)[0, 5]
    assert item["clips"].shape == (2, 2, 4, 16, 16, 3)
    assert item["clips"].dtype == torch.uint8
    assert {name: tuple(draw.shape) for name, draw in item["draws"].items()} == {
        "jitter_order": (2, 4),
        "jitter_factors": (2, 4),
        "grey_channel": (2, 4),
        "blur_sigma": (2,),
        "flip": (2,),
    }
    assert item["broken"] == ""


def test_draws_repeat_for_equal_keys_and_differ_otherwise(root):
    videos = open_tiny(root)
    data, again, other = (ClipDataset(videos, 4, 2, 16, seed=s) for s in (0, 0, 1))
    for index in range(4):
        assert torch.equal(data[1, index]["clips"], again[1, index]["clips"])
    same = sum(torch.equal(data[1, i]["clips"], data[2, i]["clips"]) for i in range(len(videos)))
    same += sum(torch.equal(data[1, i]["clips"], other[1, i]["clips"]) for i in range(len(videos)))
    assert same == 0
    factors = torch.stack(
        [data[e, i]["draws"]["jitter_factors"] for e in range(5) for i in range(len(videos))]
    )
    drawn = factors[(factors != torch.tensor([1.0, 1, 1, 0])).any(-1)]
    assert len(drawn) > 20
    assert len(drawn.unique(dim=0)) == len(drawn), "every strong clip has its own jitter"


@pytest.mark.slow
def test_workers_and_ranks_change_nothing_but_who_draws(root):
    videos = open_tiny(root)

    def batches(workers, rank, size, batch):
        loader = make_loader(
            ClipDataset(videos, 4, 2, 16, seed=0), batch, workers, rank, size, torch.device("cpu")
        )
        loader.batch_sampler.start_at(7)
        return list(loader)

    alone, with_workers = batches(0, 0, 1, 6), batches(2, 0, 1, 6)
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a["clips"], b["clips"])
        assert torch.equal(a["index"], b["index"])
    halves = [batches(0, rank, 2, 3) for rank in range(2)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(whole["clips"], torch.cat([first["clips"], second["clips"]]))


def test_only_the_frames_used_are_read_and_decoded_once(root, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        crop, "decode", lambda jpeg, original=crop.decode: decoded.append(jpeg) or original(jpeg)
    )
    videos = open_tiny(root)
    one_clip = ClipDataset(
        videos, 4, 2, 16, seed=0, draw_views=lambda rng: (View(1, "strong"), View(1, "light"))
    )
    for epoch in range(5):
        decoded.clear()
        one_clip[epoch, 0]
        assert len(decoded) == 4
    two_clips = ClipDataset(videos, 4, 2, 16, seed=0, draw_views=both_light)
    for epoch in range(5):
        decoded.clear()
        two_clips[epoch, 0]
        assert len(decoded) == len(set(decoded)) <= 8


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_frames_held_at_once_change_nothing(root, monkeypatch, at_once):
    """Clips longer than the videos too, whose first frames repeat."""
    for seq_len in (4, 12):
        data = ClipDataset(open_tiny(root, "tiny-2stream-2clip"), seq_len, 2, 16, seed=0)
        items = [data[epoch, 1] for epoch in range(4)]
        monkeypatch.setattr(crop, "FRAMES_AT_ONCE", at_once)
        for epoch, item in enumerate(items):
            again = data[epoch, 1]
            assert torch.equal(again["clips"], item["clips"])
            for name, draw in item["draws"].items():
                assert torch.equal(again["draws"][name], draw)
        monkeypatch.undo()


def test_orders_are_permutations_that_change_with_the_epoch():
    batches = ShuffledBatches(23, batch_size=4, rank=0, world_size=1, seed=0)
    orders = []
    for epoch in range(3):
        batches.start_at(epoch)
        keys = [key for batch in batches for key in batch]
        assert {e for e, _ in keys} == {epoch}
        orders.append([i for _, i in keys])
        assert len(set(orders[-1])) == 20 == 4 * len(batches)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    batches.start_at(1, first_batch=3)
    assert [i for batch in batches for _, i in batch] == orders[1][12:]
    assert len(batches) == 2


def test_ranks_share_an_epoch_without_overlap():
    seen = []
    for rank in range(3):
        batches = ShuffledBatches(50, batch_size=4, rank=rank, world_size=3, seed=5)
        seen += [i for batch in batches for _, i in batch]
    assert len(seen) == len(set(seen)) == 48


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


@pytest.mark.parametrize("name", ["tiny-2clip", "tiny-2stream-2clip"])
def test_encoded_batches_decoded_on_the_device_are_those_of_the_workers(root, name):
    """The CPU stands for the device: torchvision decodes there too."""
    videos = open_tiny(root, name)
    batches = []
    for encoded in (False, True):
        loader = make_loader(
            ClipDataset(videos, 4, 2, 16, seed=0, encoded=encoded), 4, 0, 0, 1, torch.device("cpu")
        )
        batches.append([loader.dataset.with_clips(batch, torch.device("cpu")) for batch in loader])
        assert all(("jpegs" in batch) == encoded for batch in batches[-1])
    for ours, theirs in zip(*batches, strict=True):
        assert (ours["clips"].float() - theirs["clips"].float()).abs().max() <= 1
        assert ours.keys() <= theirs.keys()
        assert all(torch.equal(value, theirs["draws"][key]) for key, value in ours["draws"].items())


def test_a_jpeg_that_the_device_cannot_decode_is_left_out(root, monkeypatch, caplog):
    data = ClipDataset(open_tiny(root), 4, 2, 16, seed=0, encoded=True)
    read = type(data.videos.stores["rgb"]).read_frames
    broken = int(data.videos.positions["rgb"][1])
    monkeypatch.setattr(
        type(data.videos.stores["rgb"]),
        "read_frames",
        lambda self, position, indices: [
            jpeg[: jpeg.index(b"\xff\xda")] if position == broken else jpeg
            for jpeg in read(self, position, indices)
        ],
    )
    logging.getLogger("coclr").propagate = True
    batch = data.with_clips(module.join_jpegs([data[5, 0], data[5, 1]]), torch.device("cpu"))
    assert "decoded on the CPU" in caplog.text
    assert batch["broken"][0] == ""
    assert data.videos.names[1] in batch["broken"][1]
    data.encoded = False
    assert torch.equal(batch["clips"][0], data[5, 0]["clips"])
    assert batch["index"].tolist() == [0, 2]

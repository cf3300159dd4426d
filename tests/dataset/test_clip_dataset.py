import numpy as np
import pytest
import torch
from databases import both_light, jpeg, open_tiny, write_database

from dataset import crop, store
from dataset.augmentation import View
from dataset.clip_dataset import ClipDataset
from dataset.registry import open_videos
from utils.errors import UserError


def test_item_shapes(root):
    item = ClipDataset(open_tiny(root, "tiny-2stream-2clip"), 4, 2, 16, seed=0)[0, 5]
    assert item["clips"].shape == (2, 2, 4, 16, 16, 3)
    assert item["clips"].dtype == torch.uint8
    assert {name: tuple(draw.shape) for name, draw in item["draws"].items()} == {
        "jitter_order": (2, 2, 4),
        "jitter_factors": (2, 2, 4),
        "grey_channel": (2, 2, 4),
        "blur_sigma": (2, 2),
        "flip": (2, 2),
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


def test_flow_without_colour_keeps_what_moves_pixels(root):
    videos = open_tiny(root, "tiny-2stream-2clip")
    both, plain = (ClipDataset(videos, 4, 2, 16, seed=0, flow_colour=colour) for colour in (True, False))
    rgb, flow = list(videos.stores).index("rgb"), list(videos.stores).index("flow")
    coloured = []
    for epoch in range(8):
        one, other = both[epoch, 0], plain[epoch, 0]
        assert torch.equal(one["clips"], other["clips"])
        for name, draw in one["draws"].items():
            assert torch.equal(draw[:, rgb], draw[:, flow])
            assert torch.equal(draw[:, rgb], other["draws"][name][:, rgb])
            if name in ("blur_sigma", "flip"):
                assert torch.equal(draw, other["draws"][name])
        coloured.append((one["draws"]["grey_channel"][:, flow] >= 0).any())
        drawn = other["draws"]
        assert (drawn["grey_channel"][:, flow] == -1).all()
        assert (drawn["jitter_order"][:, flow] == torch.arange(4)).all()
        assert (drawn["jitter_factors"][:, flow] == torch.tensor([1.0, 1, 1, 0])).all()
    assert any(coloured)


def test_only_the_frames_used_are_read_and_decoded_once(root, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        store, "decode", lambda jpeg, original=store.decode: decoded.append(jpeg) or original(jpeg)
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


def test_another_video_stands_in_for_a_broken_one(tmp_path):
    rng = np.random.default_rng(0)
    good = [jpeg(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(12)]
    cut = [good[0], *(frame[: frame.index(b"\xff\xda")] for frame in good[1:])]
    write_database(tmp_path / "bad/rgb.lmdb", {"A/cut": cut, "A/good": good})
    (tmp_path / "bad/split.csv").write_text("A/good,train\nA/cut,train\n")
    data = ClipDataset(open_videos("bad", "train", 4, 2, tmp_path), 4, 2, 16, seed=0)
    first, second = (data[5, data.videos.names.index(name)] for name in ("A/cut", "A/good"))
    assert second["broken"] == ""
    assert "A/cut" in first["broken"]
    assert first["index"] == second["index"]
    assert torch.equal(first["clips"], second["clips"])


def test_no_video_is_readable(tmp_path):
    write_database(tmp_path / "bad/rgb.lmdb", {"A/a": [b"no jpeg"] * 12, "A/b": [b"no jpeg"] * 12})
    (tmp_path / "bad/split.csv").write_text("A/a,train\nA/b,train\n")
    data = ClipDataset(open_videos("bad", "train", 4, 2, tmp_path), 4, 2, 16, seed=0)
    with pytest.raises(UserError, match="every one of 2 videos is unreadable"):
        data[0, 0]

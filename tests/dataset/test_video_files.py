"""Video files as a source, against a database of the same frames."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coded import read_code, write_coded
from runs import CLIPS, run_ok

from dataset import decode
from dataset import video_files as module
from dataset.clip_dataset import ClipDataset
from dataset.decode import decode_video
from dataset.footage import find_videos
from dataset.jpeg import encode
from dataset.registry import open_videos
from dataset.source import BrokenVideo
from dataset.store import VideoStore, pack_frames, write_store
from dataset.video_files import INDEX, VideoFiles, runs
from dataset.window_dataset import WindowDataset
from utils.errors import UserError


def make_footage(folder: Path, per_class: int = 4, frames: int = 40) -> Path:
    """Two classes of short videos with key frames all ten frames or at the beginning alone, and B frames."""
    for number in range(2 * per_class):
        label = "AB"[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        write_coded(
            folder / f"{label}/v{number}.{'mp4' if number % 3 else 'mkv'}",
            range(number, number + frames + number),
            gop_size=10 if number % 2 else 250,
            max_b_frames=2,
            options={"sc_threshold": "0"},
        )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_footage(tmp_path_factory.mktemp("made") / "clips")


@pytest.fixture
def footage(made, tmp_path, monkeypatch):
    """A copy of the footage without an index; nothing is in the cache."""
    monkeypatch.setenv("COCLR_CACHE", str(tmp_path / "cache"))
    logging.getLogger("coclr").propagate = True
    return Path(shutil.copytree(made, tmp_path / "clips"))


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """Gives the names of the files that were indexed so far, one after another."""
    log, index = tmp_path / "indexed", module.index_frames

    def logged(path):
        with open(log, "a") as file:  # by another process
            file.write(os.path.basename(path) + "\n")
        return index(path)

    monkeypatch.setattr(module, "available_cores", lambda: 1)
    monkeypatch.setattr(module, "index_frames", logged)
    return lambda: log.read_text().split()


def make_database(footage: Path, path: Path) -> Path:
    """Database of all frames of the footage, at the highest quality."""
    path.parent.mkdir(parents=True)
    videos = {video.name: video.path for video in find_videos(footage).videos}

    def record_of(name: str) -> tuple[bytes, int]:
        jpegs = [encode(np.ascontiguousarray(frame), 100) for frame in decode_video(videos[name])]
        return pack_frames(jpegs), len(jpegs)

    write_store(path, list(videos), record_of)
    return path


def test_every_frame_is_that_of_the_whole_file_decoded(footage):
    source = VideoFiles(footage)
    paths = {video.name: video.path for video in find_videos(footage).videos}
    assert source.names == VideoStore(make_database(footage, footage.parent / "db/rgb.lmdb")).names
    rng = np.random.default_rng(0)
    for video, name in enumerate(source.names):
        whole = list(decode_video(paths[name]))
        count = len(whole)
        assert source.frame_counts()[video] == count
        assert source.size(video) == (64, 96)
        assert source.record_size(video) == Path(paths[name]).stat().st_size
        for asked in ([0], [count - 1], range(count), np.unique(rng.integers(0, count, 5)).tolist(), [3, 38]):
            frames = list(source.frames(video, asked))
            assert len(frames) == len(asked)
            for index, frame in zip(asked, frames, strict=True):
                assert np.array_equal(frame[..., ::-1], whole[index])
                assert read_code(frame[..., ::-1]) == index + int(name[-1])


def test_samples_and_windows_are_those_of_a_database(footage):
    make_database(footage, footage.parent / "data/some/rgb.lmdb")
    for part in ("train", "test"):
        database = open_videos("some", part, 8, 2, footage.parent / "data")
        files = open_videos("some", part, 8, 2, footage.parent / "none", {"rgb_videos": str(footage)})
        assert database.names == files.names
        assert database.classes == files.classes == ["A", "B"]
        for field in ("frames", "labels", "sources"):
            assert np.array_equal(getattr(database, field), getattr(files, field))
        ours, theirs = (ClipDataset(videos, 8, 2, 32, seed=1) for videos in (files, database))
        for index in range(len(files)):
            one, other = ours[3, index], theirs[3, index]
            assert (one["clips"].float() - other["clips"].float()).abs().mean() < 1.5
            for name, draw in one["draws"].items():
                assert torch.equal(draw, other["draws"][name])
        ours, theirs = (WindowDataset(videos, 8, 2, 32, crops=5) for videos in (files, database))
        for index in range(len(ours)):
            one, other = ours[index], theirs[index]
            assert (one["frames"].float() - other["frames"].float()).abs().mean() < 1.5
            assert torch.equal(one["windows"], other["windows"])


def test_decoding_begins_at_the_key_frame_before_each_clip(footage, monkeypatch):
    """And frames are decoded once where clips overlap."""
    decoded = []
    frames = decode.VideoFile.frames
    monkeypatch.setattr(
        decode.VideoFile, "frames", lambda self: (decoded.append(1) or frame for frame in frames(self))
    )
    source = VideoFiles(footage)
    keys = source.names.index("B/v7")  # of 47 frames, 0, 10, ... 40 being key frames
    one_key = source.names.index("A/v6")
    for video, asked, most in (
        (keys, [24, 25, 26], 7),
        (keys, [1, 2, 44, 45], 9),
        (keys, [12, 14, 15, 16, 18], 9),
        (one_key, [24, 25, 26], 20),
        (one_key, [1, 2, 40, 41], 30),
    ):
        decoded.clear()
        assert len(list(source.frames(video, asked))) == len(asked)
        assert len(decoded) <= most


def test_runs_are_cut_where_a_key_frame_saves_decoding():
    keys = np.array([0, 10, 20, 60])
    assert runs(np.array([3, 4, 5]), keys) == [[3, 4, 5]]
    assert runs(np.array([3, 4, 25, 26]), keys) == [[3, 4], [25, 26]]
    assert runs(np.array([8, 21]), keys) == [[8], [21]]
    assert runs(np.array([9, 10, 11, 59, 60, 61]), keys) == [[9, 10, 11, 59, 60, 61]], (
        "seeking saves too little"
    )
    assert runs(np.array([5, 70]), np.array([0])) == [[5, 70]]


def test_the_index_is_made_once(footage, indexed):
    names = VideoFiles(footage).names
    assert VideoFiles(footage).names == names
    assert len(indexed()) == 8
    changed = footage / "A/v2.mp4"
    write_coded(changed, range(33))
    write_coded(footage / "A/new.mp4", range(12))
    (footage / "B/v1.mp4").unlink()
    source = VideoFiles(footage)
    assert sorted(indexed()[8:]) == ["new.mp4", "v2.mp4"]
    assert source.frame_counts()[source.names.index("A/v2")] == 33
    assert set(source.names) == set(names) - {"B/v1"} | {"A/new"}
    (footage / INDEX).write_bytes(b'{"A/v2": {"bytes"')
    assert VideoFiles(footage).names == source.names
    assert len(indexed()) == 8 + 2 + 8


def test_a_stopped_index_goes_on(footage, indexed, monkeypatch):
    original = module.index_frames

    def stop_at_the_fourth(path):
        if path == str(find_videos(footage).videos[3].path):
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(module, "index_frames", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        VideoFiles(footage)
    assert len(json.loads((footage / INDEX).read_bytes())) == 3
    monkeypatch.setattr(module, "index_frames", original)
    assert len(VideoFiles(footage).names) == 8
    assert len(indexed()) == len(set(indexed())) == 8


def test_a_folder_that_cannot_be_written(footage):
    (footage / ".frame_index.lock").mkdir()  # opening it fails, for root too
    names = VideoFiles(footage).names
    assert len(names) == 8
    assert not (footage / INDEX).exists()
    (kept,) = (footage.parent / "cache").glob("frame_index-*.json")
    assert len(json.loads(kept.read_bytes())) == 8
    before = kept.stat().st_mtime_ns
    assert VideoFiles(footage).names == names
    assert kept.stat().st_mtime_ns == before


def test_an_index_in_the_cache_does_not_hide_a_newer_one(footage, indexed):
    (footage / ".frame_index.lock").mkdir()
    VideoFiles(footage)
    (footage / ".frame_index.lock").rmdir()
    write_coded(footage / "A/v2.mp4", range(33))
    for _ in range(2):
        VideoFiles(footage)
    assert len(indexed()) == 8 + 1


def test_what_cannot_be_decoded_is_left_out(footage, caplog):
    (footage / "A/text.mp4").write_text("no video\n" * 200)
    whole = (footage / "B/v3.mkv").read_bytes()
    (footage / "B/cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert len(VideoFiles(footage).names) == 8
    assert "left out A/text" in caplog.text
    assert "left out B/cut" in caplog.text


def test_a_file_that_changes_during_training_is_a_broken_video(footage):
    source = VideoFiles(footage)
    video = source.names.index("B/v5")
    write_coded(footage / "B/v5.mp4", range(9), rate=10)
    with pytest.raises(BrokenVideo, match="B/v5"):
        list(source.frames(video, [30]))
    (footage / "B/v5.mp4").unlink()
    with pytest.raises(BrokenVideo, match="B/v5"):
        list(source.frames(video, [30]))


@pytest.mark.parametrize("cores", [1, 2])
def test_videos_at_which_the_decoder_crashes_are_left_out(footage, monkeypatch, caplog, cores):
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    original = module.index_frames
    crashing = ("v4.mp4", "v2.mp4")
    monkeypatch.setattr(
        module, "index_frames", lambda path: os._exit(9) if path.endswith(crashing) else original(path)
    )
    whole = set(VideoFiles(footage).names)
    assert len(whole) == 6
    assert not any(name.endswith(("v4", "v2")) for name in whole)
    assert "v4: reading it ended the process; remove .frame_index.json" in caplog.text
    monkeypatch.setattr(module, "index_frames", None)  # the index has all of them
    assert set(VideoFiles(footage).names) == whole


def test_train_and_val_have_one_class_list(footage):
    (footage / "train").mkdir()
    (footage / "val").mkdir()
    for label in "AB":
        (footage / label).rename(footage / "train" / label)
    (footage / "val/C").mkdir()
    write_coded(footage / "val/C/x.mp4", range(30))
    (footage.parent / "data/some").mkdir(parents=True)
    (footage.parent / "data/some/videos").symlink_to(footage)
    train, test = (open_videos("some", part, 8, 2, footage.parent / "data") for part in ("train", "test"))
    assert (len(train), test.names) == (8, ["C/x"])
    assert train.classes == test.classes == ["A", "B", "C"]
    assert test.labels.tolist() == [2]


def test_a_flat_folder_has_no_labels_and_trains(tmp_path):
    for number in range(3):
        write_coded(tmp_path / f"v{number}.mp4", range(30))
    (tmp_path / "more/deep").mkdir(parents=True)
    write_coded(tmp_path / "more/deep/w.mp4", range(30))
    given = {"rgb_videos": str(tmp_path)}
    videos = open_videos("some", "train", 8, 2, tmp_path / "none", given)
    assert sorted(videos.names) == ["more/deep/w", "v0", "v1", "v2"]
    assert (videos.classes, videos.labels.tolist()) == ([], [0] * 4)
    assert len(set(videos.sources)) == 4
    with pytest.raises(UserError, match="no test part"):
        open_videos("some", "test", 8, 2, tmp_path / "none", given)


def test_lists_beside_the_folder(footage):
    splits = footage.with_name("clips_splits")
    splits.mkdir()
    (splits / "classInd.txt").write_text("1 B\n2 A\n")
    (splits / "trainlist01.txt").write_text("A/v0.mkv 2\nB/v1.mp4 1\n")
    (splits / "testlist01.txt").write_text("A/v2.mp4\nB/v3.mkv\nB/v5.mp4\n")
    (footage / "flat.mp4").write_bytes((footage / "A/v2.mp4").read_bytes())
    given = {"rgb_videos": str(footage)}
    train, test = (open_videos("some", part, 8, 2, "none", given) for part in ("train", "test"))
    assert sorted(train.names) == ["A/v0", "B/v1"]
    assert sorted(test.names) == ["A/v2", "B/v3", "B/v5"]
    assert train.classes == test.classes == ["B", "A"]


def test_flow_needs_a_database(footage):
    given = {"rgb_videos": str(footage)}
    with pytest.raises(UserError, match=r"no flow database at none/some/flow.lmdb.*dataset.prepare"):
        open_videos("some-2stream-2clip", "train", 8, 2, "none", given)
    flow = make_database(footage, footage.parent / "db/flow.lmdb")
    videos = open_videos("some-2stream-2clip", "train", 8, 2, "none", given | {"flow_lmdb": str(flow)})
    assert ClipDataset(videos, 8, 2, 32, seed=1)[0, 0]["clips"].shape == (2, 2, 8, 32, 32, 3)
    with pytest.raises(UserError, match="--rgb_lmdb and --rgb_videos exclude one another"):
        open_videos("some", "train", 8, 2, "none", given | {"rgb_lmdb": str(flow)})
    with pytest.raises(UserError, match="no RGB folder of videos at nowhere"):
        open_videos("some", "train", 8, 2, "none", {"rgb_videos": "nowhere"})


@pytest.mark.slow
def test_training_and_evaluation_without_a_database(footage):
    """Pretraining, probe and retrieval; R@1 of a checkpoint is that from a database of the same frames."""
    home = footage.parent
    make_database(footage, home / "data/some/rgb.lmdb")
    files = ("--dataset", "some", "--rgb_videos", footage)
    small = (*CLIPS, "-j", "1")
    nce = ("main_nce.py", "--dataset", "some-2clip", "--rgb_videos", footage, *small, "--epochs", "1")
    run_ok(*nce, "--batch_size", "4", "--moco-k", "8", "--moco-dim", "16", cwd=home)
    (checkpoint,) = home.glob("log-pretrain/*/model/epoch0.pth.tar")
    probe = ("main_classifier.py", *files, *small, "--pretrain", checkpoint)
    run_ok(*probe, "--epochs", "1", "--batch_size", "2", cwd=home)
    for source in (files, ("--dataset", "some", "--data_root", "data")):
        run_ok("main_classifier.py", *source, *small, "--test", "random", "--retrieval", cwd=home)
    numbers = [json.loads(line)["numbers"] for line in (home / "results.jsonl").read_text().splitlines()]
    assert numbers[0] == numbers[1]

import shutil
from pathlib import Path

import numpy as np
import pytest
from footage import extract_frames, rgb_image

from dataset.footage import Video
from dataset.preparation.frame_folders import frame_files, read_flow_files, read_jpegs
from dataset.store import BrokenVideo


def video(folder: Path) -> Video:
    return Video("a/v", str(folder))


def names(folder: Path) -> dict[str, list[str]]:
    return {kind: [Path(path).name for path in paths] for kind, paths in frame_files(video(folder)).items()}


def test_files_by_kind_in_the_order_of_their_numbers(tmp_path):
    extract_frames(tmp_path / "v", 12, flow="pairs")
    (tmp_path / "v/thumbnail.jpg").write_text("of another kind")
    assert names(tmp_path / "v") == {
        "rgb": [f"image_{t:05d}.jpg" for t in range(1, 13)],
        "flow_x": [f"flow_x_{t:05d}.jpg" for t in range(1, 12)],
        "flow_y": [f"flow_y_{t:05d}.jpg" for t in range(1, 12)],
    }
    for t in range(1, 13):  # numbers without zeros, from 0
        (tmp_path / f"v/image_{t:05d}.jpg").rename(tmp_path / f"v/image_{t - 1}.jpg")
        for kind in ("flow_x", "flow_y"):
            if t < 12:
                (tmp_path / f"v/{kind}_{t:05d}.jpg").rename(tmp_path / f"v/{kind}{t - 1}.JPEG")
    assert names(tmp_path / "v")["rgb"] == [f"image_{t}.jpg" for t in range(12)]
    assert names(tmp_path / "v")["flow_y"] == [f"flow_y{t}.JPEG" for t in range(11)]


@pytest.mark.parametrize(
    ("flow", "lost", "reason"),
    [
        ("", ["image_00005"], "rgb file number 5 is missing"),
        ("pairs", ["image_00005"], "rgb file number 5 is missing"),
        ("pairs", ["image_00001"], "rgb file number 1 is missing"),
        ("pairs", ["flow_x_00004", "flow_y_00006"], "flow_[xy] file number [46] is missing"),
        ("pairs", ["flow_x_00001", "flow_y_00001"], "flow_[xy] file number 1 is missing"),
        ("pairs", ["flow_y_00007"], "do not pair up"),
        ("pairs", ["flow_x_00007", "flow_y_00007"], "6 flow_[xy] files for 8 frames"),
        ("3-channel", ["flow_00003"], "flow file number 3 is missing"),
        ("3-channel", ["flow_00007"], "6 flow files for 8 frames"),
    ],
)
def test_a_lost_file_is_named(tmp_path, flow, lost, reason):
    extract_frames(tmp_path / "v", 8, flow=flow)
    for stem in lost:
        (tmp_path / f"v/{stem}.jpg").unlink()
    with pytest.raises(BrokenVideo, match=reason):
        frame_files(video(tmp_path / "v"))


def test_a_number_that_two_files_have_is_named(tmp_path):
    extract_frames(tmp_path / "v", 4)
    shutil.copy(tmp_path / "v/image_00003.jpg", tmp_path / "v/frame_3.jpg")
    with pytest.raises(BrokenVideo, match=r"_0*3\.jpg has the number of another rgb file"):
        frame_files(video(tmp_path / "v"))


def test_surplus_flow_file_is_not_taken(tmp_path):
    extract_frames(tmp_path / "v", 4, flow="pairs")
    for kind in ("flow_x", "flow_y"):
        shutil.copy(tmp_path / f"v/{kind}_00003.jpg", tmp_path / f"v/{kind}_00004.jpg")
    assert {kind: len(files) for kind, files in names(tmp_path / "v").items()} == {
        "rgb": 4,
        "flow_x": 3,
        "flow_y": 3,
    }


def test_pairs_are_merged_and_3_channel_files_kept(tmp_path):
    extract_frames(tmp_path / "pairs", flow="pairs")
    pairs = read_flow_files(video(tmp_path / "pairs"), frame_files(video(tmp_path / "pairs")), 90)
    for t, jpeg in enumerate(pairs):
        assert np.abs(rgb_image(jpeg).mean(axis=(0, 1)) - [128, 160 - t, 100 + t]).max() <= 1
    assert t == 2
    written = extract_frames(tmp_path / "whole", flow="3-channel")
    files = frame_files(video(tmp_path / "whole"))
    assert list(read_flow_files(video(tmp_path / "whole"), files, 90)) == written["flow"]


def test_torn_and_missing_files_are_named(tmp_path):
    written = extract_frames(tmp_path / "v")
    files = frame_files(video(tmp_path / "v"))["rgb"]
    assert list(read_jpegs(video(tmp_path / "v"), files)) == written["image"]
    Path(files[1]).write_bytes(written["image"][1][:-2])  # decoders forgive it
    with pytest.raises(BrokenVideo, match=r"image_00002\.jpg is not a whole JPEG"):
        list(read_jpegs(video(tmp_path / "v"), files))
    Path(files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"image_00002\.jpg"):
        list(read_jpegs(video(tmp_path / "v"), files))

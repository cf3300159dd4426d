import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.preparation.synthetic import CLASSES, main

VIDEOS, SIZE, FRAMES = 10, 64, 24
SMALL = ["--videos", str(VIDEOS), "--size", str(SIZE), "--frames", str(FRAMES)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "footage"
    main(["--out", str(out), "-j", "2", *SMALL])
    return out


def read(path):
    """A video file as uint8 [T, H, W, 3], BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return np.stack(frames)


def colours(video):
    return (
        np.concatenate([np.histogram(video[..., c], 16, (0, 256))[0] for c in range(3)]) / video[..., 0].size
    )


def flow_histogram(video):
    """Share of each magnitude and (mirrored) orientation of the flow against the background."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in video]
    flow = np.stack([dis.calc(a, b, None) for a, b in zip(grey[:-1:2], grey[1::2], strict=True)])
    flow = flow - np.median(flow, axis=(1, 2), keepdims=True)
    magnitude, angle = np.hypot(flow[..., 0], flow[..., 1]), np.arctan2(flow[..., 1], np.abs(flow[..., 0]))
    bins = [[0.4, 1, 2, 3.5, 6, 20], np.linspace(-np.pi / 2, np.pi / 2, 9)]
    histogram = np.histogram2d(magnitude.ravel(), angle.ravel(), bins)[0].ravel()
    return np.sqrt(histogram / histogram.sum())


def nearest_neighbour_accuracy(features, labels):
    """Share of videos whose nearest other video has their class."""
    distance = np.square(features[:, None] - features[None]).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return (labels[distance.argmin(1)] == labels).mean()


def test_flow_tells_the_class_and_colour_does_not(footage):
    paths = sorted(footage.glob("*/*.avi"))
    videos, labels = (
        [read(path) for path in paths],
        np.array([CLASSES.index(path.parent.name) for path in paths]),
    )
    # chance is 1/8 with a standard deviation of 0.037
    assert nearest_neighbour_accuracy(np.stack([colours(v) for v in videos]), labels) < 0.28
    assert nearest_neighbour_accuracy(np.stack([flow_histogram(v) for v in videos]), labels) > 0.55


def test_two_clips_of_a_video_look_alike(footage):
    paths = sorted(footage.glob("*/*.avi"))
    halves = [np.split(read(path), 2) for path in paths]
    first, second = (np.stack([colours(half[i]) for half in halves]) for i in range(2))
    nearest = np.square(first[:, None] - second[None]).sum(-1).argmin(1)
    assert (nearest == np.arange(len(paths))).mean() > 0.9


def test_files_and_lists(footage):
    assert sorted(p.name for p in footage.iterdir() if p.is_dir()) == sorted(CLASSES)
    assert sorted(CLASSES, key=str.lower) == CLASSES
    assert (footage / "classInd.txt").read_text().splitlines() == [
        f"{i + 1} {name}" for i, name in enumerate(CLASSES)
    ]
    train = dict(line.split() for line in (footage / "trainlist01.txt").read_text().splitlines())
    test = (footage / "testlist01.txt").read_text().splitlines()
    assert train["Bounce/v_Bounce_g01_c01.avi"] == "1"
    assert all(CLASSES[int(label) - 1] == name.split("/")[0] for name, label in train.items())
    assert len(test) == len(CLASSES) * (VIDEOS // 3)
    on_disk = {str(path.relative_to(footage)) for path in footage.glob("*/*.avi")}
    assert len(on_disk) == len(CLASSES) * VIDEOS
    assert set(train) | set(test) == on_disk
    assert not set(train) & set(test)
    assert read(footage / test[0]).shape == (FRAMES, SIZE, SIZE, 3)
    assert list(footage.parent.iterdir()) == [footage]


def test_same_bytes_for_the_same_seed(footage, tmp_path):
    main(["--out", str(tmp_path / "again"), "-j", "1", *SMALL])
    main(["--out", str(tmp_path / "other"), "--seed", "1", *SMALL])
    files = sorted(path.relative_to(footage) for path in footage.rglob("*") if path.is_file())
    assert (
        sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
        == files
    )
    for file in files:
        same = (tmp_path / "again" / file).read_bytes()
        assert (footage / file).read_bytes() == same
        assert ((tmp_path / "other" / file).read_bytes() == same) == (file.suffix == ".txt")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--videos", "1"], "--videos 1"),
        (["--size", "0"], "--size 0"),
        (["--frames", "-5"], "--frames -5"),
        (["--seed", "-1"], "--seed -1"),
        (["-j", "0"], "--jobs 0"),
        (["--videos", "many"], "many"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, named):
    with pytest.raises(SystemExit) as end:
        main(["--out", str(tmp_path / "out"), *options])
    assert end.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as end:
            main(["--out", str(out)])
        assert end.value.code == 2
        assert str(out) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_that_looks_complete(tmp_path):
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000))
    command = [sys.executable, "-m", "dataset.synthetic", "--out", str(tmp_path / "out"), "-j", "1", *SMALL]
    run = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert run.returncode == 2
    assert "is the disk full?" in run.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []

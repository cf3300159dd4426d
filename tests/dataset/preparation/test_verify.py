import os
import subprocess
import sys

import cv2
import msgpack
import numpy as np
import pytest
from databases import write_database
from runs import environment

from dataset.preparation.verify import main
from dataset.store import pack_frames, write_store

GREY = np.full((48, 64, 3), 128, np.uint8)


def jpeg(value: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Smooth JPEG whose red is 128."""
    image = cv2.resize(np.array([[[value, 90, 128], [40, value, 128]]], np.uint8), size)
    return cv2.imencode(".jpg", image)[1].tobytes()


def videos(frames: int) -> dict[str, list[bytes]]:
    return {f"{label}/{i}": [jpeg(10 * i + t) for t in range(frames + i)] for label in "ab" for i in range(3)}


def write(path, content: dict[str, list[bytes] | bytes]) -> None:
    def record_of(name: str) -> tuple[bytes, int]:
        frames = content[name]
        return (frames, 5) if isinstance(frames, bytes) else (pack_frames(frames), len(frames))

    write_store(path, list(content), record_of)


def check(capsys, *argv) -> tuple[int, str]:
    """(exit status, what was printed)."""
    try:
        main([str(word) for word in argv])
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


@pytest.fixture
def pair(tmp_path):
    """Content of a sound pair of databases, to break."""
    return videos(6), videos(5)


def test_two_records_of_one_name(tmp_path, capsys):
    frames = [jpeg(0)] * 3
    write_store(tmp_path / "rgb.lmdb", ["a/0", "a/1", "a/0"], lambda name: (pack_frames(frames), 3))
    status, output = check(capsys, tmp_path / "rgb.lmdb")
    assert status == 1
    assert "a/0: 2 records have this name\n1 problems" in output


@pytest.mark.parametrize("more", [[], ["--all"], ["--sample", "1"]])
def test_sound_pair(tmp_path, capsys, pair, more):
    write(tmp_path / "rgb.lmdb", pair[0])
    write(tmp_path / "flow.lmdb", pair[1])
    status, output = check(capsys, tmp_path, *more)
    assert status == 0
    assert "rgb.lmdb: 6 of 6 videos readable, 42 frames" in output
    assert "flow.lmdb: 6 of 6 videos readable, 36 frames" in output
    decoded = {"": 18, "--all": 42, "--sample": 3}[more[0] if more else ""]
    assert (
        f"decoded {decoded} frames of {1 if '--sample' in more else 6} videos, {decoded} of 64x48" in output
    )
    assert output.endswith("nothing broken\n")


def test_each_problem_is_named(tmp_path, capsys, pair):
    rgb, flow = pair
    rgb["a/0"] = b""  # an empty record
    rgb["a/1"][-1] = rgb["a/1"][-1][:-2]  # torn, though decoders forgive it
    rgb["a/2"][4] = jpeg(0, (32, 24))  # another size
    rgb["b/0"] = msgpack.packb("text")
    flow["b/1"] = [cv2.imencode(".jpg", GREY + 60)[1].tobytes()] * 6  # no flow
    del flow["b/2"]
    write(tmp_path / "rgb.lmdb", rgb)
    write(tmp_path / "flow.lmdb", flow)
    status, output = check(capsys, tmp_path, "--all")
    assert status == 1
    lines = output.splitlines()
    for expected in ("a/0: ", "a/1: ", "a/2: ", "b/0: ", "b/1: ", "b/2: not in the flow database"):
        assert any(line.startswith(expected) for line in lines), (expected, output)
    assert "frame 6 is not a whole JPEG" in output
    assert "frame 4 is 32x24, others are 64x48" in output
    assert "frame 0 is not flow: its red is 188, not 128" in output
    assert lines[-1] == "6 problems"
    assert "2 of 6 videos readable, 15 frames" in output  # b/1 and b/2


def test_rgb_and_flow_that_do_not_fit(tmp_path, capsys, pair):
    rgb, flow = pair
    flow["a/0"] = flow["a/0"][:-1]
    flow["b/0"] = [jpeg(1, (48, 64))] * 5
    write(tmp_path / "x.lmdb", rgb)
    write(tmp_path / "y.lmdb", flow)
    status, output = check(capsys, tmp_path / "x.lmdb", tmp_path / "y.lmdb")
    assert status == 1
    assert output.splitlines()[-3:] == [
        "a/0: 6 RGB frames need 5 flow frames, there are 4",
        "b/0: RGB frames are 64x48, flow frames 48x64",
        "2 problems",
    ]


def test_announced_and_real_frame_counts(tmp_path, capsys):
    write_store(tmp_path / "a.lmdb", ["c/x"], lambda name: (pack_frames([jpeg(0)] * 3), 4))
    status, output = check(capsys, tmp_path / "a.lmdb")
    assert status == 1
    assert "c/x: 3 frames, but __vlen__ says 4" in output


def test_kinetics_folder_and_missing_databases(tmp_path, capsys, pair):
    for part in ("train", "val"):
        (tmp_path / "k" / part).mkdir(parents=True)
        write(tmp_path / "k" / part / "rgb.lmdb", pair[0])
    assert check(capsys, tmp_path / "k")[1].count("6 of 6 videos readable") == 2
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "is no database and holds no rgb.lmdb" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "shown"), [("café/x", r"caf\xe9/x"), ("caf\udce9/x", r"caf\udce9/x")])
def test_names_that_the_terminal_cannot_show(tmp_path, name, shown):
    write_database(tmp_path / "rgb.lmdb", {os.fsencode(name): [b"no JPEG"]})
    done = subprocess.run(
        [sys.executable, "-m", "dataset.verify", "rgb.lmdb"],
        cwd=tmp_path,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert f"\n{shown}: rgb.lmdb: frame 0 is not a whole JPEG" in done.stdout

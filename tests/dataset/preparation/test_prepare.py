import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from footage import extract_frames, picture, rgb_image, write_video

from dataset.preparation.flow import decode_flow
from dataset.preparation.prepare import main
from dataset.store import VideoStore

ROOT = Path(__file__).parents[3]
FAST = ["--flow", "dis", "-j", "1"]


def write_sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Three classes of three videos, 6 ... 14 frames that move 2 pixels right each, in three containers."""
    folder = tmp_path_factory.mktemp("footage") / "videos"
    for i in range(9):
        suffix, code = [("avi", "MJPG"), ("mp4", "mp4v"), ("avi", "MJPG")][i % 3]
        write_video(
            folder / f"{'Run Walk ärger'.split()[i // 3]}/v {i}.{suffix}",
            [picture(i, 2 * t) for t in range(6 + i)],
            code=code,
        )
    return folder


NAMES = {f"{label}/v {i}": 6 + i for i, label in enumerate(["Run"] * 3 + ["Walk"] * 3 + ["ärger"] * 3)}


def command(videos: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "dataset.prepare",
        "small",
        "--videos",
        str(videos),
        "--out",
        str(out),
        *FAST,
        *more,
    ]


def run(videos: Path, out: Path, *more: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(command(videos, out, *more), cwd=ROOT, capture_output=True, text=True, **kwargs)


def databases(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "prepared.json"}


@pytest.fixture(scope="module")
def undisturbed(footage, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = run(footage, out)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "estimate from 8 videos" in result.stderr
    return out


def test_frames_and_flow_of_the_databases(undisturbed):
    rgb, flow = (VideoStore(undisturbed / f"{stream}.lmdb") for stream in ("rgb", "flow"))
    assert rgb.names == flow.names
    assert dict(zip(rgb.names, rgb.frame_counts().tolist(), strict=True)) == NAMES
    assert dict(zip(flow.names, flow.frame_counts().tolist(), strict=True)) == {
        n: c - 1 for n, c in NAMES.items()
    }
    for position, name in enumerate(rgb.names):
        number = int(name.split()[-1])
        frames = rgb.read_frames(position, range(NAMES[name]))
        for t, jpeg in enumerate(frames):  # in order: each frame is nearest to the picture it shows
            errors = [
                np.abs(rgb_image(jpeg).astype(int) - picture(number, 2 * s)[..., ::-1]).mean()
                for s in range(NAMES[name])
            ]
            assert np.argmin(errors) == t
            assert errors[t] < 8  # two lossy codecs
        image = rgb_image(flow.read_frames(position, [3])[0])
        assert image.shape == (48, 64, 3)
        assert np.abs(image[..., 0].astype(int) - 128).max() <= 3
        motion = np.median(decode_flow(image)[8:-8, 8:-8], axis=(0, 1))
        assert np.abs(motion - [2, 0]).max() < 0.3  # (x, y)


def test_report_classes_and_leftovers(undisturbed):
    report = json.loads((undisturbed / "prepared.json").read_text())
    assert (report["videos"], report["left_out"]) == (9, 0)
    assert report["source_bytes"].keys() == NAMES.keys()
    assert (undisturbed / "classes.txt").read_text(encoding="utf-8").split() == ["Run", "Walk", "ärger"]
    assert sorted(path.name for path in undisturbed.iterdir()) == [
        "classes.txt",
        "flow.lmdb",
        "flow.lmdb-order",
        "left_out.txt",
        "prepared.json",
        "rgb.lmdb",
        "rgb.lmdb-order",
    ]


def test_finished_database_is_recognised_and_other_options_refused(footage, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()}
    (undisturbed / "unfinished").mkdir()  # of a run killed while it tidied up
    (undisturbed / "unfinished/x.rgb").write_text("frames")
    (undisturbed / ".rgb.lmdb.0123.part").write_text("of a run killed while it merged")
    result = run(footage, undisturbed)
    assert result.returncode == 0, result.stderr
    assert "is finished: 9 videos, 0 left out" in result.stderr
    result = run(footage, undisturbed, "--quality", "50")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        f"error: {undisturbed} was begun with other options (--quality 90"
    )
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()}


def test_killed_at_ten_random_moments_and_with_any_number_of_processes(footage, undisturbed, tmp_path):
    out, rng, kills, complete = tmp_path / "out", random.Random(), 0, 0
    while kills < 10 or not complete:
        # the whole group, the main process or one worker; a worker alone is replaced and the run goes on
        victim = ["group", "main", "worker"][kills % 3] if kills < 10 else None
        process = subprocess.Popen(
            command(footage, out, "-j", str(rng.randint(1, 2))),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, stderr = process.communicate(timeout=rng.uniform(0.2, 1.2) if victim else None)
        except subprocess.TimeoutExpired:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if victim == "worker" and children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(children)), signal.SIGKILL)
            elif victim == "main":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            _, stderr = process.communicate()
        if process.returncode == 0:
            assert databases(out) == databases(undisturbed)
            complete += 1
            shutil.rmtree(out)
        else:
            assert process.returncode == -signal.SIGKILL, stderr


@pytest.fixture(scope="module")
def made_by_rank_1(footage, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("half") / "out"
    assert run(footage, out, env=os.environ | {"RANK": "1", "WORLD_SIZE": "2"}).returncode == 0
    return out


@pytest.fixture
def half(made_by_rank_1, tmp_path) -> Path:
    """Four of nine videos are prepared, nothing is merged; to be spoilt."""
    return Path(shutil.copytree(made_by_rank_1, tmp_path / "out"))


def test_several_machines_share_the_work_and_rank_0_merges(footage, undisturbed, tmp_path):
    out = tmp_path / "out"
    ranks = [
        {"RANK": "0", "WORLD_SIZE": "3"},
        {"RANK": "1", "WORLD_SIZE": "3"},
        {"RANK": "2", "WORLD_SIZE": "3"},
    ]
    processes = [
        subprocess.Popen(
            command(footage, out), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | env
        )
        for env in ranks
    ]
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    assert databases(out) == databases(undisturbed)


def test_other_options_than_those_it_was_begun_with_are_refused(footage, half):
    result = run(footage, half, "--bound", "10")
    assert result.returncode == 2
    assert "--bound 20.0 there, 10.0 here" in result.stderr


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("merging", [False, True])  # full while frames are written, or while they are merged
def test_full_disk_loses_nothing(footage, undisturbed, half, tmp_path, merging):
    assert (undisturbed / "rgb.lmdb").stat().st_size > 150_000
    # merging: two shares, each well below the limit that the database exceeds
    out, size, place = (
        (half, 130_000, {"RANK": "0", "WORLD_SIZE": "2"}) if merging else (tmp_path / "new", 18_000, {})
    )
    result = run(footage, out, "-j", "1", env=os.environ | place, preexec_fn=lambda: limit_files(size))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in result.stderr
    done = len(set((out / "unfinished").glob("*.json")) - {out / "unfinished/options.json"})
    assert not list((out / "unfinished").glob(".*.part"))
    assert done == 9 if merging else 0 < done < 9
    result = run(footage, out)
    assert f"9 videos, {done} of them done before" in result.stderr
    assert databases(out) == databases(undisturbed)


def test_full_file_system(footage, undisturbed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(out)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount")
    try:
        result = run(footage, out)
        assert result.returncode == 2
        assert "No space left on device" in result.stderr.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        result = run(footage, out)
        assert result.returncode == 0, result.stderr
        assert databases(out) == databases(undisturbed)
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_broken_videos_are_named_and_left_out(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    frames = [picture(1, t) for t in range(20)]
    good = write_video(videos / "a/good.avi", frames)
    write_video(videos / "a/GOOD.avi", frames[:10])  # another name
    write_video(videos / "b/good.avi", frames[:10])
    write_video(videos / "a/good.mp4", frames[:5], code="mp4v")
    write_video(videos / "b/one.avi", frames[:1])
    (videos / "b/zero.avi").write_bytes(b"")
    (videos / "b/text.avi").write_text("hello\n" * 1000)
    (videos / "b/cut.avi").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    mp4 = write_video(tmp_path / "x.mp4", frames, code="mp4v").read_bytes()
    (videos / "b/cut.mp4").write_bytes(mp4[: len(mp4) // 2])
    (videos / "b/noise.webm").write_bytes(np.random.default_rng(0).bytes(5000))
    write_sound(videos / "b/sound.mkv")
    (videos / "b/read me.txt").write_text("no video")
    (videos / "b/frames").mkdir()
    cv2.imwrite(str(videos / "b/frames/image_1.jpg"), frames[0])
    cv2.imwrite(str(videos / "b/thumbnail.jpg"), frames[0])
    (videos / "b/empty").mkdir()
    (videos / "b/dangling.mp4").symlink_to("nowhere")
    (videos / "b/loop.mp4").symlink_to("loop.mp4")
    (videos / "b/round").symlink_to(videos)
    write_video(videos / "b/two\nlines.avi", frames[:5])
    (videos / "trainlist01.txt").write_text("a/good.avi 1\na/gone.avi 1\nb/good.avi 2\n")
    (videos / "testlist01.txt").write_text("a/GOOD.avi\nb/gone.avi\n")

    result = run(videos, out, "-j", "2")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    left_out = dict(line.split(": ", 1) for line in (out / "left_out.txt").read_text().splitlines())
    reasons = {
        "a/good.mp4": "another video has this name",
        "b/one": "fewer than two frames",
        "b/zero": "no frame",
        "b/text": "no frame",
        "b/noise": "no frame",
        "b/sound": "no frame",
        "b/frames": "fewer than two frames",
        "'b/two\\nlines'": "rename it",
        "b/dangling.mp4": "No such file",
        "b/loop.mp4": "symbolic links",
        "b/round": "a link to a folder that it lies in",
        "a/gone": "no such video",
        "b/gone": "no such video",
    }
    assert left_out.keys() == reasons.keys() | {"b/cut", "b/cut.mp4"}
    assert {name: reason in left_out[name] for name, reason in reasons.items()} == dict.fromkeys(
        reasons, True
    )
    assert "cut short" in left_out["b/cut"]
    assert dict(zip((s := VideoStore(out / "rgb.lmdb")).names, s.frame_counts().tolist(), strict=True)) == {
        "a/good": 20,
        "a/GOOD": 10,
        "b/good": 10,
    }
    report = json.loads((out / "prepared.json").read_text())
    assert report["left_out"] == 15
    assert report["ignored"] == {".txt": 3, ".jpg": 1}
    assert "ignored as no videos: 3 .txt, 1 .jpg" in result.stderr
    assert "left out b/zero: no frame" in result.stderr
    assert (out / "trainlist01.txt").read_bytes() == (videos / "trainlist01.txt").read_bytes()


def test_nothing_that_decodes_ends_the_run_with_a_line_and_what_is_mended_is_tried_again(tmp_path):
    (tmp_path / "videos/a").mkdir(parents=True)
    (tmp_path / "videos/a/x.avi").write_bytes(b"")
    result = run(tmp_path / "videos", tmp_path / "out")
    assert result.returncode == 2
    assert "not one of 1 videos could be prepared" in result.stderr.splitlines()[-1]
    write_video(tmp_path / "videos/a/x.avi", [picture(0, t) for t in range(4)])  # mended
    assert run(tmp_path / "videos", tmp_path / "out").returncode == 0
    assert VideoStore(tmp_path / "out/flow.lmdb").frame_counts().tolist() == [3]


def fails(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*argv])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_bad_arguments_are_one_line(footage, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/rgb.lmdb").write_text("someone's")
    out, videos = ["--out", str(tmp_path / "out")], ["--videos", str(footage)]
    assert "cannot read --videos" in fails(capsys, "x", "--videos", str(tmp_path / "gone"), *out)
    assert "no video file and no folder of frames" in fails(
        capsys, "x", "--videos", str(tmp_path / "empty"), *out
    )
    assert "Not a directory" in fails(capsys, "x", *videos, "--out", str(tmp_path / "file/out"))
    assert "choose a folder outside" in fails(capsys, "x", *videos, "--out", str(footage / "out"))
    assert "were not made by this command" in fails(capsys, "x", *videos, "--out", str(tmp_path / "taken"))
    assert "holds no split lists" in fails(capsys, "x", *videos, *out, "--splits", str(tmp_path / "empty"))
    assert "hmdb51 needs its lists" in fails(capsys, "hmdb51", *videos, *out)
    assert "train/ and val/" in fails(capsys, "k400", *videos, *out)
    for option, value in (("--fps", "0"), ("--fps", "inf"), ("--bound", "inf"), ("--bound", "-1")):
        message = f"{option}: {value} should be a number above 0"
        assert message in fails(capsys, "x", *videos, *out, option, value)
    assert "invalid choice" in fails(capsys, "x", *videos, *out, "--quality", "101")
    assert not (tmp_path / "out").exists()


def test_kinetics_has_two_databases_and_one_class_list(tmp_path):
    videos, out = tmp_path / "k", tmp_path / "out"
    for name in ("train/brush café/a b.mp4", "train/Abseil/x.mp4", "val/zumba/y.mp4"):
        write_video(videos / name, [picture(0, t) for t in range(4)], code="mp4v")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train_split.csv").write_text(
        "/k/train/Abseil/x/,4\n/k/train/Abseil/gone/,9\n", encoding="utf-8"
    )
    (tmp_path / "lists/val_split.csv").write_text("/k/val/zumba/y/,4\n", encoding="utf-8")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "dataset.prepare",
            "k400",
            "--videos",
            str(videos),
            "--out",
            str(out),
            "--streams",
            "rgb",
            "-j",
            "1",
            "--splits",
            str(tmp_path / "lists"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(VideoStore(out / "train/rgb.lmdb").names) == ["Abseil/x", "brush café/a b"]
    assert VideoStore(out / "val/rgb.lmdb").names == ["zumba/y"]
    assert (out / "classes.txt").read_text(encoding="utf-8").splitlines() == ["Abseil", "brush café", "zumba"]
    assert not (out / "val/flow.lmdb").exists()
    gone = "Abseil/gone: the split lists name it, but there is no such video\n"
    assert [(out / part / "left_out.txt").read_text() for part in ("train", "val")] == [gone, ""]


def test_extracted_frames_and_original_csv(tmp_path):
    videos, out = tmp_path / "frames", tmp_path / "out"
    pairs = extract_frames(videos / "a/pairs", flow="pairs")
    whole = extract_frames(videos / "a/whole", 12, flow="3-channel")
    extract_frames(videos / "a/none")
    extract_frames(videos / "a/odd", flow="pairs")
    (videos / "a/odd/flow_y_00002.jpg").unlink()
    extract_frames(videos / "a/torn")
    (videos / "a/torn/image_00002.jpg").write_bytes(pairs["image"][1][:-2])  # decoders forgive it
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train_split02.csv").write_text("/datasets/UCF101/frame/a/pairs/,4\nC:\\frame\\a\\whole\\,12\n")
    (lists / "test_split02.csv").write_text("/frame/a/none/,4\n")
    assert run(videos, out, "--splits", str(lists)).returncode == 0

    rgb, flow = VideoStore(out / "rgb.lmdb"), VideoStore(out / "flow.lmdb")
    assert sorted(rgb.names) == ["a/none", "a/pairs", "a/whole"]
    assert rgb.read_frames(rgb.names.index("a/pairs"), range(4)) == pairs["image"]  # not compressed again
    assert rgb.read_frames(rgb.names.index("a/whole"), range(12)) == whole["image"]  # 10 comes after 9
    assert flow.read_frames(flow.names.index("a/whole"), range(11)) == whole["flow"]
    merged = [rgb_image(jpeg) for jpeg in flow.read_frames(flow.names.index("a/pairs"), range(3))]
    for t, image in enumerate(merged):
        assert np.abs(image.mean(axis=(0, 1)) - [128, 160 - t, 100 + t]).max() <= 1
    computed = decode_flow(rgb_image(flow.read_frames(flow.names.index("a/none"), [1])[0]))
    assert abs(np.median(computed[8:-8, 8:-8, 0]) - 2) < 0.3
    assert "a/odd: flow_y file number 2 is missing" in (out / "left_out.txt").read_text()
    assert "image_00002.jpg is not a whole JPEG" in (out / "left_out.txt").read_text()
    for name in ("train_split02.csv", "test_split02.csv"):
        assert (out / name).read_text() == (lists / name).read_text()


def test_video_that_kills_its_process_twice_is_left_out(footage, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(footage / "Run", videos / "Run")
    pipe = videos / "Run/pipe 1.avi"  # the first in the order of work: its process has another video waiting
    os.mkfifo(pipe)
    process = subprocess.Popen(command(videos, out), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(2):
        with open(pipe, "wb") as end:  # returns when the worker opens the other end
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            (worker,) = (c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text())
            os.kill(int(worker), signal.SIGKILL)
            gone = select.poll()
            gone.register(end, 0)  # POLLERR comes by itself when the worker's end is closed
            assert gone.poll(30_000)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert (out / "left_out.txt").read_text() == "Run/pipe 1: reading it ended the process, twice\n"
    assert sorted(VideoStore(out / "rgb.lmdb").names) == ["Run/v 0", "Run/v 1", "Run/v 2"]


def add_videos(videos: Path, *names: str) -> None:
    for i, name in enumerate(names):
        write_video(videos / name, [picture(i, 2 * t) for t in range(5 + i)])


def test_what_is_new_is_added_to_finished_databases(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    add_videos(videos, "a/1.avi", "b/2.avi", "b/3.avi")
    (videos / "b/4.avi").write_bytes(b"")
    assert run(videos, out).returncode == 0
    add_videos(videos, "c/5.avi")  # new, changed, mended
    write_video(videos / "a/1.avi", [picture(9, t) for t in range(9)])
    write_video(videos / "b/4.avi", [picture(8, t) for t in range(8)])
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "split.csv").write_text("a/1,train\nb/2,test\nc/6,test\n")
    result = run(videos, out, "--splits", str(lists))
    assert result.returncode == 0, result.stderr
    assert "5 videos, 2 of them done before" in result.stderr
    assert "is finished: 5 videos, 1 left out" in result.stderr
    at_once = tmp_path / "at_once"
    assert run(videos, at_once, "--splits", str(lists)).returncode == 0
    assert databases(out) == databases(at_once)
    assert (out / "classes.txt").read_text().split() == ["a", "b", "c"]
    reports = [json.loads((folder / "prepared.json").read_text()) for folder in (out, at_once)]
    assert reports[0] == reports[1]


def test_other_lists_alone_reach_finished_databases(footage, undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    (tmp_path / "split.csv").write_text("Run/v 0,train\nRun/v 1,test\nRun/gone,test\n")
    result = run(footage, out, "--splits", str(tmp_path))
    assert result.returncode == 0
    assert "is finished: 9 videos, 1 left out" in result.stderr
    assert (out / "split.csv").read_text() == (tmp_path / "split.csv").read_text()
    assert (out / "left_out.txt").read_text().startswith("Run/gone: the split lists name it")
    (tmp_path / "split.csv").rename(tmp_path / "trainlist01.txt")
    result = run(footage, out, "--splits", str(tmp_path))
    assert result.returncode == 2
    assert "split.csv is not among the lists in" in result.stderr.splitlines()[-1]


def test_other_videos_than_the_finished_ones_are_refused(footage, undisturbed, tmp_path):
    shutil.copytree(footage / "Run", tmp_path / "videos/Run")
    before = databases(undisturbed)
    result = run(tmp_path / "videos", undisturbed)
    assert result.returncode == 2
    assert (
        f"{undisturbed} holds 6 videos that {tmp_path / 'videos'} lacks, e.g. Walk/v 3; it was made from "
        f"{footage}" in result.stderr.splitlines()[-1]
    )
    assert databases(undisturbed) == before


def test_the_same_command_twice_at_once(footage, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(command(footage, out), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("unfinished/*.owner")):
        assert first.poll() is None
    second = run(footage, out)
    assert "Traceback" not in second.stderr
    assert second.returncode == 2 or "is finished" in second.stderr
    if second.returncode:
        assert f"{out} is being prepared by another command (process {first.pid} on " in second.stderr
    assert first.wait() == 0
    first.stderr.close()
    assert databases(out) == databases(undisturbed)


def test_footage_without_labels(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    add_videos(videos, "flat.avi", "2023/01/cam.avi", "2023/02.avi")
    extract_frames(videos / "frames")
    result = run(videos, out)
    assert result.returncode == 0, result.stderr
    assert "3 of 4 videos lie in no folder of a class, e.g. 2023/01/cam: there" in result.stderr
    assert sorted(VideoStore(out / "rgb.lmdb").names) == ["2023/01/cam", "2023/02", "flat", "frames"]
    assert (out / "classes.txt").read_text() == ""


def test_any_name_in_train_and_val_is_prepared_in_parts(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    add_videos(videos, "train/a/1.avi", "train/b/2.avi", "val/a/3.avi", "test/a/4.avi")
    result = run(videos, out, "--streams", "rgb")
    assert result.returncode == 0, result.stderr
    assert sorted(VideoStore(out / "train/rgb.lmdb").names) == ["a/1", "b/2"]
    assert VideoStore(out / "val/rgb.lmdb").names == ["a/3"]
    assert (out / "classes.txt").read_text().split() == ["a", "b"]
    assert f"{videos / 'test'} is not read" in result.stderr


def test_a_video_that_broke_since_leaves_the_finished_databases(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    add_videos(videos, "a/1.avi", "b/2.avi")
    assert run(videos, out).returncode == 0
    (videos / "b/2.avi").write_bytes(b"")
    result = run(videos, out)
    assert "is finished: 1 videos, 1 left out" in result.stderr
    assert [VideoStore(out / f"{stream}.lmdb").names for stream in ("rgb", "flow")] == [["a/1"]] * 2
    assert (out / "classes.txt").read_text() == "a\n"
    (out / "flow.lmdb").unlink()  # someone wants it made anew
    assert "2 videos, 0 of them done before" in run(videos, out).stderr
    assert VideoStore(out / "flow.lmdb").names == ["a/1"]


def test_an_order_of_the_classes_of_ones_own_stays(footage, undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    (out / "classes.txt").write_text("ärger\nWalk\nRun\n", encoding="utf-8")
    assert run(footage, out).returncode == 0
    assert (out / "classes.txt").read_text(encoding="utf-8").split() == ["ärger", "Walk", "Run"]
    (out / "classes.txt").unlink()
    assert run(footage, out).returncode == 0
    assert (out / "classes.txt").read_text(encoding="utf-8").split() == ["Run", "Walk", "ärger"]


def test_frames_that_were_replaced_are_prepared_anew(tmp_path):
    videos, out = tmp_path / "frames", tmp_path / "out"
    for name in ("a/x", "a/y"):
        extract_frames(videos / name, flow="pairs")
    assert run(videos, out).returncode == 0
    before = databases(out)
    for path in (videos / "a/x").glob("image_*"):
        path.write_bytes(cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    result = run(videos, out)
    assert result.returncode == 0, result.stderr
    assert "2 videos, 1 of them done before" in result.stderr
    assert databases(out) != before
    report = json.loads((out / "prepared.json").read_text())
    images = {name: len(list((videos / name).iterdir())) for name in report["source_bytes"]}
    (out / "prepared.json").write_text(json.dumps(report | {"source_bytes": images}))  # as earlier versions
    assert "is finished: 2 videos" in run(videos, out).stderr
    (out / "prepared.json").write_text('{"options": ')
    result = run(videos, out)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "prepared.json is damaged" in result.stderr

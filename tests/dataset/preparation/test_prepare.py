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
import tempfile
import tracemalloc
import wave
from pathlib import Path

import cv2
import msgpack
import numpy as np
import pytest
from footage import extract_frames, picture, rgb_image, write_video
from PIL import Image

from dataset.jpeg import decode, decode_whole
from dataset.preparation import write as parts
from dataset.preparation.decode import decode_video
from dataset.preparation.find import Video, class_list, find_videos
from dataset.preparation.flow import compute_flow, decode_flow, encode_flow
from dataset.preparation.frames import Options, make_frames, resize
from dataset.preparation.prepare import main
from dataset.store import BrokenVideo, VideoStore
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
FAST = ["--flow", "dis", "-j", "1"]


def write_sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Three classes of three videos with 6 ... 14 frames that move 2 pixels right per frame, in three containers."""
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
    assert report["streams"]["rgb"]["frames"] == sum(NAMES.values())
    assert report["streams"]["flow"]["frames"] == sum(NAMES.values()) - 9
    assert report["process_seconds"] > report["flow_seconds"] > 0
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
    for leftover in ("unfinished", "merged"):  # of runs killed while they tidied up
        (undisturbed / leftover).mkdir()
        (undisturbed / leftover / "x.rgb").write_text("frames")
    result = run(footage, undisturbed)
    assert result.returncode == 0
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


def test_what_was_torn_is_done_again(footage, undisturbed, half):
    (journal,) = (path for path in (half / "unfinished").glob("*.jsonl") if path.stat().st_size)
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_text("".join(lines[:-1]) + lines[-1][:40])  # as after a kill
    part = journal.with_suffix(".flow")
    os.truncate(part, sum(json.loads(lines[2])["records"]["flow"][:2]) - 1)  # as after a power cut
    result = run(footage, half)
    assert "9 videos, 2 of them done before" in result.stderr
    assert databases(half) == databases(undisturbed)


def test_several_machines_share_the_work_and_rank_0_merges(footage, undisturbed, tmp_path):
    out = tmp_path / "out"
    ranks = [
        {"RANK": "0", "WORLD_SIZE": "3"},
        {"RANK": "1", "WORLD_SIZE": "3"},
        {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"},
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


def test_merge_refuses_what_is_incomplete(footage, half):
    result = run(footage, half, "--merge")
    assert result.returncode == 2
    assert "5 of 9 videos are not prepared yet" in result.stderr
    assert not list(half.glob("*.lmdb*"))
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
        (half, 130_000, {"RANK": "0", "WORLD_SIZE": "2"}) if merging else (tmp_path / "new", 25_000, {})
    )
    result = run(footage, out, "-j", "1", env=os.environ | place, preexec_fn=lambda: limit_files(size))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in result.stderr
    done = sum(len(path.read_text().splitlines()) for path in (out / "unfinished").glob("*.jsonl"))
    assert done == 9 if merging else 0 < done < 9
    result = run(footage, out)
    assert f"9 videos, {done} of them done before" in result.stderr
    assert databases(out) == databases(undisturbed)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
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
    (videos / "b/folder").mkdir()
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
        "b/folder": "fewer than two frames",
        "'b/two\\nlines'": "rename it",
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
    assert json.loads((out / "prepared.json").read_text())["left_out"] == 12
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
    assert "one folder per class" in fails(capsys, "x", "--videos", str(tmp_path / "empty"), *out)
    assert "Not a directory" in fails(capsys, "x", *videos, "--out", str(tmp_path / "file/out"))
    assert "choose a folder outside" in fails(capsys, "x", *videos, "--out", str(footage / "out"))
    assert "were not made by this command" in fails(capsys, "x", *videos, "--out", str(tmp_path / "taken"))
    assert "holds no split lists" in fails(capsys, "x", *videos, *out, "--splits", str(tmp_path / "empty"))
    assert "hmdb51 needs its lists" in fails(capsys, "hmdb51", *videos, *out)
    assert "train/ and val/" in fails(capsys, "k400", *videos, *out)
    assert "--fps 0.0 should be more than 0" in fails(capsys, "x", *videos, *out, "--fps", "0")
    assert "invalid choice" in fails(capsys, "x", *videos, *out, "--quality", "101")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="root reads everything and can become someone who does not")
def test_unreadable_class_folder_is_named():
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder)
        write_video(videos / "a/x.avi", [picture(0)])
        (videos / "b").mkdir(mode=0o000)
        videos.chmod(0o755)
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            found, left_out = find_videos(videos)
            os._exit(
                not (
                    [v.name for v in found] == ["a/x"]
                    and left_out == {"b": "cannot read the folder: Permission denied"}
                )
            )
        assert os.waitpid(child, 0)[1] == 0


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
    assert (out / "trainlist02.txt").read_text() == "a/pairs\na/whole\n"
    assert (out / "testlist02.txt").read_text() == "a/none\n"


def test_too_long_a_video_takes_no_room(footage, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MAX_RECORD_BYTES", 15_000)
    part = parts.Part(tmp_path, Options(flow="dis"))
    short, long = (
        Video("Run/v 0", str(footage / "Run/v 0.avi")),
        Video("ärger/v 8", str(footage / "ärger/v 8.avi")),
    )
    first = part.add(short)["records"]
    assert "more than 0 MB of rgb frames" in part.add(long)["left_out"]
    assert os.path.getsize(f"{part.path}.rgb") == sum(first["rgb"][:2])
    again = part.add(short)["records"]
    for stream in ("rgb", "flow"):  # it starts where the first ended
        assert again[stream][0] == sum(first[stream][:2]) + first[stream][0]
    entries = parts.read_journals(tmp_path)
    assert [name for name, entry in entries.items() if "records" in entry] == ["Run/v 0"]
    record, count = parts.read_part(f"{part.path}.rgb", *again["rgb"])
    assert count == 6
    assert len(msgpack.unpackb(record, raw=True)) == 6


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    def peak(count: int) -> int:
        video = Video(
            "a/x", str(write_video(tmp_path / f"{count}.avi", [picture(t % 7) for t in range(count)]))
        )
        part = parts.Part(tmp_path, Options(("rgb",)))
        tracemalloc.start()
        records = part.add(video)["records"]
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert records["rgb"][2] == count
        return highest

    peak(10)  # what is allocated once
    assert peak(1000) < peak(10) + 100_000  # the frames of the longer one take 2 MB


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
    assert (out / "left_out.txt").read_text() == "Run/pipe 1: reading it crashed (exit status -9)\n"
    assert sorted(VideoStore(out / "rgb.lmdb").names) == ["Run/v 0", "Run/v 1", "Run/v 2"]


def test_a_jpeg_without_its_end_is_not_whole():
    jpeg = cv2.imencode(".jpg", picture(0))[1].tobytes()
    for whole in (jpeg, jpeg + b"\0\0"):  # padding
        assert np.array_equal(decode_whole(whole), decode(jpeg))
    for torn in (jpeg[:-2], b""):
        with pytest.raises(ValueError, match="its end is missing"):
            decode_whole(torn)


def test_resize_keeps_aspect_and_antialiases():
    image = picture(0, size=(96, 64))
    small = resize(image, 32)
    assert small.shape == (32, 48, 3)
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).max() <= 1
    assert resize(image.transpose(1, 0, 2), 32).shape == (48, 32, 3)
    assert resize(image, 128).shape == (128, 192, 3)
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::3] = 255
    assert np.unique(resize(stripes, 32)).tolist() == [85]  # a third of the light


def test_short_side_fps_quality_and_bound_reach_the_frames(tmp_path):
    video = Video("a/x", str(write_video(tmp_path / "x.avi", [picture(0, t) for t in range(30)], fps=30)))
    frames = dict.fromkeys(("rgb", "flow"), 0)
    for stream, jpeg in make_frames(video, Options(flow="dis", short_side=32, fps=10), [0.0]):
        frames[stream] += 1
        assert rgb_image(jpeg).shape == (32, 43, 3)
    assert frames == {"rgb": 10, "flow": 9}
    sizes = [
        sum(len(jpeg) for _, jpeg in make_frames(video, Options(("rgb",), quality=q), [0.0]))
        for q in (50, 95)
    ]
    assert sizes[0] < 0.7 * sizes[1]
    for bound, level in ((20, 134), (5, 153)):  # one pixel to the right: 127.5 * (1 + 1 / bound)
        (flow, *_) = [j for s, j in make_frames(video, Options(("flow",), flow="dis", bound=bound), [0.0])]
        assert abs(np.median(rgb_image(flow)[8:-8, 8:-8, 2].astype(int)) - level) <= 3


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(10, [0, 3, 6, 9, 12]), (20, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]), (60, list(range(15)))],
)
def test_fps_leaves_out_frames_evenly(tmp_path, fps, expected):
    grey = [np.full((32, 32, 3), 10 + 15 * t, np.uint8) for t in range(15)]
    video = Video("a/x", str(write_video(tmp_path / "x.avi", grey, fps=30)))
    assert [round((frame.mean() - 10) / 15) for frame in decode_video(video.path, fps)] == expected


def test_flow_is_that_of_the_stored_frames(tmp_path):
    video = Video("a/x", str(write_video(tmp_path / "x.avi", [picture(0, t) for t in range(3)])))
    options, clock = Options(quality=30), [0.0]
    made = list(make_frames(video, options, clock))
    assert [stream for stream, _ in made] == ["rgb", "rgb", "flow", "rgb", "flow"]
    grey = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for _, jpeg in made[:2]]
    truth = encode_flow(compute_flow(*grey, "tvl1"))[..., ::-1]
    assert made[2][1] == cv2.imencode(".jpg", truth, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()
    assert clock[0] > 0


def test_class_list_follows_class_ind_where_that_has_all(tmp_path):
    names = ["b/1", "A/1", "c d/1"]
    assert class_list(tmp_path, names) == ["A", "b", "c d"]
    (tmp_path / "classInd.txt").write_text("1 c d\n2 b\n3 A\n4 e\n")
    assert class_list(tmp_path, names) == ["c d", "b", "A", "e"]
    (tmp_path / "classInd.txt").write_text("1 b\n")
    assert class_list(tmp_path, names) == ["A", "b", "c d"]


def test_broken_video_of_an_unreadable_folder(tmp_path):
    with pytest.raises(BrokenVideo, match="no frame of"):
        list(decode_video(str(tmp_path / "gone.avi")))
    with pytest.raises(UserError, match="cannot read --videos"):
        find_videos(tmp_path / "gone")

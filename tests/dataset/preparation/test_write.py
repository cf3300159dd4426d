import json
import os
import re
import select
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import av
import msgpack
import pytest
from coded import write_coded
from footage import picture, write_video
from runs import ROOT

from dataset.footage import Video
from dataset.preparation import frames, write
from dataset.preparation.frames import Options
from dataset.preparation.write import done_path, prepare_video, prepare_videos, read_notes

RGB = Options(("rgb",))


def make_video(path: Path, frames: int, name: str = "a/x") -> Video:
    write_video(path, [picture(t % 7) for t in range(frames)])
    return Video(name, str(path), path.stat().st_size)


def frames_of(path: Path) -> list[bytes]:
    return list(msgpack.Unpacker(path.open("rb"), raw=True))


def test_files_and_note_of_a_finished_video(tmp_path):
    video = make_video(tmp_path / "x.avi", 6)
    out = tmp_path / "out"
    note = prepare_video(video, out, Options(flow="dis"))
    files = {stream: frames_of(done_path(out, "a/x", stream)) for stream in ("rgb", "flow")}
    assert {stream: len(frames) for stream, frames in files.items()} == {"rgb": 6, "flow": 5}
    assert all(jpeg.startswith(b"\xff\xd8") for frames in files.values() for jpeg in frames)
    assert note["records"] == {
        stream: {"frames": len(frames), "bytes": done_path(out, "a/x", stream).stat().st_size}
        for stream, frames in files.items()
    }
    assert json.loads(done_path(out, "a/x", "json").read_text()) == note
    assert len(list(out.iterdir())) == 3
    assert read_notes(out, [video, Video("a/y", "")]) == {"a/x": note}
    changed = make_video(tmp_path / "x.avi", 7)
    assert read_notes(out, [changed]) == {}


def fail(error: OSError, *_):
    """In place of ``decode_video``."""
    yield from ()
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "fewer than two frames"),
        (PermissionError(13, "Permission denied"), "cannot read .*x.avi: Perm"),
    ],
)
def test_left_out_videos_have_a_note_alone(tmp_path, monkeypatch, error, reason):
    video = make_video(tmp_path / "x.avi", 1)
    if error:
        monkeypatch.setattr(frames, "decode_video", partial(fail, error))
    note = prepare_video(video, tmp_path / "out", RGB)
    assert "records" not in note
    assert re.search(reason, note["left_out"])
    assert list((tmp_path / "out").iterdir()) == [done_path(tmp_path / "out", "a/x", "json")]


def test_faults_that_decoding_met_are_noted(tmp_path):
    path = write_coded(tmp_path / "x.avi", codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as file:
        start, size = [(packet.pos, packet.size) for packet in file.demux(video=0)][7]
    data = bytearray(path.read_bytes())
    data[start + 8 : start + size] = bytes(size - 8)
    path.write_bytes(data)
    note = prepare_video(Video("a/x", str(path), len(data)), tmp_path / "out", RGB)
    assert note["records"]["rgb"]["frames"] == 39
    assert note["remarks"] == "1 frames that cannot be decoded"


def test_too_long_a_video_is_left_out(tmp_path, monkeypatch):
    video = make_video(tmp_path / "x.avi", 14)
    monkeypatch.setattr(write, "MAX_RECORD_BYTES", 15_000)
    note = prepare_video(video, tmp_path / "out", RGB)
    assert note["left_out"] == "more than 0 MB of rgb frames; cut it"


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    def peak(count: int) -> int:
        video = make_video(tmp_path / f"{count}.avi", count)
        tracemalloc.start()
        note = prepare_video(video, tmp_path / "out", RGB)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert note["records"]["rgb"]["frames"] == count
        return highest

    peak(10)  # what is allocated once
    assert peak(1000) < peak(10) + 100_000  # the frames of the longer one take 2 MB


def crashing(video: Video, folder: Path, options: Options) -> dict:
    """In place of ``prepare_video``: a decoder that crashes at videos of class "crash"."""
    if video.name.startswith("crash/"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare_video(video, folder, options)


def test_a_video_that_ends_its_process_twice_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "prepare_video", crashing)
    videos = [make_video(tmp_path / f"{i}.avi", 4, f"{'crash' if i == 1 else 'a'}/{i}") for i in range(5)]
    (tmp_path / "out").mkdir()
    notes = {note["video"]: note for note in prepare_videos(videos, tmp_path / "out", RGB, jobs=2)}
    assert notes.keys() == {"a/0", "crash/1", "a/2", "a/3", "a/4"}
    assert notes == read_notes(tmp_path / "out", videos)
    assert notes["crash/1"]["left_out"] == "reading it ended the process, twice"
    assert sum("records" in note for note in notes.values()) == 4


ENDLESS = """
import sys
from contextlib import closing
from pathlib import Path
from dataset.footage import Video
from dataset.preparation.frames import Options
from dataset.preparation.write import prepare_videos
if __name__ == "__main__":
    videos = [Video("a/quick", sys.argv[2]), Video("a/pipe", sys.argv[3])]
    with closing(prepare_videos(videos, Path(sys.argv[1]), Options(("rgb",)), 2)) as notes:
        print(next(notes)["video"], flush=True)
        sys.stdin.readline()
        raise SystemExit("an error")
"""


@pytest.mark.parametrize("killed", [False, True])
def test_processes_at_work_end_with_the_command(tmp_path, killed):
    video = make_video(tmp_path / "x.avi", 4)
    pipe = tmp_path / "pipe.avi"
    os.mkfifo(pipe)  # whoever reads it waits for ever
    (tmp_path / "program.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), video.path, str(pipe)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with open(pipe, "wb") as writing:  # waits for a process that reads it
            assert process.stdout.readline() == b"a/quick\n"
            if killed:
                process.kill()
            else:
                process.stdin.close()
            gone = select.poll()
            gone.register(writing, 0)  # POLLERR comes by itself when nobody reads it any more
            assert gone.poll(60_000)

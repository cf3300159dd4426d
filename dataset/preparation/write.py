"""Videos prepared by many processes: a finished one is a file per stream in OUT/unfinished, and a note.

Files are written under names of their own and renamed when they are whole, the note (what is in them, or why
the video is left out) last: a video is done when its note exists, whoever was killed, and any number of
processes may work there.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgpack

from dataset.catalogue import STREAMS
from dataset.decode import Report
from dataset.footage import Video
from dataset.isolation import in_processes
from dataset.preparation.frames import Options, make_frames
from dataset.source import BrokenVideo
from utils.files import write_atomically

MAX_RECORD_BYTES = 1 << 30  # a record is one value of the database and passes through memory whole
REMEDY = "what was finished is kept: make room or mend that, and start the same command again"


def done_path(folder: Path, name: str, kind: str) -> Path:
    """Place of what is finished of a video: its frames of a stream, or the "json" note."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()}.{kind}"


def prepare_video(video: Video, folder: Path, options: Options) -> dict:
    """Write the frames of one video and its note, which is returned; UserError where that is not possible.

    The note: "video" is its name, "source_bytes" the size of its file; then "records" {stream: {"frames",
    "bytes"}} and "remarks" on faults that decoding met, or "left_out", the reason.
    """
    report = Report()
    try:
        made = {"records": _write_frames(video, folder, options, report), "remarks": report.remarks()}
    except BrokenVideo as error:
        made = {"left_out": error.reason}
    return write_note(folder, video, made)


def write_note(folder: Path, video: Video, made: dict) -> dict:
    """From here on the video is done, whatever is killed; returns the note."""
    note = {"video": video.name, "source_bytes": video.size} | made
    with write_atomically(done_path(folder, video.name, "json"), REMEDY) as file:
        file.write(json.dumps(note).encode())
    return note


def read_notes(folder: Path, videos: Iterable[Video]) -> dict[str, dict]:
    """Notes by name of those ``videos`` that are done; a file that has changed since is not."""
    present = set(os.listdir(folder))
    notes = {}
    for video in videos:
        path = done_path(folder, video.name, "json")
        if path.name in present:
            note = json.loads(path.read_text(encoding="utf-8"))
            if video.has_size(note["source_bytes"]):
                notes[video.name] = note
    return notes


def _write_frames(video: Video, folder: Path, options: Options, report: Report) -> dict[str, dict[str, int]]:
    """Write a video's frames to a file per stream; {stream: {"frames", "bytes"}}. Raises BrokenVideo."""
    counts = dict.fromkeys(options.streams, 0)
    with contextlib.ExitStack() as stack:
        files = {
            stream: stack.enter_context(write_atomically(done_path(folder, video.name, stream), REMEDY))
            for stream in options.streams
        }
        for stream, jpeg in make_frames(video, options, report):
            files[stream].write(msgpack.packb(jpeg, use_bin_type=False))
            counts[stream] += 1
            if files[stream].tell() > MAX_RECORD_BYTES:
                limit = f"{MAX_RECORD_BYTES >> 20} MB of {stream} frames"
                raise BrokenVideo(video.name, f"more than {limit}; cut it")
        if any(count < 2 - STREAMS[stream].frames_lacking for stream, count in counts.items()):
            raise BrokenVideo(video.name, "fewer than two frames")
        return {stream: {"frames": counts[stream], "bytes": file.tell()} for stream, file in files.items()}


def prepare_videos(videos: list[Video], folder: Path, options: Options, jobs: int) -> Iterator[dict]:
    """Note of each video as it is finished, by ``jobs`` processes, see ``in_processes``."""
    prepare = functools.partial(prepare_video, folder=folder, options=options)
    # OpenCV's threads do not survive a fork
    with contextlib.closing(in_processes(prepare, videos, jobs, "spawn")) as finished:
        for video, note in finished:
            yield note or write_note(folder, video, {"left_out": "reading it ended the process, twice"})

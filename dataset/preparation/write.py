"""Videos prepared by many processes: a finished one is a file per stream in OUT/unfinished, and a note.

Files are written under names of their own and renamed when they are whole, the note (what is in them, or why
the video is left out) last: a video is done when its note exists, whoever was killed, and any number of
processes may work there.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import msgpack

from dataset.catalogue import STREAMS
from dataset.decode import Report
from dataset.footage import Video
from dataset.preparation.frames import Options, make_frames
from dataset.store import BrokenVideo
from utils.errors import UserError
from utils.files import write_atomically
from utils.memory import keep_freed_memory

MAX_CRASHES = 10  # so many videos before the first success, and it is not the videos
MAX_RECORD_BYTES = 1 << 30  # a record is one value of the database and passes through memory whole
REMEDY = "what was finished is kept: make room or mend that, and start the same command again"


def done_path(folder: Path, name: str, kind: str) -> Path:
    """Place of what is finished of a video: its frames of a stream, or the "json" note."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()}.{kind}"


def prepare_video(video: Video, folder: Path, options: Options) -> dict:
    """Write the frames of one video and its note, which is returned; UserError where that is not possible.

    The note: "video" is its name, "source_bytes" the size of its file; then "records" {stream: {"frames",
    "bytes"}} and, where decoding met anything, "remarks", or "left_out", the reason; "seconds" that it took
    and "flow_seconds" of them in the flow method.
    """
    start = time.perf_counter()
    flow_clock = [0.0]
    report = Report()
    try:
        frames = _readable(video, make_frames(video, options, flow_clock, report))
        made: dict = {"records": _write_frames(video, frames, folder, options.streams)}
        remarks = describe(report, options)
        if remarks:
            made["remarks"] = remarks
    except BrokenVideo as error:
        made = {"left_out": error.reason}
    made |= {"seconds": time.perf_counter() - start, "flow_seconds": flow_clock[0]}
    return write_note(folder, video, made)


def describe(report: Report, options: Options) -> str:
    """What is to be said of a video that was decoded, if anything."""
    remarks = [
        f"{count} frames {what}"
        for count, what in (
            (report.concealed, "with faults that the decoder concealed"),
            (report.lost, "that cannot be decoded"),
            (report.rescaled, "of another size than the first, scaled to it"),
        )
        if count
    ]
    if report.pixel_aspect != 1:
        kept = "kept as they are" if options.short_side is None else "made square"
        remarks.append(f"pixels of {report.pixel_aspect} (width by height) {kept}")
    return "; ".join(remarks)


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
            if note["source_bytes"] == video.size:
                notes[video.name] = note
    return notes


def _write_frames(
    video: Video, frames: Iterator[tuple[str, bytes]], folder: Path, streams: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Write a video's frames to a file per stream; {stream: {"frames", "bytes"}}. Raises BrokenVideo."""
    counts = dict.fromkeys(streams, 0)
    with contextlib.ExitStack() as stack:
        files = {
            stream: stack.enter_context(write_atomically(done_path(folder, video.name, stream), REMEDY))
            for stream in streams
        }
        for stream, jpeg in frames:
            files[stream].write(msgpack.packb(jpeg, use_bin_type=False))
            counts[stream] += 1
            if files[stream].tell() > MAX_RECORD_BYTES:
                limit = f"{MAX_RECORD_BYTES >> 20} MB of {stream} frames"
                raise BrokenVideo(video.name, f"more than {limit}; cut it")
        if any(count < 2 - STREAMS[stream].frames_lacking for stream, count in counts.items()):
            raise BrokenVideo(video.name, "fewer than two frames")
        return {stream: {"frames": counts[stream], "bytes": file.tell()} for stream, file in files.items()}


def _readable(video: Video, frames: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The frames; what the system says of a file that it cannot read is a fault of the video."""
    try:
        yield from frames
    except OSError as error:
        raise BrokenVideo(video.name, f"cannot read {video.path}: {error.strerror or error}") from error


def prepare_videos(videos: list[Video], folder: Path, options: Options, jobs: int) -> Iterator[dict]:
    """Note of each video as it is finished, by ``jobs`` processes.

    Each process is a pool of its own, so that one that dies (a decoder can crash) takes no other along: it is
    replaced, and the video that it was at is tried once more, then left out. All end, in whatever they do,
    when this generator is closed or its process ends.
    """
    context = multiprocessing.get_context("spawn")
    lifeline, our_end = context.Pipe(duplex=False)

    def start_worker() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _set_up_worker, (lifeline,))

    waiting = deque(videos)
    idle = [start_worker() for _ in range(min(jobs, len(videos)))]
    running: dict[Future, tuple[ProcessPoolExecutor, Video]] = {}
    crashes: Counter = Counter()
    finished = 0
    try:
        while waiting or running:
            while waiting and idle:
                worker = idle.pop()
                video = waiting.popleft()
                try:
                    future = worker.submit(prepare_video, video, folder, options)
                except BrokenProcessPool:  # killed while it had nothing to do
                    worker = start_worker()
                    future = worker.submit(prepare_video, video, folder, options)
                running[future] = worker, video
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, video = running.pop(future)
                if not isinstance(future.exception(), BrokenProcessPool):
                    idle.append(worker)
                    finished += 1
                    yield future.result()
                    continue
                idle.append(start_worker())
                crashes[video.name] += 1
                if finished == 0 and len(crashes) > MAX_CRASHES:
                    raise UserError(
                        f"the first {len(crashes)} videos all ended the process that read them; more than "
                        "the videos is broken"
                    )
                if crashes[video.name] == 1:
                    waiting.append(video)
                else:
                    yield write_note(folder, video, {"left_out": "reading it ended the process, twice"})
    finally:
        our_end.close()


def _set_up_worker(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_the_command, args=(lifeline,), daemon=True).start()


def _end_with_the_command(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when the other end is closed or killed
    os._exit(1)

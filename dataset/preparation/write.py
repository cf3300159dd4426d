"""Restartable preparation by many processes: each appends the videos it has finished to a part of its own.

A part is OUT/unfinished/<id>.{rgb,flow}, the records, and <id>.jsonl, the journal that says where they lie. A video is
committed when the journal names it; what a killed process had not noted is as if never written.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cv2
import msgpack

from dataset.preparation.find import Video
from dataset.preparation.frames import Options, make_frames
from dataset.store import BrokenVideo
from utils.errors import UserError

MAX_CRASHES = 10  # so many videos before the first success, and it is not the videos
SYNC_SECONDS = 5.0
AHEAD = 2  # videos given to a process at once
HEADER_BYTES = 5  # room before the frames for the longest head of a record
MAX_RECORD_BYTES = 1 << 30  # a record is one value of the database and passes through memory whole


class Part:
    """Finished videos of one process: OUT/unfinished/<id>.{rgb,flow} hold the records, <id>.jsonl says where."""

    def __init__(self, folder: Path, options: Options):
        self.options = options
        self.path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.files = {stream: open(f"{self.path}.{stream}", "xb", 1 << 20) for stream in options.streams}
        self.journal = open(f"{self.path}.jsonl", "x", encoding="utf-8")
        self.synced = time.monotonic()

    def add(self, video: Video) -> dict:
        """Prepare one video and return its journal entry; raises OSError where OUT cannot be written."""
        start, flow_clock = time.perf_counter(), [0.0]
        offsets = {stream: file.tell() for stream, file in self.files.items()}
        entry: dict = {"video": video.name}
        try:
            counts = self._write_frames(video, offsets, flow_clock)
            entry["records"] = {
                stream: self._head(stream, offsets[stream], counts[stream]) for stream in self.files
            }
        except BrokenVideo as error:
            entry["left_out"] = error.reason
            for stream, file in self.files.items():
                file.seek(offsets[stream])
                file.truncate()
        except OSError:
            for stream, file in self.files.items():
                os.ftruncate(
                    file.fileno(), offsets[stream]
                )  # not by the file object, which would write first
            raise
        return self.note(entry | {"seconds": time.perf_counter() - start, "flow_seconds": flow_clock[0]})

    def _head(self, stream: str, offset: int, count: int) -> list[int]:
        """Put the head before the frames at ``offset``, now that their number is known: [start, length, frames]."""
        file, head = self.files[stream], msgpack.Packer().pack_array_header(count)
        end, start = file.tell(), offset + HEADER_BYTES - len(head)
        file.seek(start)
        file.write(head)
        file.seek(end)
        return [start, end - start, count]

    def note(self, entry: dict) -> dict:
        """Commit: from here on no kill of this process can lose the video, and after SYNC_SECONDS no power cut."""
        for file in self.files.values():
            file.flush()
        if time.monotonic() - self.synced > SYNC_SECONDS:
            for file in (*self.files.values(), self.journal):
                os.fsync(file.fileno())
            self.synced = time.monotonic()
        self.journal.write(json.dumps(entry) + "\n")
        self.journal.flush()
        return entry | {"part": str(self.path)}

    def _write_frames(self, video: Video, offsets: dict[str, int], flow_clock: list[float]) -> Counter:
        counts: Counter = Counter()
        parent = multiprocessing.parent_process()
        for file in self.files.values():
            file.write(bytes(HEADER_BYTES))
        for stream, jpeg in make_frames(video, self.options, flow_clock):
            if parent and os.getppid() != parent.pid:
                raise SystemExit  # the main process was killed, so nobody waits for this
            file = self.files[stream]
            file.write(msgpack.packb(jpeg, use_bin_type=False))
            counts[stream] += 1
            if file.tell() - offsets[stream] > MAX_RECORD_BYTES:
                raise BrokenVideo(
                    video.name, f"more than {MAX_RECORD_BYTES >> 20} MB of {stream} frames; cut it"
                )
        if any(counts[stream] < (2 if stream == "rgb" else 1) for stream in self.files):
            raise BrokenVideo(video.name, "fewer than two frames")
        return counts


def work(connection: Connection, folder: Path, options: Options) -> None:
    """Worker process: prepares the videos that come in, answers with their journal entries."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, ConnectionError):  # the main process has closed its end, or was killed
        try:
            part = Part(folder, options)
            while True:
                connection.send(part.add(connection.recv()))
        except (OSError, UserError) as error:
            connection.send(error)


def prepare_videos(videos: list[Video], folder: Path, options: Options, jobs: int) -> Iterator[dict]:
    """Journal entry of each video as it is finished, by ``jobs`` processes.

    Each has the next video before it asks, so that none waits for who takes the entries. A process that dies (a decoder
    can crash) is replaced; the video it was at is tried once more, then left out.
    """
    context = multiprocessing.get_context("spawn")
    waiting, crashes, finished = deque(videos), Counter(), 0
    workers: dict[Connection, tuple[multiprocessing.Process, deque[Video]]] = {}  # with the videos each has
    try:
        while waiting or any(given for _, given in workers.values()):
            while len(workers) < min(jobs, len(videos)):
                connection, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, folder, options), daemon=True)
                process.start()
                theirs.close()
                workers[connection] = process, deque()
            for ahead in range(AHEAD):
                for connection, (_, given) in workers.items():
                    if len(waiting) > len(workers) * bool(ahead) and len(given) == ahead:
                        given.append(waiting.popleft())
                        with contextlib.suppress(BrokenPipeError):  # it died: its end is noticed below
                            connection.send(given[-1])
            for connection in wait(workers):
                process, given = workers[connection]
                try:
                    entry = connection.recv()
                    if isinstance(entry, Exception):
                        raise entry
                    given.popleft()
                except (EOFError, ConnectionError):
                    process.join()
                    del workers[connection]
                    if not given:
                        continue
                    video = given.popleft()
                    waiting.extendleft(reversed(given))
                    crashes[video.name] += 1
                    if finished == 0 and len(crashes) > MAX_CRASHES:
                        raise UserError(
                            f"the first {len(crashes)} videos all ended the process that read them (exit "
                            f"status {process.exitcode}); more than the videos is broken"
                        ) from None
                    if crashes[video.name] == 1:
                        waiting.append(video)
                        continue
                    entry = Part(folder, options).note(
                        {
                            "video": video.name,
                            "left_out": f"reading it crashed (exit status {process.exitcode})",
                        }
                    )
                finished += 1
                yield entry
    finally:
        for process, _ in workers.values():
            process.terminate()
            process.join()


def read_journals(folder: Path) -> dict[str, dict]:
    """Journal entries by video name, each with its "part".

    A line that a killed process left half-written is none, nor is one whose frames a power cut kept from the disk.
    """
    entries: dict[str, dict] = {}
    for path in sorted(folder.glob("*.jsonl")):
        part = path.with_suffix("")
        sizes = {file.suffix[1:]: file.stat().st_size for file in folder.glob(f"{part.name}.*")}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if any(
                offset + size > sizes[stream]
                for stream, (offset, size, _) in entry.get("records", {}).items()
            ):
                continue
            if "records" in entry or entry["video"] not in entries:
                entries[entry["video"]] = entry | {"part": str(part)}
    return entries


def read_part(path: str, start: int, length: int, count: int) -> tuple[bytes, int]:
    """(record, number of frames) of a video in a part file."""
    with open(path, "rb") as file:
        file.seek(start)
        record = file.read(length)
    if len(record) < length:
        raise UserError(f"{path} is shorter than its journal says; remove it and its .jsonl")
    return record, count

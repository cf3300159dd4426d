"""Databases of the finished videos: in an order that follows from names, read back; then all else goes."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgpack
from tqdm import tqdm

from dataset.footage import Video
from dataset.preparation.write import done_path, read_notes
from dataset.store import BrokenVideo, VideoStore, writing
from utils.errors import UserError

log = logging.getLogger("coclr")

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 1800.0


def wait_for_others(videos: Iterable[Video], folder: Path, wait: bool) -> dict[str, dict]:
    """Notes of all these ``videos``, which other processes prepare.

    Raises UserError if some are missing and, unless told not to ``wait``, nothing was written for half an
    hour.
    """
    missing = {video.name: video for video in videos}
    notes: dict[str, dict] = {}
    if not missing:
        return notes
    if wait:
        log.info("waiting for the %d videos of the other processes", len(missing))
    patience = PATIENCE_SECONDS if wait else 0
    written = -1
    since = time.monotonic()
    with tqdm(total=len(missing), unit="video", desc="all processes", disable=None) as bar:
        while True:
            new = read_notes(folder, missing.values())
            notes |= new
            bar.update(len(new))
            missing = {name: video for name, video in missing.items() if name not in new}
            if not missing:
                return notes
            now = len(notes) + bytes_under_way(folder)
            if now != written:
                written = now
                since = time.monotonic()
            if time.monotonic() - since >= patience:
                raise UserError(
                    f"{len(missing)} videos are not prepared yet, e.g. {next(iter(missing))}; start the same "
                    "command again, without --merge"
                )
            time.sleep(POLL_SECONDS)


def bytes_under_way(folder: Path) -> int:
    """Bytes of the files that are being written."""
    total = 0
    for path in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # renamed by now
            total += path.stat().st_size
    return total


def merge(
    order: list[str], notes: dict[str, dict], folder: Path, path: Path, stream: str
) -> dict[str, float]:
    """Write the database of a stream at ``path``: the videos of ``order``, of ``folder`` by their ``notes``,
    others as they are in the database that is replaced.

    Holds one record at a time. Returns "frames", "bytes" and "bytes_per_frame". Raises UserError, and leaves
    the old database alone, where the new one cannot be written and read back.
    """
    old = VideoStore(path) if any(name not in notes for name in order) else None
    position = {name: i for i, name in enumerate(old.names)} if old else {}
    total_frames = 0
    total_bytes = 0
    with writing(path) as add:
        for name in tqdm(order, desc=path.name, unit="video", disable=None):
            if name in notes:
                frames = notes[name]["records"][stream]["frames"]
                record = read_record(done_path(folder, name, stream), frames)
            else:
                frames, record = old_record(old, position[name])
            add(name, record, frames)
            total_frames += frames
            total_bytes += len(record)
    return {
        "frames": total_frames,
        "bytes": total_bytes,
        "bytes_per_frame": round(total_bytes / total_frames, 1),
    }


def old_record(old: VideoStore, position: int) -> tuple[int, bytes]:
    """(number of frames, record) of a video of the database that is replaced; UserError if damaged."""
    try:
        return old.num_frames(position), old.read_record(position)
    except BrokenVideo as error:
        raise UserError(f"{error}; remove {old.path} to have all videos prepared again") from error


def read_record(path: Path, frames: int) -> bytearray:
    """Record of a database, of the file that holds its frames one after another."""
    head = msgpack.Packer().pack_array_header(frames)
    record = bytearray(len(head) + path.stat().st_size)
    record[: len(head)] = head
    with open(path, "rb") as file:
        file.readinto(memoryview(record)[len(head) :])
    return record


def remove_finished(folder: Path, merged: Path) -> None:
    """Remove the folder of finished videos, whose databases are written; ``merged`` is its name meanwhile."""
    shutil.rmtree(merged, ignore_errors=True)
    if folder.exists():
        os.replace(folder, merged)  # at once: what a killed run would leave of it is no folder to go on from
    shutil.rmtree(merged, ignore_errors=True)

"""Databases of the finished videos, in an order that follows from names."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgpack
from tqdm import tqdm

from dataset.footage import Video
from dataset.preparation.write import done_path, read_notes
from dataset.source import BrokenVideo
from dataset.store import VideoStore, writing
from utils.errors import UserError
from utils.log import log

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 2 * 3600.0  # which one long video may take


def wait_for_others(videos: Sequence[Video], folder: Path) -> dict[str, dict]:
    """Notes of all these ``videos``, which other processes prepare.

    Raises UserError where none was finished for two hours.
    """
    log.info("waiting for the %d videos of the other processes", len(videos))
    notes: dict[str, dict] = {}
    since = time.monotonic()
    with tqdm(total=len(videos), unit="video", desc="all processes", disable=None) as bar:
        while True:
            missing = [video for video in videos if video.name not in notes]
            if not missing:
                return notes
            new = read_notes(folder, missing)
            notes |= new
            bar.update(len(new))
            if new:
                since = time.monotonic()
            elif time.monotonic() - since >= PATIENCE_SECONDS:
                some = f"{len(missing)} videos are not prepared yet, e.g. {missing[0].name}"
                raise UserError(f"{some}; start the same command again")
            else:
                time.sleep(POLL_SECONDS)


def merge(order: list[str], notes: dict[str, dict], folder: Path, path: Path, stream: str) -> None:
    """Write the database of a stream at ``path``: the videos of ``order``, of ``folder`` by their ``notes``,
    others as they are in the database that is replaced.

    Holds one record at a time. Raises UserError, and leaves the old database alone, where the new one cannot
    be written.
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
    log.info(f"{path}: {len(order)} videos, {total_frames} frames, {total_bytes / 1e6:.1f} MB")


def old_record(old: VideoStore, position: int) -> tuple[int, bytes]:
    """(number of frames, record) of a video of the database that is replaced; UserError if damaged."""
    try:
        return old.num_frames(position), old.read_record(position)
    except BrokenVideo as error:
        raise UserError(f"{error}; remove {old.path} to have all videos prepared again") from error


def read_record(path: Path, frames: int) -> bytes:
    """Record of a database, of the file that holds its frames one after another."""
    return msgpack.Packer().pack_array_header(frames) + path.read_bytes()

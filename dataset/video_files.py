"""A folder of video files as a source of RGB frames, decoded as they are asked for.

Which frames a file shows and where decoding can begin is found once, by decoding all of it, and kept in an
index: in the folder, or in the cache ($COCLR_CACHE, else ~/.cache/coclr) where that cannot be written.
"""

import base64
import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from tqdm import tqdm

from dataset.decode import FrameIndex, index_frames, read_frames
from dataset.footage import Video, find_videos
from dataset.isolation import in_processes
from dataset.source import BrokenVideo
from dataset.store import shuffled
from utils.cores import available_cores
from utils.errors import UserError
from utils.files import cache_folder, lock, write_atomically
from utils.log import log

INDEX = ".frame_index.json"
SECONDS_BETWEEN_SAVES = 60
CRASHED = f"reading it ended the process; remove {INDEX} to have it tried again"
WORTH_SEEKING = 8  # frames to skip, that is the time it takes to open a file once more

# "bytes" and "time" of a file, then what ``pack`` makes of its index or "broken", why there is none
Entry = dict[str, Any]


class VideoFiles:
    """The videos in a folder and those below, see ``dataset.footage``, or one file; completes their index.

    The names are in the order of a database of the same videos. Raises UserError for a folder without videos.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if os.path.isfile(path):
            videos = [Video(Path(path).stem, self.path)]
        else:
            videos = find_videos(Path(path)).videos
        found = {video.name: video for video in videos}
        entries = complete_index(Path(path), list(found.values()))
        self.names = [name for name in shuffled(list(found)) if "broken" not in entries[name]]
        self._files = [found[name].path for name in self.names]
        self._entries = [entries[name] for name in self.names]
        for name in found.keys() - set(self.names):
            log.warning("left out %s: %s", name, entries[name]["broken"])

    def frame_counts(self) -> np.ndarray:
        """Frames of each video, int64 [len(names)]."""
        return np.array([entry["frames"] for entry in self._entries], np.int64)

    def record_size(self, video: int) -> int:
        """Bytes of a file when its index was made."""
        return self._entries[video]["bytes"]

    def size(self, video: int) -> tuple[int, int]:
        """(height, width) of a video's frames in pixels."""
        return tuple(self._entries[video]["size"])

    def frames(self, video: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Those frames, RGB uint8 [H, W, 3], decoded one by one; ``indices`` ascend. Raises BrokenVideo."""
        index = unpack(self._entries[video])
        try:
            for run in runs(np.asarray(indices), index.keys):
                for frame in read_frames(self._files[video], index, run):
                    yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        except BrokenVideo as error:
            raise BrokenVideo(self.names[video], error.reason) from error


def runs(indices: np.ndarray, keys: np.ndarray) -> list[list[int]]:
    """Frames ``indices``, ascending, in runs decoded at one go; each later one saves frames."""
    nearest = keys[np.searchsorted(keys, indices, "right") - 1]  # the key frame at or before each
    saved = nearest[1:] - indices[:-1] - 1
    breaks = 1 + np.flatnonzero(saved > WORTH_SEEKING)
    return [run.tolist() for run in np.split(indices, breaks)]


def pack(index: FrameIndex) -> Entry:
    """An index of frames for a JSON file; time stamps, mostly regular, become a few bytes."""
    steps = np.diff(index.pts, prepend=0).astype("<i8")
    return {
        "frames": len(index.pts),
        "size": list(index.size),
        "keys": index.keys.tolist(),
        "pts": base64.b85encode(zlib.compress(steps.tobytes())).decode(),
    }


def unpack(entry: Entry) -> FrameIndex:
    steps = np.frombuffer(zlib.decompress(base64.b85decode(entry["pts"])), "<i8")
    return FrameIndex(np.cumsum(steps), np.array(entry["keys"]), tuple(entry["size"]))


def make_entry(video: Video) -> Entry:
    """Decode a video for its entry in the index."""
    state = state_of(video.path)
    try:
        return state | pack(index_frames(video.path))
    except BrokenVideo as error:
        return state | {"broken": error.reason}


def state_of(path: str) -> Entry:
    """Size and time of change of a file, which tell whether its index is stale."""
    status = os.stat(path)
    return {"bytes": status.st_size, "time": status.st_mtime_ns}


def complete_index(folder: Path, videos: Sequence[Video]) -> dict[str, Entry]:
    """Entries of all ``videos`` by name, missing or stale ones made anew, by one process of several."""
    entries = read_index(folder, videos)
    if len(entries) == len(videos):
        return entries
    path, held = _lock_index(folder)
    with held:
        entries = read_index(folder, videos)  # another process may have completed it meanwhile
        missing = [video for video in videos if video.name not in entries]
        if missing:
            _make_entries(missing, entries, path)
    return entries


def read_index(folder: Path, videos: Sequence[Video]) -> dict[str, Entry]:
    """The entries of those ``videos`` that have not changed since, by name."""
    current = {}
    for path in index_places(folder):
        found: dict[str, Entry] = {}
        if path.is_file():
            with contextlib.suppress(ValueError):  # damaged: it is made anew
                found = json.loads(path.read_bytes())
        for video in videos if found else ():
            entry = found.get(video.name, {})
            if all(entry.get(key) == value for key, value in state_of(video.path).items()):
                current[video.name] = entry
    return current


def index_places(folder: Path) -> tuple[Path, Path]:
    """Where the index of a folder is kept: there, or in the cache where nothing can be written there."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return folder / INDEX, cache_folder() / f"frame_index-{digest}.json"


def _lock_index(folder: Path) -> tuple[Path, BinaryIO]:
    """The place where the index can be written, and a lock on it, for which this process has waited."""
    there, cached = index_places(folder)
    with contextlib.suppress(OSError):
        return there, lock(there.with_suffix(".lock"))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        return cached, lock(cached.with_suffix(".lock"))
    except OSError as error:
        places = f"there or in {cached.parent}: {error.strerror}"
        raise UserError(f"cannot write the index of {folder}, {places}; set $COCLR_CACHE") from error


def _make_entries(missing: Sequence[Video], entries: dict[str, Entry], path: Path) -> None:
    """Add the entries of the ``missing`` videos and save all to ``path``, now and then and at the end."""
    log.info("looking for the frames of %d videos, once: the index is kept in %s", len(missing), path)
    saved = time.monotonic()
    made = in_processes(make_entry, missing, available_cores())
    try:
        with contextlib.closing(made), tqdm(total=len(missing), desc="index", disable=None) as bar:
            for video, entry in made:
                entries[video.name] = entry or state_of(video.path) | {"broken": CRASHED}
                bar.update()
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    _write_index(entries, path)
                    saved = time.monotonic()
    finally:
        _write_index(entries, path)


def _write_index(entries: dict[str, Entry], path: Path) -> None:
    with write_atomically(path) as file:
        file.write(json.dumps(entries).encode())

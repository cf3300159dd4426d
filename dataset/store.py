"""The databases: one LMDB per stream, one msgpack list of JPEG frames per video, as the released ones are.

Keys are ``b"%09d" % i`` with i = position of the video in ``__order__`` (names "class/video", shuffled);
``__keys__`` lists the keys in class order, ``__len__`` counts them, ``__vlen__`` gives frame counts aligned
with ``__keys__``.
"""

import contextlib
import hashlib
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from dataset.jpeg import decode, frame_size
from dataset.lmdb_file import LmdbFile, Value
from dataset.source import BrokenVideo
from dataset.splits import by_class
from utils.errors import UserError
from utils.files import write_atomically

READ_BYTES = 256 << 10  # of a record at a time
BATCH_BYTES = 8 << 20  # of a commit; three times the time per byte with 64 MB, whose pages malloc gives back


class VideoStore:
    """Read access to one database, a file or a folder, in this process and its children.

    Args:
        path: the LMDB file or folder.

    ``path`` is kept as a string; ``names`` lists "class/video" in ``__order__`` order. Raises UserError where
    the path is missing, cut short, not an LMDB, or lacks ``__order__``.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            raise UserError(f"no database at {self.path}; make one by 'python -m dataset.prepare'")
        try:
            self._file = LmdbFile(self.path)
        except (OSError, ValueError, struct.error) as error:
            message = (
                f"{self.path} is not an LMDB database or damaged ({error}); prepare or download it again"
            )
            raise UserError(message) from error
        order = self._meta("__order__")
        if not isinstance(order, list) or not all(isinstance(name, bytes) for name in order):
            raise UserError(
                f"{self.path} lacks a list __order__ of video names; prepare or download it again"
            )
        self.names = [name.decode("utf-8", "surrogateescape") for name in order]

    def __len__(self) -> int:
        return len(self.names)

    def frame_counts(self) -> np.ndarray:
        """Frames of each video, int64 [len(names)], aligned with ``names``; 0 where there are none.

        Taken from ``__vlen__`` and ``__keys__`` where these are complete, else from the head of each record.
        """
        try:
            frames = dict(zip(self._meta("__keys__"), self._meta("__vlen__"), strict=True))
            return np.array([frames[_key(position)] for position in range(len(self))], np.int64)
        except (TypeError, ValueError, KeyError, OverflowError):
            return np.array([self._frames_or_none(position) for position in range(len(self))], np.int64)

    def _frames_or_none(self, position: int) -> int:
        try:
            return self.num_frames(position)
        except BrokenVideo:
            return 0

    def num_frames(self, position: int) -> int:
        """Frames of one video, from the head of its record; BrokenVideo if missing or not a list."""
        with self._record(position) as record:
            return _open_list(record, read_size=16)[1]

    def size(self, position: int) -> tuple[int, int]:
        """(height, width) in pixels of a video's first frame; raises BrokenVideo."""
        (jpeg,) = self.read_frames(position, [0])
        try:
            return frame_size(jpeg)
        except ValueError as error:
            raise BrokenVideo(self.names[position], f"{self.path}: frame 0: {error}") from error

    def frames(self, position: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Those frames, RGB uint8 [H, W, 3], decoded one by one; ``indices`` ascend. Raises BrokenVideo."""
        for index, jpeg in zip(indices, self.read_frames(position, indices), strict=True):
            try:
                yield decode(jpeg)
            except ValueError as error:
                raise BrokenVideo(self.names[position], f"{self.path}: frame {index}: {error}") from error

    def read_frames(self, position: int, indices: Sequence[int]) -> list[bytes]:
        """JPEG bytes of the asked frames alone; equal indices share one object.

        Raises BrokenVideo for a record that is missing, of another type or cut short, and for an index out of
        range.
        """
        asked = set(indices)
        frames: dict[int, bytes] = {}
        with self._record(position) as record:
            unpacker, count = _open_list(record, READ_BYTES)
            for i in asked:
                if not 0 <= i < count:
                    raise IndexError(f"frame {i} asked of a record of {count}")
            for i in range(max(asked, default=-1) + 1):
                try:
                    frame = unpacker.unpack() if i in asked else unpacker.skip()
                except msgpack.OutOfData:
                    raise ValueError(f"the record ends before the end of frame {i} of {count}") from None
                if i in asked:
                    frames[i] = frame
            if not all(isinstance(frame, bytes) for frame in frames.values()):
                raise ValueError("a frame is not a string of bytes")
        return [frames[i] for i in indices]

    def read_record(self, position: int) -> bytes:
        """One record as it is stored; raises BrokenVideo if it is missing."""
        with self._record(position) as record:
            return record.read()

    def record_size(self, position: int) -> int:
        """Bytes of one record; raises BrokenVideo if it is missing."""
        with self._record(position) as record:
            return record.size

    @contextlib.contextmanager
    def _record(self, position: int) -> Iterator[Value]:
        """The record of a video; what is wrong with it, or with its use, is raised as BrokenVideo."""
        try:
            record = self._file.find(_key(position))
            if record is None:
                raise ValueError(f"there is no record {_key(position).decode()}")
            yield record
        except (OSError, ValueError, IndexError, msgpack.UnpackException) as error:
            raise BrokenVideo(self.names[position], f"{self.path}: {error}") from error

    def _meta(self, key: str) -> Any:
        """Unpacked value of a ``__key__``; None if it is absent or garbled."""
        try:
            value = self._file.find(key.encode())
            return None if value is None else msgpack.unpackb(value.read(), raw=True, strict_map_key=False)
        except (OSError, ValueError, TypeError):
            return None


def pack_frames(frames: Sequence[bytes]) -> bytes:
    """Record of a video from the JPEG bytes of its frames, in the form of the released databases."""
    return msgpack.packb(list(frames), use_bin_type=False)


def shuffled(names: Sequence[str]) -> list[str]:
    """The names in the order of their SHA-256: a shuffle that is the same everywhere."""
    return sorted(names, key=lambda name: (hashlib.sha256(name.encode()).digest(), name))


def write_store(
    path: str | os.PathLike, names: Sequence[str], record_of: Callable[[str], tuple[bytes, int]]
) -> None:
    """Write a database of ``names``, in any order: ``record_of`` a name gives what ``writing`` takes."""
    with writing(path) as add:
        for name in shuffled(names):
            add(name, *record_of(name))


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Callable[[str, bytes, int], None]]:
    """Write a database, streaming: ``with writing(path) as add: add(name, record, number of frames)``.

    ``name`` is "class/video", in the order of ``shuffled``; ``record`` any buffer (see ``pack_frames``). The
    database appears under its name when it is complete, with ``<path>-order`` beside it; the same videos give
    the same bytes.
    Raises UserError where the disk is full.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    order: list[str] = []
    frames: list[int] = []
    sizes: list[int] = []
    batch: list[tuple[bytes, bytes]] = []

    def add(name: str, record: bytes, count: int) -> None:
        batch.append((_key(len(order)), record))
        order.append(name)
        frames.append(count)
        sizes.append(len(record))
        if sum(len(value) for _, value in batch) >= BATCH_BYTES:
            _commit(environment, batch)

    try:
        environment = lmdb.open(str(unfinished), subdir=False, lock=False, map_size=1 << 26, sync=False)
        with contextlib.closing(environment):
            yield add
            in_class_order = sorted(range(len(order)), key=lambda i: by_class(order[i]))
            meta = {
                "__keys__": [_key(i) for i in in_class_order],
                "__len__": len(order),
                "__order__": order,
                "__vlen__": [frames[i] for i in in_class_order],
            }
            batch += [(key.encode(), msgpack.packb(value, use_bin_type=False)) for key, value in meta.items()]
            _commit(environment, batch)  # keys ascend throughout: digits come before the underscore
            environment.sync(True)
        written = VideoStore(unfinished)
        if (written.names, [written.record_size(i) for i in range(len(written))]) != (order, sizes):
            raise OSError("it is not what was written to it")
        with write_atomically(f"{path}-order") as file:
            file.write("".join(f"{name}\n" for name in order).encode())
        os.replace(unfinished, path)
    except (lmdb.Error, OSError, BrokenVideo) as error:
        raise UserError(f"cannot write {path}: {error}; make room or mend it and start again") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _commit(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    """Append the batch in one transaction and empty it; the map doubles until it fits."""
    while batch:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value, append=True)
            batch.clear()
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def _key(position: int) -> bytes:
    return b"%09d" % position


def _open_list(record: Value, read_size: int) -> tuple[msgpack.Unpacker, int]:
    """An unpacker that has read the head of a list of frames, and their number; ValueError for others."""
    unpacker = msgpack.Unpacker(record, raw=True, read_size=read_size, max_array_len=1, max_map_len=1)
    try:
        return unpacker, unpacker.read_array_header()
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"the record of {record.size} bytes is not a list of frames") from error

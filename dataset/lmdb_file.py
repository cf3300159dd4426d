"""Reading LMDB files by plain reads, without mapping them into memory.

A mapped file that is damaged, or cut short while it is in use, ends the interpreter (SIGBUS). Here both are
ValueError, a file whose name another has taken is read on as it was, and an open file may cross a fork.
"""

import contextlib
import os
import struct
from bisect import bisect_left, bisect_right

MAGIC, BRANCH, LEAF, OVERFLOW_VALUE = 0xBEEFC0DE, 1, 2, 1  # as in lmdb.h and mdb.c, data version 1, 64 bits
NO_PAGE = (1 << 64) - 1
HEADER = 16  # bytes at the start of a page
DEEPEST = 32
SPARE_PAGES = 16  # LMDB may count a few freed pages at the end that it never wrote


class LmdbFile:
    """The values of one LMDB database, a file or a folder. Raises OSError or ValueError where it is none."""

    def __init__(self, path: str):
        self.path = path
        self._file = open(os.path.join(path, "data.mdb") if os.path.isdir(path) else path, "rb", buffering=0)
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        self._size = os.fstat(self._file.fileno()).st_size
        newest, self.page_size = -1, 0
        for page in (0, 1):  # of the two headers the one of the newer transaction counts
            head = struct.unpack("<16xII16xI84xQQQ", self.read(page * self.page_size, 152))
            magic, version, self.page_size, root, last, transaction = head
            if magic != MAGIC or version != 1 or not 256 <= self.page_size <= 1 << 16:
                raise ValueError("its header is not that of an LMDB file")
            if transaction > newest:
                newest, self.root, pages = transaction, root, last + 1
        if self._size < (pages - SPARE_PAGES) * self.page_size:
            raise ValueError(f"cut short: {self._size} of {(pages - SPARE_PAGES) * self.page_size} bytes")

    def __reduce__(self):
        return _open_same, (self.path, self._identity())

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        """That part of the file; ValueError where the file ends before it does."""
        part = os.pread(self._file.fileno(), size, offset) if offset + size <= self._size else b""
        if len(part) < size:
            raise ValueError(f"damaged or cut short: it ends before byte {offset + size}")
        return part

    def find(self, key: bytes) -> "Value | None":
        """The value of a key, None without one; ValueError in a damaged file."""
        number = self.root
        if number == NO_PAGE:  # an empty database
            return None
        with contextlib.suppress(struct.error, IndexError):
            for _ in range(DEEPEST):
                page = self.read(number * self.page_size, self.page_size)
                flags, end = struct.unpack_from("<HH", page, 10)
                nodes = struct.unpack_from(f"<{(end - HEADER) // 2}H", page, HEADER)

                def key_of(node: int, page: bytes = page) -> bytes:
                    return page[node + 8 : node + 8 + struct.unpack_from("<H", page, node + 6)[0]]

                if flags & LEAF:
                    place = bisect_left(nodes, key, key=key_of)
                    if place == len(nodes) or key_of(nodes[place]) != key:
                        return None
                    size, kind = struct.unpack_from("<IH", page, nodes[place])
                    at = nodes[place] + 8 + len(key)
                    if kind & OVERFLOW_VALUE:
                        number, at = struct.unpack_from("<Q", page, at)[0], HEADER
                    return Value(self, number * self.page_size + at, size)
                if not flags & BRANCH:
                    break
                below = nodes[bisect_right(nodes, key, lo=1, key=key_of) - 1]
                low, high = struct.unpack_from("<IH", page, below)
                number = low | high << 32
        raise ValueError(f"page {number} is damaged")


def _open_same(path: str, identity: tuple[int, int]) -> LmdbFile:
    """Open a file again in another process; OSError where another one has taken its name."""
    file = LmdbFile(path)
    if file._identity() != identity:
        raise OSError(f"{path} was replaced while it was in use; start again")
    return file


class Value:
    """A value of ``size`` bytes in the file, read from its start on as it is asked for."""

    def __init__(self, file: LmdbFile, offset: int, size: int):
        self.size = size
        self._file, self._at, self._end = file, offset, offset + size

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes, or all that are left."""
        left = self._end - self._at
        part = self._file.read(self._at, left if size < 0 else min(size, left))
        self._at += len(part)
        return part

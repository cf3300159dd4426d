"""Files that are never half-written, locks between processes, and downloads."""

import contextlib
import errno
import fcntl
import http.client
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError
from utils.log import log

# of Lustre without "flock", of some NFS
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
DOWNLOAD_TIMEOUT = 60  # seconds without an answer


@contextlib.contextmanager
def write_atomically(
    path: str | os.PathLike, remedy: str = "make room or choose another place"
) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends; if the block fails, ``path`` stays as it was.

    It is written beside ``path``, whose folder is made where it is missing, synced and renamed. Raises
    UserError, which names ``path`` and the ``remedy``, where the file system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}{_free_space(path.parent)}; {remedy}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_if_changed(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, unless it holds that text already; raises UserError."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with write_atomically(path) as file:
            file.write(text.encode())


def _free_space(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 1e6:.0f} MB of disk are left)"
    return ""


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: $COCLR_CACHE, else ~/.cache/coclr."""
    return Path(os.environ.get("COCLR_CACHE") or Path.home() / ".cache" / "coclr")


def lock(path: str | os.PathLike, wait: bool = True) -> BinaryIO:
    """Hold ``path``, made if it is missing, for this process alone until the returned file is closed.

    The file is open for reading and appending. Where the file system has no locks it says so and goes on
    without one.
    Raises BlockingIOError where another process holds it and ``wait`` is False, OSError where it cannot be
    opened.
    """
    file = open(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        log.warning("no locks on this file system (%s): use %s from one process alone", error.strerror, path)
    return file


def download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    """Download ``url`` to ``path`` unless it is there; of several processes that ask at once, one does.

    ``check`` raises UserError for a file that is cut short or another. Raises UserError where the download
    fails.
    """
    import torch.hub  # takes seconds, which those who only write files need not spend

    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.parent / ".lock"):
            if path.is_file():
                return
            log.info("downloading %s to %s", url, path)
            timeout = socket.getdefaulttimeout()
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
            try:
                torch.hub.download_url_to_file(url, str(partial), progress=sys.stderr.isatty())
                check(partial)
                os.replace(partial, path)
            finally:
                socket.setdefaulttimeout(timeout)
                partial.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot download {url}: {error}; fetch it by hand to {path}") from error

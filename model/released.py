"""Weights by path, URL or released name: downloaded once into a cache."""

import fcntl
import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.checkpoint import load_checkpoint
from utils.errors import UserError

log = logging.getLogger("coclr")

SERVER = "http://www.robots.ox.ac.uk/~htd/coclr/"
RELEASED = {
    "CoCLR-ucf101-rgb": "CoCLR-ucf101-rgb-128-s3d-ep182.tar",
    "CoCLR-ucf101-flow": "CoCLR-ucf101-flow-128-s3d-epoch109.pth.tar",
    "InfoNCE-ucf101-rgb": "InfoNCE-ucf101-rgb-128-s3d-ep399.pth.tar",
    "InfoNCE-ucf101-flow": "InfoNCE-ucf101-f-128-s3d-ep396.pth.tar",
    "CoCLR-k400-rgb": "CoCLR-k400-rgb-128-s3d.pth.tar",
    "CoCLR-k400-flow": "CoCLR-k400-flow-128-s3d.pth.tar",
}


def fetch(source: str, offline: bool = False) -> Path:
    """The file that ``source`` means: a path as it is, a URL or a released name once downloaded to the cache.

    The cache is $COCLR_CACHE, else ~/.cache/coclr; $COCLR_WEIGHTS_URL names another server of the released files.
    Several processes may ask at once: one downloads. Raises UserError when the download fails, or is needed while
    ``offline``.
    """
    if source in RELEASED:
        url = os.environ.get("COCLR_WEIGHTS_URL", SERVER).rstrip("/") + "/" + RELEASED[source]
    elif source.startswith(("http://", "https://")):
        url = source
    else:
        return Path(source)
    # a folder per source: features and probabilities are kept beside a checkpoint
    name = source if source in RELEASED else hashlib.sha256(url.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("COCLR_CACHE") or Path.home() / ".cache" / "coclr")
    path = cache / name / (url.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "weights.tar")
    if path.is_file():
        return path
    if offline:
        raise UserError(f"--offline: {source} is not in the cache; put {url} at {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _download(url, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"cannot download {url}: {error}; fetch it by hand to {path}, or set $COCLR_WEIGHTS_URL to a "
            "mirror of the released files"
        ) from error
    return path


def _download(url: str, path: Path) -> None:
    """Download beside ``path`` and rename once the file is whole and a checkpoint."""
    partial = path.with_name(f".{path.name}.part")
    log.info("downloading %s to %s", url, path)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(partial, "wb") as file:
            expected = int(answer.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(
                answer, "read", expected or None, desc=path.name, leave=False, disable=None
            ) as content:
                shutil.copyfileobj(content, file)
        if expected and partial.stat().st_size != expected:
            raise OSError(f"it ended after {partial.stat().st_size} of {expected} bytes")
        load_checkpoint(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

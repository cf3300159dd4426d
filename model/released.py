"""Weights by path, URL or released name: downloaded once into a cache."""

import hashlib
import os
from pathlib import Path

from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.files import cache_folder, download

SERVER = "https://www.robots.ox.ac.uk/~htd/coclr/"
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

    The cache is $COCLR_CACHE, else ~/.cache/coclr; $COCLR_WEIGHTS_URL names another server of the released
    files. Several processes may ask at once: one downloads. Raises UserError when the download fails, or is
    needed while ``offline``.
    """
    if source in RELEASED:
        url = os.environ.get("COCLR_WEIGHTS_URL", SERVER).rstrip("/") + "/" + RELEASED[source]
    elif source.startswith(("http://", "https://")):
        url = source
    else:
        return Path(source)
    # a folder per source: features and probabilities are kept beside a checkpoint
    name = source if source in RELEASED else hashlib.sha256(url.encode()).hexdigest()[:16]
    path = cache_folder() / name / (url.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "weights.tar")
    if path.is_file():
        return path
    if offline:
        raise UserError(f"--offline: {source} is not in the cache; put {url} at {path}")
    download(url, path, load_checkpoint)
    return path

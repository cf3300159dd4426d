"""Videos that are folders of frames already extracted, with or without flow: JPEG files with numbers."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from dataset.footage import IMAGE, Video
from dataset.jpeg import decode, decode_whole, encode
from dataset.source import BrokenVideo


def frame_files(video: Video) -> dict[str, list[str]]:
    """Paths of extracted frames by number: "rgb" image_00001.jpg ..., "flow_x", "flow_y", or "flow" of 3.

    Raises BrokenVideo where the numbers have gaps or are not the same for all kinds: flow would not belong to
    its frame. The last frame has no flow; one that some tools repeat there is dropped.
    """
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for match in filter(None, map(IMAGE.match, os.listdir(video.path))):
        kind = (match["flow"] or "rgb").lower()
        found[kind].append((int(match["number"]), os.path.join(video.path, match.string)))
    first = min((number for files in found.values() for number, _ in files), default=0)
    for kind, files in found.items():
        _check_numbers(video, kind, sorted(files), first)
    paths = {kind: [path for _, path in sorted(files)] for kind, files in found.items()}
    if len(paths.get("flow_x", ())) != len(paths.get("flow_y", ())):
        raise BrokenVideo(video.name, f"flow_x and flow_y files in {video.path} do not pair up")
    if "rgb" in paths:
        frames = len(paths["rgb"])
        for kind in paths.keys() - {"rgb"}:
            if len(paths[kind]) not in (frames - 1, frames):
                raise BrokenVideo(video.name, f"{len(paths[kind])} {kind} files for {frames} frames")
            del paths[kind][frames - 1 :]
    return paths


def _check_numbers(video: Video, kind: str, files: list[tuple[int, str]], first: int) -> None:
    """Raise BrokenVideo unless the numbers of the sorted ``files`` are first, first + 1, ..."""
    for expected, (number, path) in enumerate(files, first):
        if number > expected:
            raise BrokenVideo(video.name, f"{kind} file number {expected} is missing in {video.path}")
        if number < expected:
            raise BrokenVideo(video.name, f"{path} has the number of another {kind} file")


def read_jpegs(video: Video, paths: Iterable[str]) -> Iterator[bytes]:
    """Bytes of JPEG files; raises BrokenVideo for one that cannot be decoded."""
    for path in paths:
        jpeg = Path(path).read_bytes()
        try:
            decode_whole(jpeg)
        except ValueError as error:
            raise BrokenVideo(video.name, f"{path} is not a whole JPEG") from error
        yield jpeg


def read_flow_files(video: Video, files: dict[str, list[str]], quality: int) -> Iterator[bytes]:
    """Stored form, RGB (128, y, x), of the flow files: pairs are merged and encoded, 3-channel ones kept."""
    if "flow" in files:
        yield from read_jpegs(video, files["flow"])
        return
    for pair in zip(*(read_jpegs(video, files[kind]) for kind in ("flow_x", "flow_y")), strict=True):
        x, y = (decode(jpeg, cv2.IMREAD_GRAYSCALE) for jpeg in pair)
        if x.shape != y.shape:
            raise BrokenVideo(video.name, f"flow_x and flow_y in {video.path} differ in size")
        yield encode(np.dstack([x, y, np.full_like(x, 128)]), quality)

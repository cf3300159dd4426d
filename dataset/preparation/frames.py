"""Frames of one raw video, as the databases store them: from a video file or from extracted frames."""

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from dataset.decode import Report, decode_video
from dataset.footage import IMAGE, Video
from dataset.jpeg import decode, decode_whole, encode
from dataset.preparation.flow import METHODS, compute_flow, encode_flow
from dataset.source import BrokenVideo


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the databases."""

    streams: tuple[str, ...] = ("rgb", "flow")
    flow: str = "tvl1"
    bound: float = 20.0
    short_side: int | None = None
    fps: float | None = None
    quality: int = 90

    def noted(self) -> dict:
        """The form that is kept beside the databases, with who computed the flow."""
        flow_by = METHODS[self.flow] if "flow" in self.streams else None
        return asdict(self) | {"streams": list(self.streams), "flow_by": flow_by}


def make_frames(video: Video, options: Options, report: Report | None = None) -> Iterator[tuple[str, bytes]]:
    """JPEG frames of a video as they come off the decoder: ("rgb", bytes), ("flow", bytes), ...

    Flow is computed between the RGB frames as stored, that is after resizing and JPEG. What decoding a video
    file met goes to ``report``. Raises BrokenVideo, for what the system says of a file too.
    """
    try:
        files = frame_files(video) if os.path.isdir(video.path) else None
        flow_given = bool(files and files.keys() - {"rgb"}) and options.short_side is None
        previous = None
        for jpeg in _rgb_frames(video, files, options, report or Report()):
            if "rgb" in options.streams:
                yield "rgb", jpeg
            if "flow" in options.streams and not flow_given:
                grey = decode(jpeg, cv2.IMREAD_GRAYSCALE)
                if previous is not None:
                    if grey.shape != previous.shape:
                        raise BrokenVideo(video.name, f"frame sizes differ: {previous.shape}, {grey.shape}")
                    flow = encode_flow(compute_flow(previous, grey, options.flow), options.bound)
                    yield "flow", encode(flow[..., ::-1], options.quality)
                previous = grey
        if "flow" in options.streams and flow_given:
            for jpeg in read_flow_files(video, files, options.quality):
                yield "flow", jpeg
    except OSError as error:
        what = error.filename or video.path
        raise BrokenVideo(video.name, f"cannot read {what}: {error.strerror or error}") from error
    except cv2.error as error:
        raise BrokenVideo(video.name, f"OpenCV: {error.err or error}") from error


def _rgb_frames(
    video: Video, files: dict[str, list[str]] | None, options: Options, report: Report
) -> Iterator[bytes]:
    if files is None:
        for frame in decode_video(video.path, options.fps, report):
            yield encode(resize(frame, options.short_side, report.pixel_aspect), options.quality)
    elif options.fps is not None:
        raise BrokenVideo(video.name, "--fps needs a video file: a folder of frames does not say its rate")
    elif options.short_side is None:
        yield from read_jpegs(video, files.get("rgb", ()))
    else:
        for jpeg in read_jpegs(video, files.get("rgb", ())):
            frame = decode(jpeg, cv2.IMREAD_COLOR)
            yield encode(resize(frame, options.short_side), options.quality)


def resize(frame: np.ndarray, short_side: int | None, pixel_aspect: Fraction = Fraction(1)) -> np.ndarray:
    """Scale [H, W, 3] to a shorter side of ``short_side``, None: not; by area, bilinear if it grows.

    Pixels that are ``pixel_aspect`` times as wide as high become square.
    """
    if short_side is None:
        return frame
    size, grows = scaled_size(*frame.shape[:2], short_side, pixel_aspect)
    return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)


@functools.cache  # exact fractions take a while, and all frames of a video have one size
def scaled_size(
    height: int, width: int, short_side: int, pixel_aspect: Fraction
) -> tuple[tuple[int, int], bool]:
    """((width, height) to which ``resize`` scales, whether that is larger)."""
    square = width * pixel_aspect
    scale = short_side / min(height, square)
    return (round(square * scale), round(height * scale)), scale >= 1


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
        for expected, (number, _) in enumerate(sorted(files), first):
            if number != expected:
                fault = "missing" if number > expected else "there twice"
                what = f"{kind} file number {min(number, expected)}"
                raise BrokenVideo(video.name, f"{what} is {fault} in {video.path}")
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

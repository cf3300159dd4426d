"""Frames of one raw video, as the databases store them: from a video file or from extracted frames."""

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import cv2
import numpy as np

from dataset.decode import Report, decode_video
from dataset.footage import Video
from dataset.jpeg import decode, encode
from dataset.preparation.flow import METHODS, compute_flow, encode_flow
from dataset.preparation.frame_folders import frame_files, read_flow_files, read_jpegs
from dataset.store import BrokenVideo


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the databases."""

    streams: tuple[str, ...] = ("rgb", "flow")
    flow: str = "tvl1"
    bound: float = 20.0
    short_side: int | None = None
    fps: float | None = None
    quality: int = 90
    flow_by: str | None = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "flow_by", METHODS[self.flow] if "flow" in self.streams else None)


def make_frames(
    video: Video, options: Options, flow_clock: list[float], report: Report | None = None
) -> Iterator[tuple[str, bytes]]:
    """JPEG frames of a video as they come off the decoder: ("rgb", bytes), ("flow", bytes), ...

    Flow is computed between the RGB frames as stored, that is after resizing and JPEG. Seconds spent in the
    flow method are added to ``flow_clock[0]``; what decoding a video file met goes to ``report``. Raises
    BrokenVideo.
    """
    files = frame_files(video) if os.path.isdir(video.path) else None
    flow_given = files is not None and ("flow" in files or "flow_x" in files) and options.short_side is None
    previous = None
    try:
        for jpeg in _rgb_frames(video, files, options, report or Report()):
            if "rgb" in options.streams:
                yield "rgb", jpeg
            if "flow" in options.streams and not flow_given:
                grey = decode(jpeg, cv2.IMREAD_GRAYSCALE)
                if previous is not None:
                    if grey.shape != previous.shape:
                        raise BrokenVideo(video.name, f"frame sizes differ: {previous.shape}, {grey.shape}")
                    start = time.perf_counter()
                    flow = compute_flow(previous, grey, options.flow)
                    flow_clock[0] += time.perf_counter() - start
                    yield "flow", encode(encode_flow(flow, options.bound)[..., ::-1], options.quality)
                previous = grey
        if "flow" in options.streams and flow_given:
            for jpeg in read_flow_files(video, files, options.quality):
                yield "flow", jpeg
    except cv2.error as error:
        raise BrokenVideo(video.name, f"OpenCV: {error.err or error}") from error


def _rgb_frames(
    video: Video, files: dict[str, list[str]] | None, options: Options, report: Report
) -> Iterator[bytes]:
    if files is None:
        for frame in decode_video(video.path, options.fps, report):
            yield encode(resize(frame, options.short_side, report.pixel_aspect), options.quality)
        return
    if options.fps is not None:
        raise BrokenVideo(video.name, "--fps needs a video file: a folder of frames does not say its rate")
    for jpeg in read_jpegs(video, files.get("rgb", ())):
        if options.short_side is not None:
            jpeg = encode(resize(decode(jpeg, cv2.IMREAD_COLOR), options.short_side), options.quality)
        yield jpeg


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

"""Videos whose frames say their number: eight blocks in the middle are its bits; coloured corners."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CORNERS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def coded_frame(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """RGB uint8 [H, W, 3]: corners R G, B W from the top left, the bits of ``number``, highest first."""
    frame = np.full((height, width, 3), 60, np.uint8)
    rows, columns = height // 4, width // 4
    frame[:rows, :columns], frame[:rows, -columns:] = CORNERS["R"], CORNERS["G"]
    frame[-rows:, :columns], frame[-rows:, -columns:] = CORNERS["B"], CORNERS["W"]
    bits = np.array([230 if number >> bit & 1 else 10 for bit in range(7, -1, -1)], np.uint8)
    blocks = bits[np.arange(width) * 8 // width]
    frame[height // 2 - rows // 2 : height // 2 + rows // 2] = blocks[:, None]
    return frame


def read_code(frame: np.ndarray) -> int:
    """The number that an upright BGR frame shows."""
    height, width = frame.shape[:2]
    middles = [int((bit + 0.5) * width / 8) for bit in range(8)]
    return sum((int(frame[height // 2, x].mean()) > 120) << 7 - bit for bit, x in enumerate(middles))


def read_corners(frame: np.ndarray) -> str:
    """The nearest colours of the four corners of a BGR frame, row by row: "RGBW" if it is upright."""
    height, width = frame.shape[:2]
    pixels = [frame[y, x, ::-1].astype(int) for y in (3, height - 4) for x in (3, width - 4)]
    return "".join(min(CORNERS, key=lambda name: np.abs(CORNERS[name] - pixel).sum()) for pixel in pixels)


def write_coded(
    path: Path,
    numbers: Iterable[int] = range(40),
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (96, 64),
    pixels: str = "yuv420p",
    rate: int = 25,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: int = 0,
    **settings,
) -> Path:
    """A video of coded frames.

    Args:
        size: (width, height).
        times: of the frames in milliseconds; they follow one another at ``rate`` if not given.
        options, container: FFmpeg's for the encoder and the file.
        sound: seconds of silence beside it.
        settings: attributes of the stream, e.g. ``gop_size`` or ``sample_aspect_ratio``.
    """
    with av.open(str(path), "w", container_options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in settings.items():
            setattr(stream, name, value)
        if sound:
            _write_silence(file, sound)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(coded_frame(number, *size))
            frame.pts = place if times is None else times[place]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _write_silence(file: av.container.OutputContainer, seconds: int) -> None:
    stream = file.add_stream("aac", rate=8000, layout="mono")
    for start in range(0, 8000 * seconds, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, start
        file.mux(stream.encode(frame))
    file.mux(stream.encode())

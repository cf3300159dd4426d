"""JPEG bytes to frames and back. Needs no torch."""

import struct

import cv2
import numpy as np


def decode(jpeg: bytes, mode: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Decode a JPEG to RGB, uint8 [H, W, 3]; grey and CMYK are converted, an EXIF rotation is not applied.

    ``mode`` is cv2.IMREAD_COLOR for BGR, cv2.IMREAD_GRAYSCALE for grey [H, W]. Equals Pillow's
    ``Image.open(...).convert("RGB")``, which the original used; runs on the calling thread. Raises ValueError
    if the bytes are not a JPEG that can be decoded; of one that lacks its last bytes alone OpenCV fills in
    what is missing.
    """
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError(f"not a JPEG: {len(jpeg)} bytes that start with {jpeg[:4]!r}")
    # as fast as torchvision's (deprecated) decoder, twice as fast as Pillow: see benchmarks/loader.py
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
        raise ValueError(f"broken JPEG of {len(jpeg)} bytes")
    return frame


def decode_whole(jpeg: bytes) -> np.ndarray:
    """``decode`` that raises ValueError for a JPEG without its end too."""
    if not jpeg.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError(f"broken JPEG of {len(jpeg)} bytes: its end is missing")
    return decode(jpeg)


def encode(image: np.ndarray, quality: int) -> bytes:
    """JPEG of a BGR image, uint8 [H, W, 3], with ``quality`` 1 to 100."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def frame_size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) in pixels that the head of a JPEG announces; raises ValueError if it has none."""
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        kind, length = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)[0]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of frame, of any coding
            height, width = struct.unpack_from(">HH", jpeg, at + 5)
            if height and width:
                return height, width
        at += 1 if kind == 0xFF else 2 + length
    raise ValueError(f"not a JPEG with a size: {len(jpeg)} bytes that start with {jpeg[:4]!r}")

"""JPEG bytes to frames, frames to one small uint8 clip by crop and resize; on the CPU unless frames lie on a device.

Both follow Pillow, which the original used: frames equal ``Image.open(...).convert("RGB")``; resizing equals
``crop(...).resize(..., BICUBIC)``, which antialiases, within one or two grey levels (more for single pixels at hard
edges). On the CPU both run on the calling thread.
"""
import struct
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

CHUNK = 8  # frames resized in one call: enough to share the filter weights, few enough to stay in the cache


def decode(jpeg: bytes) -> np.ndarray:
    """Decode a JPEG to RGB, uint8 [H, W, 3]; grey and CMYK are converted, an EXIF rotation is not applied.

    Raises ValueError if the bytes are not a whole JPEG.
    """
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError(f"not a JPEG: {len(jpeg)} bytes that start with {jpeg[:4]!r}")
    # as fast as torchvision's (deprecated) decoder, twice as fast as Pillow: see benchmarks/loader.py
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
        raise ValueError(f"broken JPEG of {len(jpeg)} bytes")
    return frame


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


def crop_resize(
    frames: Sequence[np.ndarray | torch.Tensor],
    box: tuple[int, int, int, int],
    size: int,
    reference: tuple[int, int] | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cut ``box`` from every frame and resize it to ``size`` x ``size`` pixels, bicubic with antialias.

    frames: T arrays, or tensors on one device, uint8 [H, W, 3]. box: (top, left, height, width) in pixels of a frame of
    ``reference`` = (height, width), by default the first frame's; frames of another size are cut in proportion.
    Returns uint8 [T, size, size, 3], ``out`` if it is given.
    """
    reference = reference or tuple(frames[0].shape[:2])
    crops = [_cut(frame, box, reference) for frame in frames]
    step = CHUNK if len({crop.shape for crop in crops}) == 1 else 1
    clip = torch.empty(len(crops), size, size, 3, dtype=torch.uint8) if out is None else out
    for start in range(0, len(crops), step):
        chunk = crops[start : start + step]
        chunk = torch.stack(chunk) if isinstance(chunk[0], torch.Tensor) else torch.from_numpy(np.stack(chunk))
        chunk = chunk.permute(0, 3, 1, 2)  # [t, 3, h, w]
        if chunk.is_cuda:  # which resizes no bytes
            chunk = chunk.float()
        resized = F.interpolate(chunk, size=(size, size), mode="bicubic", antialias=True)
        if chunk.is_cuda:
            resized = resized.round_().clamp_(0, 255)
        clip[start : start + step] = resized.permute(0, 2, 3, 1)
    return clip


def _cut(frame: np.ndarray | torch.Tensor, box: tuple[int, int, int, int], reference: tuple[int, int]
         ) -> np.ndarray | torch.Tensor:
    """The part of ``frame`` [H, W, 3] under ``box``, which is given for a frame of ``reference`` pixels."""
    edges = []
    for start, extent, length, expected in zip(box[:2], box[2:], frame.shape[:2], reference, strict=True):
        first = min(start * length // expected, length - 1)
        edges.append(slice(first, max(first + 1, round((start + extent) * length / expected))))
    return frame[edges[0], edges[1]]

"""Frames to one small uint8 clip by crop and resize; on the CPU unless the frames lie on a device.

Resizing equals Pillow's ``crop(...).resize(..., BICUBIC)``, which the original used and which antialiases, within one
or two grey levels (more for single pixels at hard edges). On the CPU it runs on the calling thread.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from dataset.jpeg import decode

FRAMES_AT_ONCE = (
    8  # held at full size and resized in one call: they share filter weights and stay in the cache
)

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def decode_and_crop(
    jpegs: Sequence[bytes],
    shown: np.ndarray,
    boxes: Sequence[Box],
    reference: tuple[int, int],
    out: torch.Tensor,
) -> None:
    """Make clips of JPEGs, each decoded once: ``out[v, t]`` becomes ``boxes[v]`` of ``jpegs[shown[v, t]]``.

    shown: int [V, T], ascending in t. boxes, reference: see ``crop_resize``. out: uint8 [V, T, S, S, 3]. Raises
    ValueError for a JPEG that cannot be decoded.
    """
    for start in range(0, len(jpegs), FRAMES_AT_ONCE):
        frames = [decode(jpeg) for jpeg in jpegs[start : start + FRAMES_AT_ONCE]]
        for indices, box, clip in zip(shown, boxes, out, strict=True):
            first, end = np.searchsorted(indices, (start, start + len(frames)))
            if first < end:
                crop_resize(
                    [frames[i - start] for i in indices[first:end]],
                    box,
                    out.shape[-2],
                    reference,
                    clip[first:end],
                )


def crop_resize(
    frames: Sequence[np.ndarray | torch.Tensor],
    box: Box,
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
    step = FRAMES_AT_ONCE if len({crop.shape for crop in crops}) == 1 else 1
    clip = torch.empty(len(crops), size, size, 3, dtype=torch.uint8) if out is None else out
    resize = functools.partial(F.interpolate, size=(size, size), mode="bicubic", antialias=True)
    for start in range(0, len(crops), step):
        chunk = crops[start : start + step]
        chunk = (
            torch.stack(chunk) if isinstance(chunk[0], torch.Tensor) else torch.from_numpy(np.stack(chunk))
        )
        chunk = chunk.permute(0, 3, 1, 2)  # [t, 3, h, w]
        # a GPU resizes no bytes
        resized = resize(chunk.float()).round_().clamp_(0, 255) if chunk.is_cuda else resize(chunk)
        clip[start : start + step] = resized.permute(0, 2, 3, 1)
    return clip


def _cut(frame: np.ndarray | torch.Tensor, box: Box, reference: tuple[int, int]) -> np.ndarray | torch.Tensor:
    """The part of ``frame`` [H, W, 3] under ``box``, which is given for a frame of ``reference`` pixels."""
    edges = []
    for start, extent, length, expected in zip(box[:2], box[2:], frame.shape[:2], reference, strict=True):
        first = min(start * length // expected, length - 1)
        edges.append(slice(first, max(first + 1, round((start + extent) * length / expected))))
    return frame[edges[0], edges[1]]

"""Frames to small uint8 clips by crop and resize, on the calling thread.

Resizing equals Pillow's ``crop(...).resize(..., BICUBIC)``, which the original used and which antialiases,
within one or two grey levels (more for single pixels at hard edges).
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.source import FrameSource

# held at full size and resized in one call: they share filter weights and stay in the cache
FRAMES_AT_ONCE = 8

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Size = tuple[int, int]  # height, width in pixels


def read_clips(
    source: FrameSource, video: int, clips: np.ndarray, boxes: Sequence[Box], reference: Size, out: Tensor
) -> None:
    """Read clips of a video, each frame decoded once: ``out[v, t]`` becomes ``boxes[v]`` of ``clips[v, t]``.

    clips: int [V, T], ascending in t. boxes, reference: see ``crop_resize``. out: uint8 [V, T, S, S, 3].
    Raises BrokenVideo.
    """
    needed, shown = np.unique(clips, return_inverse=True)
    shown = shown.reshape(clips.shape)
    frames = source.frames(video, needed.tolist())
    for start in range(0, len(needed), FRAMES_AT_ONCE):
        held = list(itertools.islice(frames, FRAMES_AT_ONCE))
        for indices, box, clip in zip(shown, boxes, out, strict=True):
            first, end = np.searchsorted(indices, (start, start + len(held)))
            if first < end:
                chosen = [held[i - start] for i in indices[first:end]]
                clip[first:end] = crop_resize(chosen, box, out.shape[-2], reference)


def crop_resize(frames: Sequence[np.ndarray], box: Box, size: int, reference: Size | None = None) -> Tensor:
    """Cut ``box`` from every frame and resize it to ``size`` x ``size`` pixels, bicubic with antialias.

    frames: T arrays, uint8 [H, W, 3]. box: (top, left, height, width) in pixels of a frame of ``reference`` =
    (height, width), by default the first frame's; frames of another size are cut in proportion.
    Returns uint8 [T, size, size, 3].
    """
    reference = reference or frames[0].shape[:2]
    if len({frame.shape for frame in frames}) > 1:
        return torch.cat([crop_resize([frame], box, size, reference) for frame in frames])
    height, width = frames[0].shape[:2]
    top, left, box_height, box_width = box
    rows = _scaled(top, box_height, height, reference[0])
    columns = _scaled(left, box_width, width, reference[1])
    crops = torch.from_numpy(np.stack([frame[rows, columns] for frame in frames]))  # [T, h, w, 3]
    resized = F.interpolate(crops.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)


def _scaled(start: int, extent: int, length: int, expected: int) -> slice:
    """``extent`` pixels from ``start`` of a line of ``expected`` pixels, in one of ``length``; not empty."""
    first = min(start * length // expected, length - 1)
    return slice(first, max(first + 1, round((start + extent) * length / expected)))

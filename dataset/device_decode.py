"""The device side of ``--decode gpu``: a batch of JPEGs to the clips that workers make otherwise, by nvJPEG.

Importing torchvision takes a second, so only what needs it does.
"""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dataset.crop import crop_resize


def device_decodes(device: torch.device) -> bool:
    """Whether JPEGs can be decoded on this device: a GPU, and a torchvision that was built with nvJPEG."""
    if device.type != "cuda":
        return False
    from torchvision.io import ImageReadMode, decode_jpeg

    jpeg = torch.from_numpy(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1])
    try:
        decode_jpeg([jpeg], ImageReadMode.RGB, device)
    except RuntimeError:
        return False
    return True


def decode_clips(batch: dict[str, Any], size: int, device: torch.device) -> Tensor:
    """Clips uint8 [B, V, streams, T, size, size, 3] on ``device`` of a batch of encoded ``ClipDataset`` items.

    Raises RuntimeError for a JPEG that the device cannot decode.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    jpegs = batch["jpegs"].split(batch["sizes"].tolist())
    decoded = [
        frame.permute(1, 2, 0) for frame in decode_jpeg(list(jpegs), ImageReadMode.RGB, device)
    ]  # [H, W, 3]
    clips = torch.empty(*batch["frames"].shape, size, size, 3, dtype=torch.uint8, device=device)
    for sample, (frames, boxes, reference) in enumerate(
        zip(*(batch[name].tolist() for name in ("frames", "boxes", "reference")), strict=True)
    ):
        for view, box in enumerate(boxes):
            for stream, shown in enumerate(frames[view]):
                crop_resize([decoded[i] for i in shown], box, size, reference, clips[sample, view, stream])
    return clips

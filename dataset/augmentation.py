"""Augmentation: the random draws of training, and the operations that apply them on the training device.

The draws say which clip each view shows, its crop and its augmentation; they are pure functions of a
``numpy.random.Generator`` and touch no pixels. ``dataset.crop`` cuts and resizes by the drawn box on the CPU;
``augment`` turns a batch of uint8 clips into normalised network input, each clip by its own draws. The draws
stay on the CPU: which clips get which operation is known there, and nothing ever waits for the device.

Follows CoCLR's released augmentation (Han et al. 2020): every draw is made once per clip and holds for all
its frames, but for the channel of the grey operation, which is drawn per frame. Colour operations are
torchvision's on floats in [0, 1]; the blur is a true Gaussian with the edge pixels repeated outwards, as
Pillow repeats them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

JITTER_LOW = np.array([0.6, 0.6, 0.6, -0.1])  # brightness, contrast, saturation factors; hue shift in turns
JITTER_HIGH = np.array([1.4, 1.4, 1.4, 0.1])
JITTER_IDENTITY = np.array([1, 1, 1, 0], np.float32)
BLUR_SIGMA = (0.1, 2.0)  # pixels of the resized crop
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB and for flow
STD = (0.229, 0.224, 0.225)

# probability of each operation by strength
STRENGTHS = {
    "none": {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.0},
    "light": {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.5},
    "strong": {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5},
    "finetune": {"jitter": 0.3, "grey": 0.0, "blur": 0.0, "flip": 0.5},
}


@dataclass(frozen=True)
class View:
    """One view of a video: ``clip`` (0 or 1) of its two clips, augmented by a ``strength`` of STRENGTHS."""

    clip: int
    strength: str


def draw_pretrain_views(rng: np.random.Generator) -> tuple[View, View]:
    """Draw the two views of a pretraining sample.

    With probability 1/2 two clips, each strong with 0.3 and else light; otherwise one clip (drawn evenly) is
    both views, one strong and one light (order drawn evenly), and the other clip is not needed.
    """
    if rng.random() < 0.5:
        first, second = ("strong" if rng.random() < 0.3 else "light" for _ in range(2))
        return View(0, first), View(1, second)
    clip = int(rng.integers(2))
    first, second = ("strong", "light") if rng.random() < 0.5 else ("light", "strong")
    return View(clip, first), View(clip, second)


def draw_finetune_view(rng: np.random.Generator) -> tuple[View]:
    """The one view of a sample with labels; nothing of it is drawn."""
    return (View(0, "finetune"),)


def draw_crop(
    rng: np.random.Generator, height: int, width: int, finetune: bool = False
) -> tuple[int, int, int, int]:
    """Draw a random resized crop of a frame of ``height`` x ``width``: (top, left, height, width) in pixels.

    Area uniform in [0.2, 1] of the frame, aspect uniform in [3/4, 4/3], width and height swapped with 1/2. A
    box that does not fit gives the whole frame; with ``finetune`` it is drawn anew, and the tenth that does
    not fit gives the centre square of the short side.
    """
    for _ in range(10 if finetune else 1):
        area = rng.uniform(0.2, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    if not finetune:
        return 0, 0, height, width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def draw_augmentation(rng: np.random.Generator, strength: str, seq_len: int) -> dict[str, np.ndarray]:
    """Draw the augmentation of one clip of ``seq_len`` frames; ``strength`` is a key of STRENGTHS.

    The arrays have the same shapes whatever was drawn, so that they collate into a batch:
    ``jitter_order`` int64 [4], the order of brightness (0), contrast (1), saturation (2) and hue (3);
    ``jitter_factors`` float32 [4], by operation: three factors and the hue shift in turns, or (1, 1, 1, 0);
    ``grey_channel`` int64 [seq_len], the channel that replaces all three in each frame, -1 for no grey;
    ``blur_sigma`` float32 [], pixels, 0 for no blur; ``flip`` bool [].
    """
    applied = {operation: rng.random() < p for operation, p in STRENGTHS[strength].items()}
    factors = rng.uniform(JITTER_LOW, JITTER_HIGH) if applied["jitter"] else JITTER_IDENTITY
    return {
        "jitter_order": rng.permutation(4) if applied["jitter"] else np.arange(4),
        "jitter_factors": factors.astype(np.float32),
        "grey_channel": rng.integers(3, size=seq_len) if applied["grey"] else np.full(seq_len, -1),
        "blur_sigma": np.array(rng.uniform(*BLUR_SIGMA) if applied["blur"] else 0, np.float32),
        "flip": np.array(applied["flip"]),
    }


def without_colour(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The draws of ``draw_augmentation`` without jitter and grey: in flow, colours are directions."""
    return {
        **draws,
        "jitter_order": np.arange(4),
        "jitter_factors": JITTER_IDENTITY,
        "grey_channel": np.full_like(draws["grey_channel"], -1),
    }


def augment(clips: Tensor, draws: Mapping[str, Tensor], channels_last: bool = False) -> Tensor:
    """Augment and normalise a batch: colour jitter, grey, blur, flip, ImageNet mean and standard deviation.

    clips: uint8 [N, T, H, W, 3] on any device. draws: N of ``draw_augmentation`` collated, on the CPU.
    Returns float32 [N, 3, T, H, W], in channels_last_3d memory format if asked (free: it is the clips' own
    layout). Flow is an image here: a flip mirrors it and does not negate x.
    """
    order, factors = draws["jitter_order"], draws["jitter_factors"]
    grey, sigma = draws["grey_channel"], draws["blur_sigma"]
    blur = partial(_blur, radius=math.ceil(5 * float(sigma.max())))
    with torch.autocast(clips.device.type, enabled=False):
        x = _in_unit_range(clips, channels_last)
        for slot in range(4):
            for number, jitter in enumerate((_brightness, _contrast, _saturation, _hue)):
                factor = factors[:, number]
                chosen = (order[:, slot] == number) & (factor != float(JITTER_IDENTITY[number]))
                _apply(x, chosen, jitter, factor.view(-1, 1, 1, 1, 1))
        _apply(x, grey[:, 0] >= 0, _grey, grey)
        _apply(x, sigma > 0, blur, sigma)
        _apply(x, draws["flip"], _flip)
        return _normalize(x)


def evaluation_input(clips: Tensor, flip: Tensor, channels_last: bool = False) -> Tensor:
    """Like ``augment`` without colour or blur: normalised, and mirrored where ``flip`` bool [N] says so."""
    with torch.autocast(clips.device.type, enabled=False):
        x = _in_unit_range(clips, channels_last)
        _apply(x, flip, _flip)
        return _normalize(x)


def augment_batch(batch: Mapping[str, Any], channels_last: bool = False) -> Tensor:
    """``augment`` a batch of ``ClipDataset`` items: float32 [B, V, streams, 3, T, S, S]."""
    clips = batch["clips"]
    draws = {name: draw.flatten(0, 2) for name, draw in batch["draws"].items()}
    return augment(clips.flatten(0, 2), draws, channels_last).unflatten(0, clips.shape[:3])


def _in_unit_range(clips: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, T, H, W, 3] -> float32 [N, 3, T, H, W] from 0 to 1."""
    n, t, h, w, _ = clips.shape
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.empty((n, 3, t, h, w), device=clips.device, memory_format=memory_format)
    return torch.mul(clips.permute(0, 4, 1, 2, 3), 1 / 255, out=x)


def _clip_by_clip(device: torch.device) -> bool:
    """Whether views of single clips, which need no copies, are faster there than few kernels for many."""
    return device.type == "cpu"


def _apply(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Set x[chosen] to operation(x[chosen], parameters[chosen]); ``chosen`` [N], parameters: on the CPU."""
    if _clip_by_clip(x.device):
        for i in chosen.nonzero().flatten().tolist():
            clip = x[i : i + 1]
            result = operation(clip, *(parameter[i : i + 1] for parameter in parameters))
            if result is not clip:
                clip.copy_(result)
    elif chosen.any():
        there = [parameter[chosen].to(x.device, non_blocking=True) for parameter in parameters]
        rows = chosen.nonzero().flatten().to(x.device, non_blocking=True)
        x.index_copy_(0, rows, operation(x[rows], *there))


def _normalize(x: Tensor) -> Tensor:
    mean, std = torch.tensor([MEAN, STD]).view(2, 3, 1, 1, 1).to(x.device, non_blocking=True)
    return torch.addcmul(-mean / std, x, 1 / std, out=x)


def _luma(x: Tensor) -> Tensor:
    return (x[:, :1] * 0.2989).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)  # [n, 1, T, H, W]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(x).mean((-2, -1), keepdim=True)  # of each frame
    return x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    luma = _luma(x)
    return x.mul_(factor).add_(luma.mul_(1 - factor)).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns [n, 1, 1, 1, 1] in HSV space."""
    red, green, blue = x.unbind(1)  # [n, T, H, W]
    largest, smallest = x.amax(1), x.amin(1)
    chroma = largest - smallest
    sextant = torch.where(largest == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma)
    sextant = torch.where(largest == red, (green - blue) / chroma, sextant).nan_to_num_(0, 0, 0)
    hue = sextant.add_(6 * shift[:, 0]).remainder_(6)
    weights = (hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()
    for channel, weight in zip((red, green, blue), weights, strict=True):
        torch.addcmul(smallest, chroma, weight.clamp_(0, 1), out=channel)
    return x


def _grey(x: Tensor, channel: Tensor) -> Tensor:
    """Replace all three channels by one per frame; ``channel`` [n, T] in 0..2."""
    index = channel[:, None, :, None, None].expand(-1, 1, -1, *x.shape[-2:])
    return x.gather(1, index).expand_as(x)


def _flip(x: Tensor) -> Tensor:
    return x.flip(-1)


def _blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur every frame; ``sigma`` [n] in pixels; nothing counts beyond ``radius`` pixels outside it."""
    n, c, t, h, w = x.shape
    x = x.reshape(n, c * t * h, w) @ _gaussian(sigma, w, radius).mT
    return (_gaussian(sigma, h, radius)[:, None] @ x.view(n, c * t, h, w)).view(n, c, t, h, w)


def _gaussian(sigma: Tensor, length: int, radius: int) -> Tensor:
    """Matrices [n, length, length] that blur a line of pixels, its ends repeated outwards."""
    centre = torch.arange(length, device=sigma.device)[:, None]
    pixel = torch.arange(-radius, length + radius, device=sigma.device)
    distance = (pixel - centre) / sigma[:, None, None]  # [n, length, length + 2 radius]
    weight = torch.exp(-0.5 * distance**2)
    weight = weight * (weight > 1e-9)  # denormal numbers would make the matrix products ten times slower
    weight = weight / weight.sum(-1, keepdim=True)
    before, inside, after = weight.split([radius, length, radius], dim=-1)
    inside[..., 0] += before.sum(-1)
    inside[..., -1] += after.sum(-1)
    return inside

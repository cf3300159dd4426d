"""The device side of augmentation: a batch of uint8 clips to normalised network input, each clip by its own draws.

``dataset.views.draw_augmentation`` draws, this module computes. The draws stay on the CPU: which clips get which
operation is known there, and nothing ever waits for the device. Colour operations are torchvision's on floats in
[0, 1]; the blur is a true Gaussian with the edge pixels repeated outwards, as Pillow repeats them.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB and for flow
STD = (0.229, 0.224, 0.225)


def augment(clips: Tensor, draws: Mapping[str, Tensor], channels_last: bool = False) -> Tensor:
    """Augment and normalise a batch: colour jitter, grey, blur, flip, ImageNet mean and standard deviation.

    clips: uint8 [N, T, H, W, 3] on any device. draws: N results of ``draw_augmentation`` collated, on the CPU.
    Returns float32 [N, 3, T, H, W], in channels_last_3d memory format if asked (free: it is the clips' own layout).
    Flow is an image here: a flip mirrors it and does not negate x.
    """
    order, factors, grey, sigma = (
        draws[k] for k in ("jitter_order", "jitter_factors", "grey_channel", "blur_sigma")
    )
    factors_there, grey_there, sigma_there, mean, std = (
        value.to(clips.device, non_blocking=True)
        for value in (factors.view(-1, 4, 1, 1, 1, 1), grey, sigma, torch.tensor(MEAN), torch.tensor(STD))
    )
    n, t, h, w, _ = clips.shape
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.empty((n, 3, t, h, w), device=clips.device, memory_format=memory_format)
    with torch.autocast(clips.device.type, enabled=False):
        torch.mul(clips.permute(0, 4, 1, 2, 3), 1 / 255, out=x)
        for slot in range(4):
            for operation, (jitter, identity) in enumerate(JITTER):
                members = (order[:, slot] == operation) & (factors[:, operation] != identity)
                _update(x, members, jitter, factors_there[:, operation])
        _update(x, grey[:, 0] >= 0, _grey, grey_there)
        _update(x, sigma > 0, partial(_blur, radius=math.ceil(5 * float(sigma.max()))), sigma_there)
        _update(x, draws["flip"], lambda part: part.flip(-1))
        mean, std = mean.view(3, 1, 1, 1), std.view(3, 1, 1, 1)
        return torch.addcmul(-mean / std, x, 1 / std, out=x)


def _clip_by_clip(device: torch.device) -> bool:
    """Whether views of single clips, which need no copies, are faster there than few kernels for many clips."""
    return device.type == "cpu"


def _update(x: Tensor, members: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Set x[members] to operation(x[members], parameters[members]); ``members`` is bool [N] on the CPU."""
    rows = members.nonzero().flatten()
    if _clip_by_clip(x.device):
        for i in rows.tolist():
            part = x[i : i + 1]
            result = operation(part, *(p[i : i + 1] for p in parameters))
            if result is not part:
                part.copy_(result)
    elif len(rows):
        rows = rows.to(x.device, non_blocking=True)
        x.index_copy_(0, rows, operation(x[rows], *(p[rows] for p in parameters)))


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
    for channel, weight in zip(
        (red, green, blue), ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()), strict=True
    ):
        torch.addcmul(smallest, chroma, weight.clamp_(0, 1), out=channel)
    return x


JITTER = (
    (_brightness, 1.0),
    (_contrast, 1.0),
    (_saturation, 1.0),
    (_hue, 0.0),
)  # with the factor that changes nothing


def _grey(x: Tensor, channel: Tensor) -> Tensor:
    """Replace all three channels by one per frame; ``channel`` [n, T] in 0..2."""
    index = channel[:, None, :, None, None].expand(-1, 1, -1, *x.shape[-2:])
    return x.gather(1, index).expand_as(x)


def _blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur every frame; ``sigma`` [n] in pixels of the frame, beyond ``radius`` pixels outside it nothing counts."""
    n, c, t, h, w = x.shape
    x = x.reshape(n, c * t * h, w) @ _gaussian(sigma, w, radius).mT
    return (_gaussian(sigma, h, radius)[:, None] @ x.view(n, c * t, h, w)).view(n, c, t, h, w)


def _gaussian(sigma: Tensor, length: int, radius: int) -> Tensor:
    """Matrices [n, length, length] that blur a line of pixels, its ends repeated outwards."""
    centre = torch.arange(length, device=sigma.device)[:, None]
    pixel = torch.arange(-radius, length + radius, device=sigma.device)
    weight = torch.exp(
        -0.5 * ((pixel - centre) / sigma[:, None, None]) ** 2
    )  # [n, length, length + 2 radius]
    weight = weight * (weight > 1e-9)  # denormal numbers would make the matrix products ten times slower
    weight = weight / weight.sum(-1, keepdim=True)
    before, inside, after = weight.split([radius, length, radius], dim=-1)
    inside[..., 0] += before.sum(-1)
    inside[..., -1] += after.sum(-1)
    return inside

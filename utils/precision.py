"""Mixed precision: autocast by name, and refusal of what the device computes wrongly."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_COSINE = 0.9


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the encoders run in ``precision``: "fp32", "bf16" or "fp16"."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def refuse_unsound_precision(
    precision: str, device: torch.device, encoder: nn.Module, clip_shape: tuple[int, ...]
) -> None:
    """On a CPU, refuse fp16, and bf16 if its gradient of ``encoder``, channels-last, is not nearly fp32's.

    One pass in each on the same smooth clips [B, 3, T, H, W], in training mode. bf16 weight gradients of some CPUs are
    not finite, or have little to do with fp32's.
    """
    if precision == "fp32" or device.type != "cpu":
        return
    if precision == "fp16":
        raise UserError("--precision fp16 is for GPUs; on a CPU use fp32 or bf16")
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(*clip_shape[:2], 4, 4, 4, generator=random)
    clips = F.interpolate(coarse, clip_shape[2:], mode="trilinear").to(memory_format=torch.channels_last_3d)
    gradients, weight = [], None
    for name in ("fp32", precision):
        trial = copy.deepcopy(encoder).train().to(memory_format=torch.channels_last_3d)
        with autocast(name, device):
            output = F.normalize(trial(clips).float().flatten(1))
        weight = torch.randn(output.shape, generator=random) if weight is None else weight
        (output * weight).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trial.parameters() if p.grad is not None]))
    cosine = F.cosine_similarity(*gradients, dim=0).item()
    if not cosine >= LEAST_COSINE:  # nor NaN
        size = "x".join(map(str, clip_shape[2:]))
        raise UserError(
            f"--precision {precision} on this CPU: its gradient for clips of {size} has a cosine of "
            f"{cosine:.2f} to that of fp32, {LEAST_COSINE} is wanted; use --precision fp32 or a GPU"
        )

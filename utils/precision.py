"""Mixed precision: autocast by name, and refusal of what the device computes wrongly."""
import copy

import torch
from torch import nn

from utils.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the encoders run in ``precision``: "fp32", "bf16" or "fp16"."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def refuse_unsound_precision(precision: str, device: torch.device, encoder: nn.Module,
                             clip_shape: tuple[int, ...], channels_last: bool) -> None:
    """On a CPU, refuse fp16, and bf16 if one backward pass of a copy of ``encoder`` on noise [B, 3, T, H, W] fails.

    Nothing is compared with fp16 there; bf16 weight gradients are not finite on some CPUs, in one of the memory layouts
    or for small feature maps.
    """
    if precision == "fp32" or device.type != "cpu":
        return
    if precision == "fp16":
        raise UserError("--precision fp16 is for GPUs; on a CPU use fp32 or bf16")
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    trial = copy.deepcopy(encoder).train().to(memory_format=layout)
    noise = torch.randn(clip_shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    with autocast(precision, device):
        output = trial(noise)
    output.float().square().mean().backward()
    bad = [name for name, p in trial.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        size = "x".join(map(str, clip_shape[2:]))
        raise UserError(f"--precision {precision} on this CPU gives non-finite gradients for clips of {size} "
                        f"(first in {bad[0]}); use --precision fp32, "
                        f"{'larger clips' if channels_last else '--channels_last'} or a GPU")

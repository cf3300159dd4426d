"""How the device computes: mixed precision and memory layout, and refusal of what it computes wrongly."""

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError
from utils.log import log

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_ERROR = 0.4  # of gradients of single layers, relative


def uses_channels_last(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether clips lie channels-last in memory: where asked for and, as it is quicker, always on a CPU."""
    return args.channels_last or device.type == "cpu"


def to_device(module: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """``module`` itself on ``device``, its 3D kernels in the layout of the clips."""
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return module.to(device, memory_format=layout)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the encoders run in ``precision``: "fp32", "bf16" or "fp16"."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def refuse_unsound_precision(
    precision: str, device: torch.device, encoder: nn.Module, clip_shape: tuple[int, ...]
) -> None:
    """On a CPU, refuse fp16, and bf16 that computes a layer of ``encoder`` wrongly there.

    One pass over smooth clips [B, 3, T, H, W], channels-last and in training mode. Gradients of some
    CPUs are not finite in bf16, or have little to do with fp32's. Where each layer is right by
    itself, rounding may still turn the gradient of a network that has hardly trained; such networks
    trained as well, so that is only said. Emulated bf16, which is slow, is warned of.
    """
    if precision == "fp32" or device.type != "cpu":
        return
    if precision == "fp16":
        raise UserError("--precision fp16 is for GPUs; on a CPU use fp32 or bf16")
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # on x86; elsewhere it does not tell
        log.warning(
            "this CPU has no bf16 instructions, so that bf16 is emulated, many times slower than fp32: "
            "use --precision fp32"
        )
    trial = copy.deepcopy(encoder).train().to(memory_format=torch.channels_last_3d)
    errors = watch_layers(trial, precision, device)
    coarse = torch.randn(*clip_shape[:2], 4, 4, 4, generator=torch.Generator().manual_seed(0))
    clips = F.interpolate(coarse, clip_shape[2:], mode="trilinear").to(memory_format=torch.channels_last_3d)
    with torch.no_grad(), autocast(precision, device):
        trial(clips)
    layer = max(errors, key=errors.get)
    if errors[layer] > LARGEST_ERROR:
        raise UserError(
            f"--precision {precision} on this CPU: the gradient of layer {layer} for clips of "
            f"{'x'.join(map(str, clip_shape[2:]))} is off by {errors[layer]:.0%} of that of fp32, at most "
            f"{LARGEST_ERROR:.0%} are due to rounding; use --precision fp32 or a GPU"
        )
    log.info(
        f"--precision {precision} on a CPU: gradients of single layers are those of fp32 "
        f"within {errors[layer]:.1%}, but that of a network that has hardly trained hangs on rounding: "
        "watch the first epochs"
    )


def watch_layers(module: nn.Module, precision: str, device: torch.device) -> dict[str, float]:
    """Fill the returned dictionary, as ``module`` runs, with the error of each layer in ``precision``.

    The error is the largest, over input and parameters, of the norm of the difference to the
    gradient of fp32, divided by the norm of that. Each layer is given the input that it gets,
    and random gradients of its output.
    """
    errors: dict[str, float] = {}

    def measure(name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        weight = None  # the gradient of the output
        gradients = []
        for arithmetic, dtype in (("fp32", torch.float32), (precision, inputs[0].dtype)):
            x = inputs[0].detach().to(dtype).requires_grad_()
            with torch.enable_grad(), autocast(arithmetic, device):
                y = layer.forward(x).float()  # without the hook
                if weight is None:
                    weight = torch.empty_like(y).normal_(generator=torch.Generator().manual_seed(0))
                gradients.append(torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()]))
        pairs = zip(*gradients, strict=True)
        errors[name] = max(relative_error(own.float(), wanted) for wanted, own in pairs)

    for name, layer in module.named_modules():
        if list(layer.parameters(recurse=False)):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: measure(name, layer, inputs))
    return errors


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is ``wanted``; infinite for a value that is not finite."""
    if not value.isfinite().all():
        return math.inf
    return ((value - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()

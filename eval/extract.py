"""Network outputs averaged over the windows and crops of each video: windows of many videos share a forward batch."""

import collections
import copy
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from dataset.augmentation import JITTER_IDENTITY, augment
from dataset.loader import window_loader
from dataset.window_dataset import Item, WindowDataset
from utils.launch import World
from utils.precision import autocast

log = logging.getLogger("coclr")

CROPS = {"center": 1, "five": 5, "ten": 5}  # spatial crops decoded; ten = five and their mirror images


def views_of(crops: str) -> dict[str, list[int]]:
    """Views averaged for each result of a ``crops`` test, which also gives the smaller tests.

    With m mirror images per crop (1, or 2 for ten), view crop * m + flip is a crop and whether it is mirrored.
    """
    if crops == "center":
        return {"center": [0]}
    if crops == "five":
        return {"center": [4], "five": list(range(5))}
    return {"center": [8], "five": list(range(0, 10, 2)), "ten": list(range(10))}


def packed(
    items: Iterable[Item], mirrored: Sequence[bool], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches of exactly ``batch_size`` windows (the last has the rest), across videos, crops and mirror images.

    Yields clips uint8 [n, T, S, S, 3] on the device, and flip bool, video int64 and view int64, [n] each, on the CPU.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    room = batch_size
    for item in items:
        frames = item["frames"].to(device, non_blocking=True)  # [crops, F, S, S, 3]
        views = itertools.product(range(len(frames)), mirrored)
        for view, (crop, flip) in enumerate(views):
            start = 0
            while start < len(item["windows"]):
                windows = item["windows"][start : start + room]  # [w, T]
                clips = frames[crop][windows.to(device, non_blocking=True)]  # [w, T, S, S, 3]
                parts.append(
                    (clips, *(torch.full((len(windows),), value) for value in (flip, item["video"], view)))
                )
                start, room = start + len(windows), room - len(windows)
                if room == 0:
                    yield tuple(map(torch.cat, zip(*parts, strict=True)))
                    parts, room = [], batch_size
    if parts:
        yield tuple(map(torch.cat, zip(*parts, strict=True)))


def normalised(clips: Tensor, flip: Tensor, channels_last: bool) -> Tensor:
    """uint8 [n, T, S, S, 3] -> network input [n, 3, T, S, S], mirrored where ``flip`` [n] says so."""
    n, t = clips.shape[:2]
    draws = {
        "jitter_order": torch.arange(4).expand(n, 4),
        "jitter_factors": torch.tensor(JITTER_IDENTITY).expand(n, 4),
        "grey_channel": torch.full((n, t), -1),
        "blur_sigma": torch.zeros(n),
        "flip": flip,
    }
    return augment(clips, draws, channels_last)


def folded(network: nn.Module) -> nn.Module:
    """A copy for inference alone: batch norms become part of the convolutions before them (conv, bn; conv1, bn1...)."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for name, conv in list(module.named_children()):
            norm = getattr(module, name.replace("conv", "bn"), None)
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, name.replace("conv", "bn"), nn.Identity())
    return network


def in_threads(
    work: Callable[[Any], Any], arguments: Iterable[Any], threads: int
) -> Iterator[tuple[Any, Any]]:
    """Each argument and ``work`` of it, in order; ``threads`` threads work, each on one core, none if that is 1."""
    if threads == 1:
        yield from ((argument, work(argument)) for argument in arguments)
        return
    before, pending = torch.get_num_threads(), collections.deque()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for argument in arguments:
                pending.append((argument, pool.submit(work, argument)))
                if len(pending) > threads:
                    argument, result = pending.popleft()
                    yield argument, result.result()
            for argument, result in pending:
                yield argument, result.result()
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def average_over_windows(
    network: Callable[[Tensor], Tensor],
    size: int,
    dataset: WindowDataset,
    views: dict[str, list[int]],
    world: World,
    batch_size: int,
    workers: int = 0,
    precision: str = "fp32",
    channels_last: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """Mean output of ``network`` over all windows of each video and over the views of each result.

    Args:
        network: clips [n, 3, T, S, S] -> outputs [n, size].
        views: see ``views_of``.
        batch_size: windows in one forward pass.

    Returns the means by result, float32 [V, size] on the CPU, and which videos could be read, bool [V]; the same on
    every rank. The processes share the videos, every window counts once, and batches and processes change nothing.
    """
    device = world.device
    mirrored = (False, True) if max(map(max, views.values())) >= dataset.crops else (False,)
    sums = torch.zeros(
        dataset.crops * len(mirrored), len(dataset.videos), size, dtype=torch.float64, device=device
    )
    windows = torch.zeros(len(dataset.videos), dtype=torch.float64)

    def counted() -> Iterator[Item]:
        items = window_loader(dataset, workers, world.rank, world.size, device)
        quiet = None if world.is_main else True  # None: where it is not a terminal
        for item in tqdm(items, "test", unit="video", disable=quiet, leave=False, dynamic_ncols=True):
            # NaN marks a video for all ranks, also where another part of it could be read
            windows[item["video"]] += float("nan") if item["broken"] else len(item["windows"])
            if item["broken"]:
                log.warning("left out: %s", item["broken"])
            else:
                yield item

    def forward(batch: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad(), autocast(precision, device):
            return network(normalised(*batch[:2], channels_last))

    # on a CPU, a batch in parts on as many cores is faster than on all of them as one
    threads = max(len(os.sched_getaffinity(0)) // world.size, 1) if device.type == "cpu" else 1
    # TF32 and the choice of an algorithm by trial would make results depend on the batch
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        batches = packed(counted(), mirrored, -(-batch_size // threads), device)
        for (_, _, video, view), output in in_threads(forward, batches, threads):
            rows = (view * len(dataset.videos) + video).to(device)
            sums.flatten(0, 1).index_add_(0, rows, output.double())
    windows = windows.to(device)
    if world.size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(windows)
    readable = windows.isfinite()
    means = {
        name: (sums[chosen].sum(dim=0) / (windows[:, None] * len(chosen))).float().cpu()
        for name, chosen in views.items()
    }
    return means, readable.cpu()

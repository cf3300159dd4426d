"""What a network says of videos: means over windows and crops. Windows of many videos share a batch."""

import collections
import copy
import itertools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import default_collate

from dataset.augmentation import evaluation_input
from dataset.loader import window_loader
from dataset.registry import Videos, open_videos
from dataset.window_dataset import WindowDataset
from model.classifier import LinearClassifier
from utils.cores import available_cores
from utils.errors import UserError
from utils.launch import World
from utils.log import log, progress
from utils.precision import autocast, to_device, uses_channels_last
from utils.processes import local_processes

CROPS = {"middle": 1, "center": 1, "five": 5, "ten": 5}  # that are decoded; ten: five and mirror images
VIEWS = {  # averaged for each result of a test; of ten, view 2 crop + 1 is the mirror image of a crop
    "middle": {"center": [0]},
    "center": {"center": [0]},
    "five": {"center": [4], "five": [0, 1, 2, 3, 4]},
    "ten": {"center": [8], "five": [0, 2, 4, 6, 8], "ten": list(range(10))},
}


def read_videos(args: Namespace, *parts: str) -> list[Videos]:
    """The videos of each of the ``parts``; UserError where they do not have the same classes."""
    found = [
        open_videos(args.dataset, part, args.seq_len, args.ds, args.data_root, vars(args), args.which_split)
        for part in parts
    ]
    if any(videos.classes != found[0].classes for videos in found):
        raise UserError("training and test videos have different classes; put one classes.txt beside both")
    return found


def features_of(
    backbone: nn.Module, size: int, videos: Videos, args: Namespace, world: World, per_window: bool = False
) -> tuple[Tensor, Videos]:
    """Features [V, size] of the network: the global average of the centre crop, see ``predict``."""
    network = for_inference(backbone, args, world)

    def global_average(clips: Tensor) -> Tensor:
        return network(clips).float().mean(dim=(2, 3, 4))

    means, readable = predict(global_average, size, videos, args, world, per_window=per_window)
    return means["center"], readable


def class_probabilities(
    model: LinearClassifier, videos: Videos, args: Namespace, world: World, crops: str = "center"
) -> tuple[dict[str, Tensor], Videos]:
    """Class probabilities [V, classes], see ``predict``; leaves the model in eval mode."""
    model.eval()

    def probabilities(clips: Tensor) -> Tensor:
        return model(clips)[0].float().softmax(dim=1)

    return predict(probabilities, len(videos.classes), videos, args, world, crops)


@torch.no_grad()
def predict(
    network: Callable[[Tensor], Tensor],
    size: int,
    videos: Videos,
    args: Namespace,
    world: World,
    crops: str = "center",
    per_window: bool = False,
) -> tuple[dict[str, Tensor], Videos]:
    """Mean output of ``network`` over all windows of each video and the views of each result of ``crops``.

    Args:
        network: clips [n, 3, T, S, S] -> outputs [n, size].
        videos: of one stream.
        args: seq_len (T), ds, img_dim (S), batch_size (windows in one forward pass), workers, precision and
            channels_last of the options are read.
        crops: "center", "five" or "ten", see ``VIEWS``; "middle": the centre of the middle window of a video.
        per_window: no means over windows, but a row for each, those of a video one after another.

    Returns the means by result, float32 [V, size] on the CPU, and the V videos that could be read; the same
    on every rank. The processes share the videos, every window counts once, and batches and processes change
    nothing. Raises UserError where no video can be read.
    """
    device = world.device
    flips = (False, True) if crops == "ten" else (False,)
    is_middle = crops == "middle"
    dataset = WindowDataset(videos, args.seq_len, args.ds, args.img_dim, CROPS[crops], is_middle)
    rows_of_items = [torch.full((end - first,), video) for video, first, end in dataset.spans]
    video_of_row = torch.arange(len(videos))
    if per_window:
        video_of_row = torch.cat(rows_of_items)
        rows_of_items = torch.arange(len(video_of_row)).split([len(rows) for rows in rows_of_items])
    count = len(video_of_row)
    sums = torch.zeros(CROPS[crops] * len(flips) * count, size, dtype=torch.float64, device=device)
    windows_seen = torch.zeros(count, dtype=torch.float64)

    def clips_of_views() -> Iterator[tuple[Tensor, bool, int]]:
        """Clips uint8 [T, S, S, 3], whether they are to be mirrored, the row of ``sums`` for their output."""
        items = window_loader(dataset, args.workers, world)
        bar = progress(items, "test", "video", world.is_main)
        for item, rows in zip(bar, rows_of_items[world.rank :: world.size], strict=True):
            if item["broken"]:
                log.warning("left out: %s", item["broken"])
                windows_seen[rows] = float("nan")  # on all ranks, also where other parts could be read
                continue
            windows_seen.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
            frames = item["frames"].to(device, non_blocking=True)  # [crops, F, S, S, 3]
            windows = item["windows"].to(device, non_blocking=True)  # [W, T]
            for view, (crop, flip) in enumerate(itertools.product(range(len(frames)), flips)):
                for window, row in zip(windows, rows.tolist(), strict=True):
                    yield frames[crop][window], flip, view * count + row

    def forward(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        clips, flip, rows = batch
        with torch.no_grad(), autocast(args.precision, device):
            return rows, network(evaluation_input(clips, flip, uses_channels_last(args, device)))

    # on a CPU, a batch in parts on as many cores is faster than on all of them as one
    threads = max(available_cores() // local_processes(), 1) if device.type == "cpu" else 1
    # TF32 and the choice of an algorithm by trial would make results depend on the batch
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        batches = batched(clips_of_views(), -(-args.batch_size // threads))
        for rows, output in in_threads(forward, batches, threads):
            sums.index_add_(0, rows.to(device), output.double())
    windows_seen = windows_seen.to(device)
    if world.size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(windows_seen)
    broken = video_of_row[windows_seen.isnan().cpu()].unique()
    readable = torch.isin(torch.arange(len(videos)), broken, invert=True)
    if not readable.any():
        raise UserError(f"none of the {len(videos)} videos could be read; prepare them again")
    kept = readable[video_of_row].to(device)
    sums = sums.unflatten(0, (-1, count))  # [views, rows, size]
    means = {
        result: (sums[chosen].sum(dim=0) / (windows_seen[:, None] * len(chosen)))[kept].float().cpu()
        for result, chosen in VIEWS[crops].items()
    }
    return means, videos.subset(np.flatnonzero(readable))


def batched(samples: Iterator[Any], size: int) -> Iterator[Any]:
    """Batches of ``size`` samples, across videos and views; the last has the rest."""
    while batch := list(itertools.islice(samples, size)):
        yield default_collate(batch)


def in_threads(work: Callable[[Any], Any], arguments: Iterable[Any], threads: int) -> Iterator[Any]:
    """``work`` of each argument, in order; by ``threads`` threads of one core each, none for 1."""
    if threads == 1:
        yield from map(work, arguments)
        return
    before, pending = torch.get_num_threads(), collections.deque()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for argument in arguments:
                pending.append(pool.submit(work, argument))
                if len(pending) > threads:
                    yield pending.popleft().result()
            yield from (future.result() for future in pending)
    finally:
        torch.set_num_threads(before)


def for_inference(module: nn.Module, args: Namespace, world: World) -> nn.Module:
    """A copy on the device, batch norms folded into convolutions; compiled, channels-last where asked for."""
    module = fold_batch_norms(module)
    if args.compile:
        module.compile()
    return to_device(module, world.device, uses_channels_last(args, world.device))


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy for inference: batch norms join the convolutions that they follow (conv, bn; conv1, bn1...)."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for name, conv in list(module.named_children()):
            norm = getattr(module, name.replace("conv", "bn"), None)
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, name.replace("conv", "bn"), nn.Identity())
    return network

"""Loaders: the order of training, shared out to the ranks, and processes that read ahead."""

import argparse
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from dataset.clip_dataset import ClipDataset
from dataset.registry import open_videos, parse_name
from dataset.window_dataset import Item, WindowDataset
from utils.cores import available_cores
from utils.errors import UserError
from utils.launch import World
from utils.workers import check_shared_memory, start_worker


class ShuffledBatches:
    """Batch sampler: every epoch another order, shared out to the ranks; an incomplete last batch is dropped.

    Yields lists of (epoch, index). The order follows from (seed, epoch), so a run can go on from any video of
    it. Where another batch size or number of ranks does not divide what is left, videos seen before fill up
    the last batch.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int, seed: int):
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size
        self.seed = seed
        self.epoch, self.videos_seen = 0, 0

    @property
    def global_batch(self) -> int:
        """Videos per step of all ranks together."""
        return self.batch_size * self.world_size

    def start_at(self, epoch: int, videos_seen: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and how many of its videos all ranks had before."""
        self.epoch, self.videos_seen = epoch, videos_seen

    def __len__(self) -> int:
        """Batches that are left of the epoch."""
        left = self.length // self.global_batch * self.global_batch - self.videos_seen
        return max(math.ceil(left / self.global_batch), 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        left = np.roll(order, -self.videos_seen)  # those seen before come last, to fill up the last batch
        for batch in range(len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, int(i)) for i in left[start : start + self.batch_size]]


def make_loader(dataset: ClipDataset, batch_size: int, workers: int, world: World) -> DataLoader:
    """Loader of shuffled batches whose workers live on between epochs; at most one worker per available core.

    Raises UserError for fewer videos than a batch.
    """
    batches = ShuffledBatches(len(dataset), batch_size, world.rank, world.size, dataset.seed)
    if len(batches) == 0:
        needed = f"one batch of {batch_size} on each of {world.size} processes"
        raise UserError(f"{len(dataset)} videos are fewer than {needed}; lower --batch_size")
    workers = min(workers, available_cores())
    options = {"batch_sampler": batches, "persistent_workers": workers > 0}
    return _loader(dataset, batch_size, workers, world, **options)


def window_loader(dataset: WindowDataset, workers: int, world: World) -> Iterable[Item]:
    """This rank's share of the items, one at a time: together the ranks see each item once."""
    share = range(world.rank, len(dataset), world.size)
    workers = min(workers, available_cores(), len(share))
    return _loader(dataset, 1, workers, world, batch_size=None, sampler=share)


def _loader(dataset: Dataset, items: int, workers: int, world: World, **options: Any) -> DataLoader:
    """A loader that sends so many ``items`` at a time."""
    check_shared_memory(items * dataset.item_bytes(), workers)
    options |= {"num_workers": workers, "worker_init_fn": start_worker}
    return DataLoader(dataset, pin_memory=world.device.type == "cuda", **options)


def pretraining_loader(args: argparse.Namespace, world: World, streams: int) -> DataLoader:
    """Loader of two views of each training video, in the one or two ``streams`` that the main needs.

    Raises UserError for a --dataset whose name stands for something else.
    """
    name = parse_name(args.dataset)
    if name.clips != 2 or len(name.streams) != streams:
        right = f"{name.base}-2stream-2clip" if streams == 2 else f"{name.base}-2clip or {name.base}-f-2clip"
        needed = f"two clips of {streams} stream(s) per video, that is {right}"
        raise UserError(f"--dataset {args.dataset}: this training needs {needed}")
    videos = open_videos(args.dataset, "train", args.seq_len, args.ds, args.data_root, vars(args))
    flow_colour = bool(args.flow_colour)
    dataset = ClipDataset(videos, args.seq_len, args.ds, args.img_dim, args.seed, flow_colour=flow_colour)
    return make_loader(dataset, args.batch_size, args.workers, world)

"""The one dataset: random clips of the videos of any dataset, in any streams, as uint8 frames plus their draws."""
import argparse
import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.clips import train_clip
from dataset.crop import crop_resize, decode
from dataset.registry import Videos, open_videos, parse_name
from dataset.store import BrokenVideo
from dataset.views import View, draw_augmentation, draw_crop, draw_pretrain_views
from utils.errors import UserError

FRAMES_AT_ONCE = 4  # full-size frames held by a worker; with all of them a sample costs up to 1700 page faults

Sample = dict[str, Tensor | dict | int | str]


class ClipDataset(Dataset):
    """Random clips of ``videos``; item (epoch, i) is video i as drawn in that epoch.

    Draws follow from (seed, epoch, i) alone: they repeat for equal seeds and do not depend on workers or ranks.

    Args:
        videos: what to read, see ``dataset.registry.open_videos``.
        seq_len: frames per clip (T).
        ds: stride between them.
        img_dim: side of the cropped frames in pixels (S).
        seed: seed of all draws.
        draw_views: draws the views (V) of a sample, each a clip and a strength of augmentation.
        draw_box: draws the crop of a view, see ``draw_crop``.

    An item is a dict: "clips" uint8 [V, streams, T, S, S, 3]; "draws", the augmentation draws [V, ...] for
    ``utils.augment``, common to the streams of a view; "label", "source", "index" of the video; "broken", why the
    video asked for could not be read ("" normally): then another video stands in for it.
    """

    def __init__(self, videos: Videos, seq_len: int, ds: int, img_dim: int, seed: int,
                 draw_views: Callable[[np.random.Generator], tuple[View, ...]] = draw_pretrain_views,
                 draw_box: Callable[[np.random.Generator, int, int], tuple[int, int, int, int]] = draw_crop):
        self.videos, self.seq_len, self.ds, self.img_dim, self.seed = videos, seq_len, ds, img_dim, seed
        self.draw_views, self.draw_box = draw_views, draw_box

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        problems = []
        for candidate in self._candidates(index):
            try:
                return self._sample(epoch, candidate) | {"broken": "; ".join(problems)}
            except BrokenVideo as error:
                problems.append(str(error))
        raise UserError(f"every one of {len(self)} videos is unreadable, e.g. {problems[0]}; prepare them again")

    def _candidates(self, index: int) -> Iterator[int]:
        """The video itself, then the ones that stand in for it while it is broken."""
        return ((index + offset) % len(self) for offset in range(len(self)))

    def _sample(self, epoch: int, index: int) -> Sample:
        videos = self.videos
        rng = np.random.default_rng((self.seed, epoch, index))
        views = self.draw_views(rng)
        clips = [train_clip(rng, int(videos.frames[index]), self.seq_len, self.ds)
                 for _ in range(1 + max(view.clip for view in views))]
        needed = np.unique(np.concatenate([clips[view.clip] for view in views]))
        pixels = torch.empty(len(views), len(videos.stores), self.seq_len, self.img_dim, self.img_dim, 3,
                             dtype=torch.uint8)
        boxes, draws = [], []
        for stream, name in enumerate(videos.stores):
            jpegs = videos.stores[name].read_frames(int(videos.positions[name][index]), needed.tolist())
            for start in range(0, len(needed), FRAMES_AT_ONCE):
                part = needed[start:start + FRAMES_AT_ONCE]
                try:
                    frames = [decode(jpeg) for jpeg in jpegs[start:start + FRAMES_AT_ONCE]]
                except ValueError as error:
                    raise BrokenVideo(videos.names[index], f"{name} frame: {error}") from error
                if not draws:
                    reference = frames[0].shape[:2]
                    for view in views:
                        boxes.append(self.draw_box(rng, *reference))
                        draws.append(draw_augmentation(rng, view.strength, self.seq_len))
                for view, box, out in zip(views, boxes, pixels[:, stream], strict=True):
                    clip = clips[view.clip]
                    first, end = np.searchsorted(clip, (part[0], part[-1] + 1))
                    if first < end:
                        chosen = [frames[i] for i in np.searchsorted(part, clip[first:end])]
                        crop_resize(chosen, box, self.img_dim, reference, out[first:end])
        return {
            "clips": pixels,
            "draws": {name: torch.as_tensor(np.stack([draw[name] for draw in draws])) for name in draws[0]},
            "label": int(videos.labels[index]),
            "source": int(videos.sources[index]),
            "index": index,
        }


class ShuffledBatches:
    """Batch sampler: every epoch another order, shared out to the ranks; the last incomplete global batch is dropped.

    Yields lists of (epoch, index). The order follows from (seed, epoch), so a run can go on from any batch.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int, seed: int):
        self.length, self.batch_size, self.rank, self.world_size, self.seed = length, batch_size, rank, world_size, seed
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and its first batch."""
        self.epoch, self.first_batch = epoch, first_batch

    def batches_per_epoch(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        return self.batches_per_epoch() - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for batch in range(self.first_batch, self.batches_per_epoch()):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, int(i)) for i in order[start:start + self.batch_size]]


def start_worker(worker: int) -> None:
    """DataLoader worker_init_fn: one core for OpenCV too; signals are for the training process to answer."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def kill_workers() -> None:
    """End workers that are left when a run fails: they ignore SIGTERM, for which multiprocessing would wait forever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch raises that a worker was killed
    for worker in multiprocessing.active_children():
        worker.kill()


def make_loader(dataset: ClipDataset, batch_size: int, workers: int, rank: int, world_size: int,
                device: torch.device) -> DataLoader:
    """Loader of shuffled batches whose workers live on between epochs; at most one worker per available core."""
    workers = min(workers, len(os.sched_getaffinity(0)))
    batches = ShuffledBatches(len(dataset), batch_size, rank, world_size, dataset.seed)
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
                      persistent_workers=workers > 0, worker_init_fn=start_worker)


def pretraining_loader(args: argparse.Namespace, rank: int, world_size: int, device: torch.device,
                       streams: int) -> DataLoader:
    """Loader of two views of each training video, in the one or two ``streams`` that the main needs.

    Raises UserError for a --dataset whose name stands for something else.
    """
    name = parse_name(args.dataset)
    if name.clips != 2 or len(name.streams) != streams:
        ending = "-2stream-2clip" if streams == 2 else "-2clip or NAME-f-2clip"
        raise UserError(f"--dataset {args.dataset}: this training needs two clips of {streams} stream(s) per video, "
                        f"that is {name.base}{ending.replace('NAME', name.base)}")
    videos = open_videos(args.dataset, "train", args.seq_len, args.ds, args.data_root,
                         {"rgb": args.rgb_lmdb, "flow": args.flow_lmdb})
    dataset = ClipDataset(videos, args.seq_len, args.ds, args.img_dim, args.seed)
    return make_loader(dataset, args.batch_size, args.workers, rank, world_size, device)

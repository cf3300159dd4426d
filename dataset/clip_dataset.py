"""The one dataset: random clips of the videos of any dataset, in any streams, as uint8 frames plus their draws."""

import argparse
import atexit
import copy
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dataset.augmentation import View, draw_augmentation, draw_crop, draw_pretrain_views
from dataset.clips import train_clip
from dataset.crop import Box, decode_and_crop
from dataset.device_decode import decode_clips, device_decodes
from dataset.jpeg import frame_size
from dataset.registry import Videos, open_videos, parse_name
from dataset.store import BrokenVideo
from utils.cores import available_cores
from utils.errors import UserError

log = logging.getLogger("coclr")

Sample = dict[str, Tensor | dict | list[bytes] | int | str]


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
        encoded: leave the JPEGs to the training device, see ``with_clips``.

    An item is a dict: "clips" uint8 [V, streams, T, S, S, 3]; "draws", the augmentation draws [V, ...] for
    ``dataset.augmentation``, common to the streams of a view; "label", "source", "index" of the video; "broken", why
    the video asked for could not be read ("" normally): then another video stands in for it. An ``encoded`` one has,
    instead of "clips", "jpegs"; "frames" int64 [V, streams, T], which of them make the clips; "boxes" int64 [V, 4], for
    frames of "reference" int64 [2] = height and width; "epoch".
    """

    def __init__(
        self,
        videos: Videos,
        seq_len: int,
        ds: int,
        img_dim: int,
        seed: int,
        draw_views: Callable[[np.random.Generator], tuple[View, ...]] = draw_pretrain_views,
        draw_box: Callable[[np.random.Generator, int, int], Box] = draw_crop,
        encoded: bool = False,
    ):
        self.videos, self.seq_len, self.ds, self.img_dim, self.seed = videos, seq_len, ds, img_dim, seed
        self.draw_views, self.draw_box, self.encoded = draw_views, draw_box, encoded

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        problems = []
        for offset in range(
            len(self)
        ):  # the video itself, then the ones that stand in for it while it is broken
            try:
                return self._sample(epoch, (index + offset) % len(self)) | {"broken": "; ".join(problems)}
            except BrokenVideo as error:
                problems.append(str(error))
        raise UserError(
            f"every one of {len(self)} videos is unreadable, e.g. {problems[0]}; prepare them again"
        )

    def _sample(self, epoch: int, index: int) -> Sample:
        videos = self.videos
        rng = np.random.default_rng((self.seed, epoch, index))
        views = self.draw_views(rng)
        clips = [
            train_clip(rng, int(videos.frames[index]), self.seq_len, self.ds)
            for _ in range(1 + max(view.clip for view in views))
        ]
        clips = np.stack([clips[view.clip] for view in views])  # [V, T]
        needed, frames = np.unique(clips, return_inverse=True)
        frames = frames.reshape(clips.shape)
        jpegs = {
            stream: store.read_frames(int(videos.positions[stream][index]), needed.tolist())
            for stream, store in videos.stores.items()
        }
        sample: Sample = {
            "label": int(videos.labels[index]),
            "source": int(videos.sources[index]),
            "index": index,
        }
        try:
            reference = frame_size(next(iter(jpegs.values()))[0])
            boxes, draws = zip(
                *(
                    (self.draw_box(rng, *reference), draw_augmentation(rng, view.strength, self.seq_len))
                    for view in views
                ),
                strict=True,
            )
            sample["draws"] = {
                name: torch.as_tensor(np.stack([draw[name] for draw in draws])) for name in draws[0]
            }
            if not self.encoded:
                return sample | {"clips": self._decoded(jpegs, frames, boxes, reference)}
        except ValueError as error:
            raise BrokenVideo(videos.names[index], str(error)) from error
        streams = np.arange(len(jpegs))[:, None] * len(needed)
        return sample | {
            "jpegs": [jpeg for part in jpegs.values() for jpeg in part],
            "frames": torch.from_numpy(frames[:, None] + streams),
            "boxes": torch.tensor(boxes),
            "reference": torch.tensor(reference),
            "epoch": epoch,
        }

    def _decoded(
        self,
        jpegs: dict[str, list[bytes]],
        frames: np.ndarray,
        boxes: Sequence[Box],
        reference: tuple[int, int],
    ) -> Tensor:
        """Clips of the JPEGs of each stream; ``frames`` [V, T], ascending, says which of them make the views."""
        pixels = torch.empty(
            len(frames), len(jpegs), self.seq_len, self.img_dim, self.img_dim, 3, dtype=torch.uint8
        )
        for number, (stream, encoded) in enumerate(jpegs.items()):
            try:
                decode_and_crop(encoded, frames, boxes, reference, pixels[:, number])
            except ValueError as error:
                raise ValueError(f"{stream} frame: {error}") from error
        return pixels

    def with_clips(self, batch: Sample, device: torch.device) -> Sample:
        """``batch`` as it is, or an encoded one with its clips, decoded on ``device``.

        A batch with a JPEG that the device cannot decode is made anew on the CPU, so that a broken video is left out.
        """
        if "clips" in batch:
            return batch
        try:
            return batch | {"clips": decode_clips(batch, self.img_dim, device)}
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning(
                "a batch is decoded on the CPU, as the device does not: %s", str(error).splitlines()[0][:120]
            )
            here = copy.copy(self)
            here.encoded = False
            return default_collate(
                [here[key] for key in zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)]
            )


def is_left_to(device: torch.device, decode: str) -> bool:
    """Whether the loader's processes leave decoding to the training device: as --decode says, if it can."""
    if decode == "gpu" and not device_decodes(device):
        log.warning(
            "--decode gpu: there is no nvJPEG here (a GPU, torchvision with CUDA); the workers decode"
        )
        return False
    return decode == "gpu"


def join_jpegs(samples: list[Sample]) -> Sample:
    """Collate encoded samples: their JPEGs become one tensor "jpegs" with "sizes", and "frames" number all of them."""
    jpegs: list[bytes] = []
    for sample in samples:
        sample["frames"] += len(jpegs)
        jpegs += sample.pop("jpegs")
    return default_collate(samples) | {
        "jpegs": torch.frombuffer(bytearray(b"".join(jpegs)), dtype=torch.uint8),
        "sizes": torch.tensor([len(jpeg) for jpeg in jpegs]),
    }


class ShuffledBatches:
    """Batch sampler: every epoch another order, shared out to the ranks; the last incomplete global batch is dropped.

    Yields lists of (epoch, index). The order follows from (seed, epoch), so a run can go on from any batch.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int, seed: int):
        self.length, self.batch_size, self.rank, self.world_size, self.seed = (
            length,
            batch_size,
            rank,
            world_size,
            seed,
        )
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
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


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


def make_loader(
    dataset: ClipDataset, batch_size: int, workers: int, rank: int, world_size: int, device: torch.device
) -> DataLoader:
    """Loader of shuffled batches whose workers live on between epochs; at most one worker per available core."""
    workers = min(workers, available_cores())
    batches = ShuffledBatches(len(dataset), batch_size, rank, world_size, dataset.seed)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        collate_fn=join_jpegs if dataset.encoded else None,
    )


def pretraining_loader(
    args: argparse.Namespace, rank: int, world_size: int, device: torch.device, streams: int
) -> DataLoader:
    """Loader of two views of each training video, in the one or two ``streams`` that the main needs.

    Raises UserError for a --dataset whose name stands for something else.
    """
    name = parse_name(args.dataset)
    if name.clips != 2 or len(name.streams) != streams:
        ending = "-2stream-2clip" if streams == 2 else "-2clip or NAME-f-2clip"
        raise UserError(
            f"--dataset {args.dataset}: this training needs two clips of {streams} stream(s) per video, "
            f"that is {name.base}{ending.replace('NAME', name.base)}"
        )
    videos = open_videos(
        args.dataset,
        "train",
        args.seq_len,
        args.ds,
        args.data_root,
        {"rgb": args.rgb_lmdb, "flow": args.flow_lmdb},
    )
    dataset = ClipDataset(
        videos, args.seq_len, args.ds, args.img_dim, args.seed, encoded=is_left_to(device, args.decode)
    )
    return make_loader(dataset, args.batch_size, args.workers, rank, world_size, device)

"""All windows of every test video: each video decoded once for all its windows and spatial crops. Deterministic."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.clip_dataset import start_worker
from dataset.clips import test_windows
from dataset.crop import Box, decode_and_crop
from dataset.jpeg import frame_size
from dataset.registry import Videos
from dataset.store import BrokenVideo
from utils.cores import available_cores

CROP_SHARE = 224 / 256  # side of a test crop as a share of the short side: 224 pixels of 256
WINDOWS_PER_ITEM = 16  # longer videos are cut into several items, so that memory stays bounded

Item = dict[str, Tensor | int | str]


def crop_boxes(height: int, width: int, crops: int) -> list[Box]:
    """Boxes (top, left, height, width) of the centre crop, or of the four corners and the centre, in pixels."""
    side = max(round(CROP_SHARE * min(height, width)), 1)
    bottom, right = height - side, width - side
    centre = (round(bottom / 2), round(right / 2), side, side)
    if crops == 1:
        return [centre]
    return [(top, left, side, side) for top in (0, bottom) for left in (0, right)] + [centre]


class WindowDataset(Dataset):
    """Windows of ``videos``; an item is one video, or a part of a long one.

    Args:
        videos: what to read, see ``dataset.registry.open_videos``.
        seq_len: frames per window (T).
        ds: stride between them.
        img_dim: side of the resized crops in pixels (S).
        crops: 1, the centre, or 5, corners and centre, see ``crop_boxes``.
        middle_only: only the middle window of each video.

    An item is a dict: "video", its index; "frames" uint8 [crops, F, S, S, 3], the frames that its windows show;
    "windows" int64 [W, T], indices into them; "broken", why the video cannot be read ("" normally; then F = 0).
    """

    def __init__(
        self, videos: Videos, seq_len: int, ds: int, img_dim: int, crops: int = 1, middle_only: bool = False
    ):
        self.videos, self.seq_len, self.ds, self.img_dim, self.crops = videos, seq_len, ds, img_dim, crops
        self.spans: list[tuple[int, int, int]] = []  # (video, first window, end)
        for video, frames in enumerate(videos.frames):
            count = len(test_windows(int(frames), seq_len, ds))
            first, end = (count // 2, count // 2 + 1) if middle_only else (0, count)
            self.spans += [
                (video, i, min(i + WINDOWS_PER_ITEM, end)) for i in range(first, end, WINDOWS_PER_ITEM)
            ]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Item:
        video, first, end = self.spans[index]
        windows = test_windows(int(self.videos.frames[video]), self.seq_len, self.ds)[first:end]
        needed, where = np.unique(windows, return_inverse=True)
        try:
            frames, broken = self._crops(video, needed), ""
        except BrokenVideo as error:
            frames, broken = (
                torch.empty(self.crops, 0, self.img_dim, self.img_dim, 3, dtype=torch.uint8),
                str(error),
            )
        return {
            "video": video,
            "frames": frames,
            "windows": torch.from_numpy(where.reshape(windows.shape)),
            "broken": broken,
        }

    def _crops(self, video: int, needed: np.ndarray) -> Tensor:
        ((stream, store),) = self.videos.stores.items()
        jpegs = store.read_frames(int(self.videos.positions[stream][video]), needed.tolist())
        frames = torch.empty(self.crops, len(jpegs), self.img_dim, self.img_dim, 3, dtype=torch.uint8)
        try:
            size = frame_size(jpegs[0])
            shown = np.tile(np.arange(len(jpegs)), (self.crops, 1))
            decode_and_crop(jpegs, shown, crop_boxes(*size, self.crops), size, frames)
        except ValueError as error:
            raise BrokenVideo(self.videos.names[video], f"{stream} frame: {error}") from error
        return frames


def window_loader(
    dataset: WindowDataset, workers: int, rank: int, world_size: int, device: torch.device
) -> Iterable[Item]:
    """Every ``world_size``-th item from ``rank`` on, one at a time: together the ranks see each item once."""
    share = range(rank, len(dataset), world_size)
    workers = min(workers, available_cores(), len(share))
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=share,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
    )

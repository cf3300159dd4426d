"""The dataset of tests: all windows of every video, each frame decoded once for all its windows and crops."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.clips import test_windows
from dataset.crop import Box
from dataset.registry import Videos
from dataset.source import BrokenVideo

CROP_SHARE = 224 / 256  # side of a test crop as a share of the short side: 224 pixels of 256
WINDOWS_PER_ITEM = 16  # longer videos are cut into several items, so that memory stays bounded

Item = dict[str, Tensor | int | str]


def crop_boxes(height: int, width: int, crops: int) -> list[Box]:
    """Boxes (top, left, height, width) in pixels of the centre crop, or of four corners and the centre."""
    side = max(round(CROP_SHARE * min(height, width)), 1)
    bottom, right = height - side, width - side
    centre = (round(bottom / 2), round(right / 2), side, side)
    if crops == 1:
        return [centre]
    return [(top, left, side, side) for top in (0, bottom) for left in (0, right)] + [centre]


class WindowDataset(Dataset):
    """Windows of ``videos``, of one stream; an item is one video, or a part of a long one.

    Args:
        videos: what to read, see ``dataset.registry.open_videos``.
        seq_len: frames per window (T).
        ds: stride between them.
        img_dim: side of the resized crops in pixels (S).
        crops: 1, the centre, or 5, corners and centre, see ``crop_boxes``.
        middle_only: only the middle window of each video.

    An item is a dict: "video", its index; "frames" uint8 [crops, F, S, S, 3], the frames that its windows
    show; "windows" int64 [W, T], indices into them; "broken", why the video cannot be read ("" normally; then
    F = 0).
    """

    def __init__(
        self, videos: Videos, seq_len: int, ds: int, img_dim: int, crops: int = 1, middle_only: bool = False
    ):
        self.videos, self.crops = videos, crops
        self.seq_len, self.ds, self.img_dim = seq_len, ds, img_dim
        self.spans: list[tuple[int, int, int]] = []  # (video, first window, end)
        for video, frames in enumerate(videos.frames):
            count = len(test_windows(int(frames), seq_len, ds))
            first, end = (count // 2, count // 2 + 1) if middle_only else (0, count)
            for start in range(first, end, WINDOWS_PER_ITEM):
                self.spans.append((video, start, min(start + WINDOWS_PER_ITEM, end)))

    def __len__(self) -> int:
        return len(self.spans)

    def item_bytes(self) -> int:
        """Size of the frames of the item that has most windows."""
        largest = max(range(len(self)), key=lambda index: self.spans[index][2] - self.spans[index][1])
        return self.crops * len(np.unique(self._windows(largest))) * self.img_dim**2 * 3

    def _windows(self, index: int) -> np.ndarray:
        video, first, end = self.spans[index]
        return test_windows(int(self.videos.frames[video]), self.seq_len, self.ds)[first:end]

    def __getitem__(self, index: int) -> Item:
        video, windows = self.spans[index][0], self._windows(index)
        needed, shown = np.unique(windows, return_inverse=True)
        broken = ""
        try:
            boxes = crop_boxes(*self.videos.size(video), self.crops)
            clips = np.tile(needed, (self.crops, 1))
            frames = self.videos.read_clips(video, clips, boxes, self.img_dim)[:, 0]
        except BrokenVideo as error:
            frames = torch.empty(self.crops, 0, self.img_dim, self.img_dim, 3, dtype=torch.uint8)
            broken = str(error)
        return {
            "video": video,
            "frames": frames,
            "windows": torch.from_numpy(shown.reshape(windows.shape)),
            "broken": broken,
        }

"""The dataset of training: random clips of videos of any dataset and stream, uint8, and their draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.augmentation import View, draw_augmentation, draw_crop, draw_pretrain_views, without_colour
from dataset.clips import train_clip
from dataset.crop import Box
from dataset.registry import Videos
from dataset.source import BrokenVideo
from utils.errors import UserError

Sample = dict[str, Tensor | dict[str, Tensor] | int | str]


@dataclass(eq=False)
class ClipDataset(Dataset):
    """Random clips of ``videos``; item (epoch, i) is video i as drawn in that epoch.

    Draws follow from (seed, epoch, i) alone: they repeat for equal seeds and do not depend on workers or
    ranks.

    Args:
        videos: what to read, see ``dataset.registry.open_videos``.
        seq_len: frames per clip (T).
        ds: stride between them.
        img_dim: side of the cropped frames in pixels (S).
        seed: seed of all draws.
        draw_views: draws the views (V) of a sample, each a clip and a strength of augmentation.
        draw_box: draws the crop of a view, see ``draw_crop``.
        flow_colour: flow has the colour operations of its view, too.

    An item is a dict: "clips" uint8 [V, streams, T, S, S, 3]; "draws", the augmentation draws
    [V, streams, ...] for ``dataset.augmentation``, alike for all streams of a view but for ``flow_colour``;
    "label", "source", "index", "name" of the video; "broken", why the video asked for could not be read
    ("" normally): then another video stands in for it.
    """

    videos: Videos
    seq_len: int
    ds: int
    img_dim: int
    seed: int
    draw_views: Callable[[np.random.Generator], tuple[View, ...]] = draw_pretrain_views
    draw_box: Callable[[np.random.Generator, int, int], Box] = draw_crop
    flow_colour: bool = True

    def __len__(self) -> int:
        return len(self.videos)

    def item_bytes(self) -> int:
        """Size of the clips of an item."""
        clips = len(self.draw_views(np.random.default_rng(0))) * len(self.videos.stores)
        return clips * self.seq_len * self.img_dim**2 * 3

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        problems = []
        for offset in range(len(self)):  # the video itself, then those that stand in for a broken one
            try:
                return self._sample(epoch, (index + offset) % len(self)) | {"broken": "; ".join(problems)}
            except BrokenVideo as error:
                problems.append(str(error))
        raise UserError(f"every one of {len(self)} videos is unreadable, e.g. {problems[0]}; prepare anew")

    def _sample(self, epoch: int, index: int) -> Sample:
        videos = self.videos
        rng = np.random.default_rng((self.seed, epoch, index))
        views = self.draw_views(rng)
        count = 1 + max(view.clip for view in views)
        clips = [train_clip(rng, int(videos.frames[index]), self.seq_len, self.ds) for _ in range(count)]
        clips = np.stack([clips[view.clip] for view in views])  # [V, T]
        size = videos.size(index)
        boxes, draws = [], []
        for view in views:
            boxes.append(self.draw_box(rng, *size))
            drawn = draw_augmentation(rng, view.strength, self.seq_len)
            draws.append([self._of_stream(drawn, stream) for stream in videos.stores])
        return {
            "clips": videos.read_clips(index, clips, boxes, self.img_dim),
            "draws": {
                name: torch.as_tensor(np.stack([[draw[name] for draw in view] for view in draws]))
                for name in draws[0][0]
            },
            "label": int(videos.labels[index]),
            "source": int(videos.sources[index]),
            "index": index,
            "name": videos.names[index],
        }

    def _of_stream(self, drawn: dict[str, np.ndarray], stream: str) -> dict[str, np.ndarray]:
        return drawn if self.flow_colour or stream != "flow" else without_colour(drawn)

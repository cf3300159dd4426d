import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from databases import make_dataset

from dataset.clip_dataset import ClipDataset
from dataset.registry import Videos, open_videos
from dataset.source import BrokenVideo, FrameSource


class Arrays:
    """The smallest source: frames in memory, uint8 [F, H, W, 3] by name."""

    def __init__(self, videos: dict[str, np.ndarray]):
        self.path, self.names, self.videos = "memory", list(videos), list(videos.values())

    def frame_counts(self) -> np.ndarray:
        return np.array([len(video) for video in self.videos])

    def size(self, video: int) -> tuple[int, int]:
        return self.videos[video].shape[1:3]

    def frames(self, video: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        assert (np.diff(indices) > 0).all()
        yield from self.videos[video][indices]


def test_what_the_protocol_asks_is_all_that_training_needs(tmp_path):
    make_dataset(tmp_path / "tiny")
    videos = open_videos("tiny-2clip", "train", 4, 2, tmp_path)
    store: FrameSource = videos.stores["rgb"]
    decoded = {
        name: np.stack(list(store.frames(i, range(count))))
        for i, (name, count) in enumerate(zip(store.names, store.frame_counts(), strict=True))
    }
    arrays = Videos(**(vars(videos) | {"stores": {"rgb": Arrays(decoded)}}))
    data, again = (ClipDataset(v, 4, 2, 16, seed=0) for v in (videos, arrays))
    for index in range(4):
        assert torch.equal(data[2, index]["clips"], again[2, index]["clips"])


def test_a_broken_video_is_told_in_one_line_and_pickles():
    error = BrokenVideo("c/0", "data.lmdb:\n  cut short")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "c/0: data.lmdb: cut short"
    assert pickle.loads(pickle.dumps(error)).name == "c/0"

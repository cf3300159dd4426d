"""What a source of frames gives: a database (``dataset.store``), or a folder of video files."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np


class BrokenVideo(Exception):
    """A video that cannot be read: ``name`` says which, ``reason`` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it pickles
        self.name, self.reason = name, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class FrameSource(Protocol):
    """Videos of one stream, numbered from 0 as in ``names``; works in processes it is pickled or forked to.

    ``path`` says where it lies; ``names`` are "class/video".
    """

    path: str
    names: list[str]

    def frame_counts(self) -> np.ndarray:
        """Frames of each video, int64 [len(names)]; 0 for one that cannot be read."""

    def size(self, video: int) -> tuple[int, int]:
        """(height, width) of a video's frames in pixels; raises BrokenVideo."""

    def frames(self, video: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Those frames, RGB uint8 [H, W, 3], decoded one by one; ``indices`` ascend. Raises BrokenVideo."""

"""Which frames make a clip. Indices are frame numbers in a video; ds is the stride between frames."""

import numpy as np


def long_enough(frames: np.ndarray, seq_len: int, ds: int, whole_clip: bool) -> np.ndarray:
    """Boolean mask of the videos that are kept: at least half a clip, or a ``whole_clip`` (Kinetics)."""
    needed = seq_len * ds if whole_clip else seq_len / 2 * ds
    return frames - needed - 1 > 0


def train_clip(rng: np.random.Generator, frames: int, seq_len: int, ds: int) -> np.ndarray:
    """One random clip [seq_len]; a video that is too short is padded on the left with frame 0."""
    if frames <= seq_len * ds:
        return padded_clip(frames, seq_len, ds, offset=int(rng.integers(ds)))
    return int(rng.integers(frames - seq_len * ds)) + np.arange(seq_len) * ds


def test_windows(frames: int, seq_len: int, ds: int) -> np.ndarray:
    """All windows [W, seq_len] of a video, overlapping by half; one left-padded window if it is too short."""
    if frames <= seq_len * ds:
        return padded_clip(frames, seq_len, ds, offset=0)[None]
    step = max(seq_len * ds // 2 - 1, 1)
    starts = np.arange(0, frames - seq_len * ds + 1, step)
    return starts[:, None] + np.arange(seq_len) * ds


def padded_clip(frames: int, seq_len: int, ds: int, offset: int) -> np.ndarray:
    """Every ds-th frame from ``offset`` on, right-aligned in [seq_len], zeros before."""
    indices = np.arange(seq_len) * ds + offset
    indices = indices[indices < frames]
    return np.concatenate([np.zeros(seq_len - len(indices), dtype=indices.dtype), indices])

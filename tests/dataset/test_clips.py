import numpy as np
import pytest

from dataset.clips import long_enough, padded_clip, test_windows, train_clip

test_windows.__test__ = False  # a function of the product, not a test


def test_train_clips_start_uniformly_and_stay_inside():
    rng = np.random.default_rng(0)
    starts = np.zeros(10, int)
    for _ in range(5000):
        clip = train_clip(rng, frames=34, seq_len=8, ds=3)
        assert clip.tolist() == list(range(clip[0], clip[0] + 24, 3))
        starts[clip[0]] += 1
    assert starts.min() > 400  # 500 expected, standard deviation 21
    assert starts.max() < 600


def test_short_training_clip_is_padded_with_frame_0_on_the_left():
    rng = np.random.default_rng(0)
    seen = {tuple(train_clip(rng, frames=5, seq_len=4, ds=2).tolist()) for _ in range(50)}
    assert seen == {(0, 0, 2, 4), (0, 0, 1, 3)}
    assert train_clip(rng, frames=4, seq_len=4, ds=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("frames", "seq_len", "ds", "starts"),
    [
        (100, 32, 1, [0, 15, 30, 45, 60]),
        (33, 32, 1, [0]),
        (40, 8, 2, [0, 7, 14, 21]),
        (5, 2, 1, [0, 1, 2, 3]),
    ],
)
def test_windows_overlap_by_half(frames, seq_len, ds, starts):
    windows = test_windows(frames, seq_len, ds)
    assert windows[:, 0].tolist() == starts
    assert (np.diff(windows, axis=1) == ds).all()
    assert windows.max() < frames


def test_short_video_gives_one_padded_window():
    assert test_windows(3, 4, 1).tolist() == [[0, 0, 1, 2]]
    assert padded_clip(7, 4, 3, 1).tolist() == [0, 0, 1, 4]


def test_which_videos_are_kept():
    frames = np.array([0, 16, 17, 18, 32, 33, 34])
    assert long_enough(frames, 32, 1, whole_clip=False).tolist() == [
        False,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert long_enough(frames, 32, 1, whole_clip=True).tolist() == [False] * 6 + [True]

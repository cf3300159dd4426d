import numpy as np
import pytest
from torch.utils.data import default_collate

from dataset.augmentation import JITTER_IDENTITY, View, draw_augmentation, draw_crop, draw_pretrain_views


def assert_frequency(events, probability):
    """The share of true ``events`` lies within four and a half standard deviations of a binomial's."""
    count, n = np.sum(events), len(events)
    assert abs(count - n * probability) <= 4.5 * (n * probability * (1 - probability)) ** 0.5, count / n


def assert_uniform(values, low, high):
    """Every tenth of [low, high] holds a tenth of ``values`` and nothing lies outside."""
    values = np.asarray(values)
    assert low <= values.min()
    assert values.max() <= high
    for tenth in range(10):
        edges = low + (high - low) * tenth / 10, low + (high - low) * (tenth + 1) / 10
        assert_frequency((values >= edges[0]) & (values < edges[1]), 0.1)


def test_pretrain_view_frequencies():
    rng = np.random.default_rng(0)
    pairs = [draw_pretrain_views(rng) for _ in range(20000)]
    two_clip = [(a, b) for a, b in pairs if a.clip != b.clip]
    one_clip = [(a, b) for a, b in pairs if a.clip == b.clip]
    assert_frequency([a.clip != b.clip for a, b in pairs], 0.5)
    assert {(a.clip, b.clip) for a, b in two_clip} == {(0, 1)}
    assert_frequency([a.strength == "strong" for a, _ in two_clip], 0.3)
    assert_frequency([b.strength == "strong" for _, b in two_clip], 0.3)
    assert_frequency([a.strength == b.strength == "strong" for a, b in two_clip], 0.09)
    assert_frequency([a.clip == 0 for a, _ in one_clip], 0.5)
    assert_frequency([a.strength == "strong" for a, _ in one_clip], 0.5)
    assert all({a.strength, b.strength} == {"strong", "light"} for a, b in one_clip)
    assert_frequency([a == View(1, "strong") for a, _ in one_clip], 0.25)


def test_crop_of_a_square_frame_follows_the_released_distribution():
    rng = np.random.default_rng(1)
    side = 1000
    boxes = np.array([draw_crop(rng, side, side) for _ in range(100000)])
    top, left, h, w = boxes.T
    whole = (h == side) & (w == side)
    # the same experiment in closed form: with u = area, a = aspect, it fits if u * a <= 1 and u / a <= 1
    u, a = np.random.default_rng(2).uniform([[0.2], [3 / 4]], [[1], [4 / 3]], (2, 10**6))
    assert_frequency(whole, np.mean((u * a > 1) | (u / a > 1)))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= side).all()
    assert (left + w <= side).all()
    top, left, h, w = boxes[~whole].T
    assert_frequency(w > h, 0.5)
    area, aspect = h * w / side**2, w / h
    assert aspect.min() > 0.748
    assert aspect.max() < 1.336
    small = area < 0.7  # these always fit, so area and aspect keep their distributions
    assert_uniform(area[small], 0.199, 0.7)
    assert_uniform(top[small] / (side - h[small]), 0, 1)
    assert_uniform(left[small] / (side - w[small]), 0, 1)
    swapped_back = np.concatenate([aspect[small], 1 / aspect[small]])  # swapping makes a and 1 / a alike
    expected = np.concatenate([a[:200000], 1 / a[:200000]])
    assert np.quantile(swapped_back, [0.1, 0.3, 0.5, 0.7, 0.9]) == pytest.approx(
        np.quantile(expected, [0.1, 0.3, 0.5, 0.7, 0.9]), abs=0.01
    )


def test_crop_of_a_wide_frame():
    rng = np.random.default_rng(3)
    u, a = np.random.default_rng(4).uniform([[0.2], [3 / 4]], [[1], [4 / 3]], (2, 10**6))
    missed = np.mean([u * 2 / a > 1, u * 2 * a > 1])  # too high: half of the draws are swapped
    boxes = np.array([draw_crop(rng, 500, 1000) for _ in range(10000)])
    assert_frequency((boxes == (0, 0, 500, 1000)).all(1), missed)
    finetune = np.array([draw_crop(rng, 500, 1000, attempts=10, fallback="centre") for _ in range(10000)])
    assert_frequency((finetune == (0, 250, 500, 500)).all(1), missed**10)
    assert not (finetune[:, 3] == 1000).any()


def test_finetuning_crop_falls_back_to_the_centre():
    rng = np.random.default_rng(5)
    assert draw_crop(rng, 10, 1000, attempts=10, fallback="centre") == (0, 495, 10, 10)
    assert draw_crop(rng, 1000, 11, attempts=10, fallback="centre") == (494, 0, 11, 11)
    assert draw_crop(rng, 10, 1000) == (0, 0, 10, 1000)
    with pytest.raises(ValueError, match="fallback 'center'"):
        draw_crop(rng, 10, 1000, fallback="center")


def test_crop_of_tiny_frames_is_never_empty():
    rng = np.random.default_rng(6)
    for height, width in ((1, 1), (1, 3), (2, 1)):
        for _ in range(100):
            top, left, h, w = draw_crop(rng, height, width)
            assert 0 <= top < top + h <= height
            assert 0 <= left < left + w <= width


@pytest.mark.parametrize(
    ("strength", "jitter", "grey", "blur", "flip"),
    [
        ("none", 0, 0, 0, 0),
        ("light", 0, 0, 0, 0.5),
        ("strong", 0.8, 0.2, 0.5, 0.5),
        ("finetune", 0.3, 0, 0, 0.5),
    ],
)
def test_augmentation_frequencies(strength, jitter, grey, blur, flip):
    rng = np.random.default_rng(7)
    draws = [draw_augmentation(rng, strength, 4) for _ in range(10000)]
    order, factors, channel, sigma, flipped = (np.stack([d[k] for d in draws]) for k in draws[0])
    jittered, greyed = (factors != JITTER_IDENTITY).any(1), (channel >= 0).any(1)
    for events, probability in ((jittered, jitter), (greyed, grey), (sigma > 0, blur), (flipped, flip)):
        assert_frequency(events, probability)
    if jitter and grey and blur:  # each is drawn for itself
        assert_frequency(jittered & greyed & (sigma > 0) & flipped, jitter * grey * blur * flip)
    assert (order[~jittered] == np.arange(4)).all()
    assert (factors[~jittered] == JITTER_IDENTITY).all()
    if jitter:
        for operation in range(4):
            low, high = (-0.1, 0.1) if operation == 3 else (0.6, 1.4)
            assert_uniform(factors[jittered, operation], np.float32(low), np.float32(high))
        for permutation in np.unique(order, axis=0):
            assert_frequency((order[jittered] == permutation).all(1), 1 / 24)
        assert len(np.unique(order[jittered], axis=0)) == 24
    if grey:
        for frame in range(4):
            for colour in range(3):
                assert_frequency(channel[greyed][:, frame] == colour, 1 / 3)
        assert_frequency(channel[greyed][:, 0] == channel[greyed][:, 1], 1 / 3)  # drawn per frame
    assert (channel[~greyed] == -1).all()
    if blur:
        assert_uniform(sigma[sigma > 0], 0.1, 2)


def test_draws_collate_and_repeat_for_equal_seeds():
    first, again = (
        [draw_augmentation(np.random.default_rng(s), "strong", 6) for s in range(8)] for _ in range(2)
    )
    batch = default_collate(first)
    assert {k: (tuple(v.shape), str(v.dtype)) for k, v in batch.items()} == {
        "jitter_order": ((8, 4), "torch.int64"),
        "jitter_factors": ((8, 4), "torch.float32"),
        "grey_channel": ((8, 6), "torch.int64"),
        "blur_sigma": ((8,), "torch.float32"),
        "flip": ((8,), "torch.bool"),
    }
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert default_collate([draw_augmentation(np.random.default_rng(0), "none", 6)])["blur_sigma"].shape == (
        1,
    )
    with pytest.raises(ValueError, match="'heavy'"):
        draw_augmentation(np.random.default_rng(0), "heavy", 6)

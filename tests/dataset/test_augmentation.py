import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch.utils.data import default_collate

from dataset import augmentation as module
from dataset.augmentation import (
    JITTER_IDENTITY,
    MEAN,
    STD,
    View,
    augment,
    draw_augmentation,
    draw_crop,
    draw_pretrain_views,
)

T, H, W = 3, 24, 32


@pytest.fixture(scope="module")
def clips():
    """Six clips of smooth random colours with hard edges, uint8 [6, T, H, W, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6 * T, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(H, W), mode="bilinear")
    smooth[:, :, 8:14, 10:20] = smooth[:, :, 8:14, 10:20].roll(1, 1)
    smooth[0, :, :4] = smooth[0, :1, :4]  # greys have no hue
    return (smooth * 255).round().byte().permute(0, 2, 3, 1).reshape(6, T, H, W, 3)


def draw(order=(0, 1, 2, 3), factors=(1, 1, 1, 0), grey=None, sigma=0.0, flip=False):
    """The draws of one clip, nothing applied but what is asked for."""
    return {
        "jitter_order": np.array(order),
        "jitter_factors": np.array(factors, np.float32),
        "grey_channel": np.full(T, -1) if grey is None else np.array(grey),
        "blur_sigma": np.array(sigma, np.float32),
        "flip": np.array(flip),
    }


def pixels(x):
    """Undo the normalisation: [N, 3, T, H, W] to the images [N * T, 3, H, W] in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (MEAN, STD))
    return (x * std + mean).transpose(1, 2).flatten(0, 1)


def images(clips):
    return clips.flatten(0, 1).permute(0, 3, 1, 2) / 255  # [N * T, 3, H, W]


def levels(x):
    """[N, 3, H, W] in [0, 1] to uint8 [N, H, W, 3] as signed numbers."""
    return (x.permute(0, 2, 3, 1) * 255).round().int().numpy()


def run(clips, *draws, **options):
    return augment(clips, default_collate([*draws] * (len(clips) // len(draws))), **options)


ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


@pytest.mark.parametrize(
    ("operation", "factor"),
    [(0, 0.6), (0, 1.4), (1, 0.6), (1, 1.4), (2, 0.6), (2, 1.4), (3, -0.1), (3, 0.07), (3, 0.1)],
)
def test_jitter_equals_torchvision_and_pillow(clips, operation, factor):
    factors = [1, 1, 1, 0]
    factors[operation] = factor
    result = pixels(run(clips, draw(factors=factors)))
    expected = ADJUST[operation](images(clips), factor)
    assert (result - expected).abs().max() < 1e-5
    pillow = np.stack([ADJUST[operation](Image.fromarray(f.numpy()), factor) for f in clips.flatten(0, 1)])
    difference = np.abs(levels(result) - pillow)
    assert difference.max() <= (14 if operation == 3 else 1)  # Pillow's HSV has 256 hues
    assert difference.mean() < 1.5


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_jitter_follows_its_order(clips, order):
    factors = (1.3, 1.4, 0.7, 0.08)
    expected = images(clips)
    for operation in order:
        expected = ADJUST[operation](expected, factors[operation])
    assert (pixels(run(clips, draw(order, factors))) - expected).abs().max() < 1e-5


def test_grey_takes_one_channel_per_frame(clips):
    frames = images(clips)
    result = pixels(run(clips, draw(grey=[2, 0, 1]))).view(6, T, 3, H, W)
    for frame, channel in enumerate([2, 0, 1]):
        expected = frames.view(6, T, 3, H, W)[:, frame, channel]
        for colour in range(3):
            assert (result[:, frame, colour] - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.1, 0), (0.5, 8), (1.0, 4), (1.5, 3), (2.0, 3)])
def test_blur_equals_torchvision_and_pillow(clips, sigma, tolerance):
    result = pixels(run(clips, draw(sigma=sigma)))
    padded = torch.nn.functional.pad(images(clips), [12] * 4, mode="replicate")
    expected = TF.gaussian_blur(padded, [23, 23], [sigma, sigma])[..., 12:-12, 12:-12]
    assert (result - expected).abs().max() < 1e-5
    # Pillow stands three box filters in for the Gaussian: grey levels it may differ by
    blur = ImageFilter.GaussianBlur(sigma)
    pillow = np.stack([np.asarray(Image.fromarray(f.numpy()).filter(blur)) for f in clips.flatten(0, 1)])
    difference = np.abs(levels(result) - pillow)
    assert difference.max() <= tolerance
    assert difference.mean() < 0.6


def test_flip_mirrors_and_flow_is_not_negated(clips):
    result = augment(clips, default_collate([draw(flip=i % 2 == 0) for i in range(6)]))
    expected = images(clips).view(6, T, 3, H, W).clone()
    expected[::2] = expected[::2].flip(-1)
    assert (pixels(result) - expected.flatten(0, 1)).abs().max() < 1e-6


def test_normalisation_is_torchvisions(clips):
    result = run(clips, draw())
    expected = TF.normalize(images(clips), MEAN, STD).view(6, T, 3, H, W).transpose(1, 2)
    assert torch.allclose(result, expected, atol=1e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous()


def test_order_of_the_operations(clips):
    factors, sigma = (1.2, 0.8, 1.3, 0.05), 1.0
    expected = images(clips)
    for adjust, factor in zip(ADJUST, factors, strict=True):
        expected = adjust(expected, factor)
    channel = torch.tensor([1, 2, 0] * 6)
    expected = expected[torch.arange(6 * T), channel][:, None].expand(-1, 3, -1, -1)
    expected = TF.gaussian_blur(
        torch.nn.functional.pad(expected, [12] * 4, mode="replicate"), [23, 23], [sigma] * 2
    )
    expected = expected[..., 12:-12, 12:-12].flip(-1)
    result = run(clips, draw(factors=factors, grey=[1, 2, 0], sigma=sigma, flip=True))
    assert (pixels(result) - expected).abs().max() < 1e-5


@pytest.fixture(params=["clip by clip", "together"])
def grouping(request, monkeypatch):
    """Both ways of going over the clips, on the CPU."""
    monkeypatch.setattr(module, "_clip_by_clip", lambda device: request.param == "clip by clip")


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_equals_its_clips(clips, channels_last):
    rng = np.random.default_rng(3)
    draws = [draw_augmentation(rng, "strong" if i % 4 else "light", T) for i in range(24)]
    batch = clips.repeat(4, 1, 1, 1, 1)
    original = batch.clone()
    result = augment(batch, default_collate(draws), channels_last)
    assert torch.equal(batch, original)
    assert result.is_contiguous(
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format
    )
    for i, one in enumerate(draws):
        alone = augment(batch[i : i + 1], default_collate([one]))
        assert torch.allclose(result[i], alone[0], atol=1e-5)


def test_two_streams_with_the_same_draws_are_treated_alike(clips):
    rng = np.random.default_rng(4)
    draws = default_collate([draw_augmentation(rng, "strong", T) for _ in range(6)])
    flow = clips.flip(0)
    both = augment(torch.cat([clips, flow]), {k: torch.cat([v, v]) for k, v in draws.items()})
    assert torch.allclose(both, torch.cat([augment(clips, draws), augment(flow, draws)]), atol=1e-6)
    assert torch.equal(augment(clips, draws), augment(clips.clone(), draws))


def test_float32_under_autocast(clips):
    rng = np.random.default_rng(5)
    draws = default_collate([draw_augmentation(rng, "strong", T) for _ in range(6)])
    draws["blur_sigma"].fill_(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        result = augment(clips, draws)
    assert result.dtype == torch.float32
    assert torch.equal(result, augment(clips, draws))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_and_never_waits(clips):
    rng = np.random.default_rng(6)
    draws = default_collate([draw_augmentation(rng, "strong", T) for _ in range(6)])
    there = clips.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(result.cpu(), augment(clips, draws), atol=1e-2)


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
    finetune = np.array([draw_crop(rng, 500, 1000, finetune=True) for _ in range(10000)])
    assert_frequency((finetune == (0, 250, 500, 500)).all(1), missed**10)
    assert not (finetune[:, 3] == 1000).any()


def test_finetuning_crop_falls_back_to_the_centre():
    rng = np.random.default_rng(5)
    assert draw_crop(rng, 10, 1000, finetune=True) == (0, 495, 10, 10)
    assert draw_crop(rng, 1000, 11, finetune=True) == (494, 0, 11, 11)
    assert draw_crop(rng, 10, 1000) == (0, 0, 10, 1000)


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

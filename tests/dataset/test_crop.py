import numpy as np
import pytest
import torch
from databases import picture
from PIL import Image

from dataset import crop


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((256, 454), (0, 0, 256, 454), 128),
        ((256, 454), (31, 200, 177, 146), 128),
        ((96, 128), (3, 5, 40, 61), 64),  # smaller than what it becomes
        ((64, 64), (10, 0, 32, 32), 32),  # no change of size
        ((200, 31), (0, 0, 200, 31), 48),
        ((1, 1), (0, 0, 1, 1), 16),
        ((700, 900), (0, 0, 700, 900), 8),
    ],
)
def test_crop_resize_equals_pillow(shape, box, size):
    frames = [picture(*shape, seed=seed) for seed in range(3)]
    top, left, h, w = box
    clip = crop.crop_resize(frames, box, size)
    assert clip.dtype == torch.uint8
    assert clip.shape == (3, size, size, 3)
    assert clip.is_contiguous()
    for frame, mine in zip(frames, clip.numpy(), strict=True):
        cut = Image.fromarray(frame).crop((left, top, left + w, top + h))
        expected = np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))
        difference = np.abs(mine.astype(int) - expected)
        assert (
            difference <= 2
        ).mean() > 0.999  # the rest: overshoot at a hard edge, clamped between the passes
        assert difference.max() <= 12
        assert difference.mean() < 0.4


def test_crop_resize_of_many_frames_keeps_their_order():
    frames = [picture(seed=seed) for seed in range(2 * crop.FRAMES_AT_ONCE + 3)]
    clip = crop.crop_resize(frames, (5, 6, 40, 50), 24)
    for frame, mine in zip(frames, clip, strict=True):
        assert torch.equal(crop.crop_resize([frame], (5, 6, 40, 50), 24)[0], mine)


def test_box_scales_with_frames_of_another_size():
    small = picture(40, 60)
    large = small.repeat(2, 0).repeat(2, 1)
    box, doubled = (10, 20, 20, 30), (20, 40, 40, 60)
    clip = crop.crop_resize([small, large, small], box, 16)
    assert torch.equal(clip[1], crop.crop_resize([large], doubled, 16)[0])
    assert torch.equal(clip[0], clip[2])
    assert torch.equal(crop.crop_resize([large], box, 16, reference=(40, 60))[0], clip[1])
    speck = crop.crop_resize([small, picture(1, 1)], (39, 59, 1, 1), 4)[1]  # never an empty cut
    assert (speck == torch.from_numpy(picture(1, 1))).all()

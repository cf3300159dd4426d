import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset import crop
from dataset.jpeg import decode, frame_size


def picture(height=61, width=83, seed=0):
    """A photograph-like picture, uint8 [H, W, 3]: smooth colours, edges and some noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    smooth = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(smooth, (width // 2, height // 2), min(height, width) // 4, (250, 20, 90), -1)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


JPEGS = {
    "plain": jpeg(Image.fromarray(picture())),
    "progressive": jpeg(Image.fromarray(picture()), progressive=True),
    "no subsampling": jpeg(Image.fromarray(picture()), subsampling=0),
    "grey": jpeg(Image.fromarray(picture()).convert("L")),
    "CMYK": jpeg(Image.fromarray(picture()).convert("CMYK")),
    "EXIF rotation": jpeg(Image.fromarray(picture()), exif=rotated()),
    "one pixel": jpeg(Image.fromarray(picture(1, 1))),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_decode_equals_pillow(kind):
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[kind])).convert("RGB"))
    frame = decode(JPEGS[kind])
    assert frame.dtype == np.uint8
    assert frame.shape == expected.shape
    assert frame.flags.c_contiguous
    # Pillow may carry another JPEG library, whose arithmetic may round otherwise
    assert np.abs(frame.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"JPEG",
        b"\xff\xd8",
        b"\xff\xd8\xff" + bytes(40),
        JPEGS["plain"][:-30],
        JPEGS["plain"][:300],
        cv2.imencode(".png", picture())[1].tobytes(),
    ],
    ids=["empty", "text", "marker only", "zeros", "end missing", "head only", "PNG"],
)
def test_decode_refuses_what_is_no_jpeg(data):
    with pytest.raises(ValueError, match="JPEG"):
        decode(data)


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
    clip = torch.zeros(len(frames) + 2, 24, 24, 3, dtype=torch.uint8)
    crop.crop_resize(frames, (5, 6, 40, 50), 24, out=clip[1:-1])
    assert not clip[0].any()
    assert not clip[-1].any()
    clip = clip[1:-1]
    for frame, mine in zip(frames, clip, strict=True):
        assert torch.equal(crop.crop_resize([torch.from_numpy(frame)], (5, 6, 40, 50), 24)[0], mine)


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


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": rotated()}, {"restart_marker_rows": 1}]
)
def test_size_in_the_head_of_a_jpeg(options):
    for mode in ("RGB", "L", "CMYK"):
        assert frame_size(jpeg(Image.fromarray(picture(37, 50)).convert(mode), **options)) == (37, 50)


def test_no_size_in_what_is_no_jpeg():
    whole = jpeg(Image.fromarray(picture()))
    for broken in (
        b"",
        b"\xff\xd8",
        b"GIF89a" * 9,
        whole[:40],
        b"\xff" * 99,
        b"\xff\xd8" + b"\xff\xe0\0\0" * 9,
    ):
        with pytest.raises(ValueError, match="not a JPEG with a size"):
            frame_size(broken)

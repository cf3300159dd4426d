import io

import cv2
import numpy as np
import pytest
from databases import picture
from PIL import Image

from dataset.jpeg import decode, frame_size


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

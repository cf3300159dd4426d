import cv2
import numpy as np
import pytest

from dataset.preparation.tvl1 import tvl1


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


def moved(image: np.ndarray, x: float, y: float, turn: float = 0, zoom: float = 1) -> np.ndarray:
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, zoom)
    matrix[:, 2] += x, y
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def grey(image: np.ndarray) -> np.ndarray:
    return np.rint(image).clip(0, 255).astype(np.uint8)


def opencv(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    return cv2.optflow.DualTVL1OpticalFlow_create().calc(previous, current, None)


PAIRS = {
    "shift": (96, 128, (1.3, -0.6)),
    "far": (96, 128, (5, 3)),
    "turn": (90, 75, (0.5, 0.2, 2, 1.02)),
    "odd": (61, 47, (-2.2, 1.1)),
    "least": (16, 16, (0.7, 0.3)),
    "wide": (16, 90, (1.5, 0)),
    "tall": (70, 17, (0, 1.5)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_flow_is_opencvs(name):
    height, width, motion = PAIRS[name]
    first = texture(height, width)
    pair = grey(first), grey(moved(first, *motion))
    flow = tvl1(*pair)
    assert flow.shape == (height, width, 2)
    assert flow.dtype == np.float32
    error = np.hypot(*np.moveaxis(flow - opencv(*pair), -1, 0))
    assert error.mean() < 0.03
    assert np.percentile(error, 99) < 0.3


def test_known_motion():
    first = texture(80, 100)
    flow = tvl1(grey(first), grey(moved(first, 3, -2)))[12:-12, 12:-12]
    assert np.abs(flow - [3, -2]).mean() < 0.1


@pytest.mark.parametrize("level", [0, 7, 255])
def test_still_pairs_have_no_flow(level):
    still = np.full((40, 33), level, np.uint8)
    assert tvl1(still, still).tolist() == np.zeros((40, 33, 2)).tolist()
    image = grey(texture(40, 33))
    assert np.abs(tvl1(image, image)).max() == 0


def test_cuts_and_noise_are_finite():
    rng = np.random.default_rng(1)
    frames = [
        np.zeros((33, 50), np.uint8),
        np.full((33, 50), 255, np.uint8),
        *rng.integers(0, 256, (3, 33, 50), np.uint8),
    ]
    for previous in frames:
        for current in frames:
            assert np.isfinite(tvl1(previous, current)).all()


def test_pairs_do_not_influence_each_other():
    big, small = grey(texture(70, 90)), grey(texture(20, 30, 3))
    shifted = grey(moved(texture(70, 90), 2, 1))
    alone = tvl1(big, shifted)
    tvl1(small, small[::-1].copy())
    assert (tvl1(big, shifted) == alone).all()

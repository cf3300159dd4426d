"""Optical flow between neighbouring frames, and the form in which it is stored."""

import functools

import cv2
import numpy as np

# The methods and by whom they are: what gives other numbers has another name. TV-L1's bicubic warping is
# OpenCV's, which version 5 has changed.
METHODS = {"tvl1": f"coclr-numba-1, OpenCV {cv2.__version__.split('.')[0]}", "dis": "opencv"}


def compute_flow(previous: np.ndarray, following: np.ndarray, method: str = "tvl1") -> np.ndarray:
    """Flow from one grey frame to the next in pixels, float32 [H, W, 2] with (x, y) last.

    Args:
        previous, following: uint8 [H, W]. method: "tvl1" (Zach et al. 2007, as the released databases hold)
        or "dis" (Kroeger et al. 2016, quick). Raises ValueError for another.
    """
    if method == "dis":
        return _dis().calc(previous, following, None)
    if method != "tvl1":
        raise ValueError(f"flow method {method!r} is none of {', '.join(METHODS)}")
    from dataset.preparation.tvl1 import tvl1  # numba takes a second to import

    return tvl1(previous, following)


@functools.cache
def _dis() -> cv2.DISOpticalFlow:
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def warm_up(method: str) -> None:
    """What a method needs once per machine, before several processes begin with it."""
    if method == "tvl1":
        from dataset.preparation.tvl1 import compile_once

        compile_once()


def encode_flow(flow: np.ndarray, bound: float = 20) -> np.ndarray:
    """Stored form of a flow: uint8 [H, W, 3], RGB = (128, y, x), [-bound, bound] rounded to [0, 255].

    Args:
        flow: pixels, float [H, W, 2] with (x, y) last; clipped to +-bound.
    """
    levels = np.rint((np.clip(flow, -bound, bound) + bound) * (255 / (2 * bound))).astype(np.uint8)
    return np.dstack([np.full(flow.shape[:2], 128, np.uint8), levels[..., 1], levels[..., 0]])


def decode_flow(image: np.ndarray, bound: float = 20) -> np.ndarray:
    """Pixels, float32 [H, W, 2] with (x, y) last, of a stored flow, uint8 RGB [H, W, 3]; 128 is no motion."""
    flow = image[..., [2, 1]].astype(np.float32) * np.float32(2 * bound / 255) - np.float32(bound)
    flow[image[..., [2, 1]] == 128] = 0  # 127.5 was rounded up
    return flow


def color_wheel(flow: np.ndarray, bound: float = 20) -> np.ndarray:
    """Flow as colours, uint8 RGB [H, W, 3]: hue is direction, saturation speed (full at ``bound``)."""
    speed, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
    saturation = np.clip(speed / bound, 0, 1) * 255
    hsv = np.dstack([angle / 2, saturation, np.full_like(speed, 255)])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dataset.preparation.flow import color_wheel, compute_flow, decode_flow, encode_flow
from dataset.preparation.frames import Options
from dataset.preparation.prepare import compare_options
from utils.errors import UserError


def texture(shift_x: float = 0, shift_y: float = 0) -> np.ndarray:
    """Smooth random grey image [64, 80], moved right and down by the shifts in pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (104, 120)).astype(np.float32)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)
    moved = cv2.warpAffine(smooth, np.float32([[1, 0, shift_x], [0, 1, shift_y]]), (120, 104))
    return moved[20:84, 20:100].astype(np.uint8)


@pytest.mark.parametrize("method", ["tvl1", "dis"])
def test_flow_of_a_translation(method):
    flow = compute_flow(texture(), texture(3, -2), method)
    assert flow.shape == (64, 80, 2)
    assert flow.dtype == np.float32
    inner = flow[12:-12, 12:-12]
    assert np.abs(np.median(inner, axis=(0, 1)) - [3, -2]).max() < 0.15


def test_encoding_by_hand():
    flow = np.zeros((1, 6, 2), np.float32)
    flow[0, :, 0] = [0, 20, -20, 25, -99, 1]
    flow[0, :, 1] = [0, 10, -10, -20, 20, 0.05]
    image = encode_flow(flow)
    assert image.dtype == np.uint8
    # (128, y, x): no motion 127.5 -> 128; (f + 20) * 6.375
    assert image[0].tolist() == [
        [128, 128, 128],
        [128, 191, 255],
        [128, 64, 0],
        [128, 0, 255],
        [128, 255, 0],
        [128, 128, 134],
    ]
    assert encode_flow(flow, bound=40)[0, 1].tolist() == [128, 159, 191]


def test_decoding_inverts_encoding_within_half_a_level():
    flow = np.random.default_rng(1).uniform(-20, 20, (30, 40, 2)).astype(np.float32)
    flow[np.abs(flow) < 0.2] = 0  # the level of "no motion" takes in a little of the right and the down
    assert np.abs(decode_flow(encode_flow(flow)) - flow).max() <= 20 / 255 + 1e-5
    assert decode_flow(np.full((2, 2, 3), 128, np.uint8)).tolist() == np.zeros((2, 2, 2)).tolist()
    small = flow / 4
    assert np.abs(decode_flow(encode_flow(small, 5), 5) - small).max() <= 5 / 255 + 1e-5


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"farneback.*tvl1, dis"):
        compute_flow(texture(), texture(), "farneback")


def test_a_database_goes_on_with_the_flow_that_it_was_begun_with():
    assert Options().noted()["flow_by"].startswith("coclr-numba-1")
    assert Options(streams=("rgb",)).noted()["flow_by"] is None
    tvl1, dis = (json.loads(json.dumps(Options(flow=flow).noted())) for flow in ("tvl1", "dis"))
    plan = SimpleNamespace(options=Options(), out="DIR")
    compare_options(tvl1, plan)
    compare_options(dis, SimpleNamespace(options=Options(flow="dis"), out="DIR"))
    with pytest.raises(UserError, match=r"DIR was begun .*--flow_by opencv there, coclr-numba-1.* here"):
        compare_options(tvl1 | {"flow_by": "opencv"}, plan)


def test_color_wheel():
    flow = np.float32([[[0, 0], [20, 0], [-20, 0], [0, 10]]])
    # still: white; right: red; left: cyan; half speed down: hue 90 degrees, half saturated
    assert color_wheel(flow)[0].tolist() == [[255, 255, 255], [255, 0, 0], [0, 255, 255], [191, 255, 128]]

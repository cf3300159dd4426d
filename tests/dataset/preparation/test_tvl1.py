"""TV-L1 against OpenCV's own, which scripts/test.sh installs beside the OpenCV that the project uses."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.preparation import tvl1 as tvl1_module
from dataset.preparation.flow import encode_flow
from dataset.preparation.tvl1 import tvl1

CONTRIB = Path(sys.prefix) / "contrib"
OPENCV_TVL1 = """
import sys, cv2, numpy as np
if not hasattr(cv2, "optflow"): sys.exit(3)
pairs = np.load(sys.argv[1])
flows = {name: cv2.optflow.DualTVL1OpticalFlow_create().calc(*pair, None) for name, pair in pairs.items()}
np.savez(sys.argv[2], **flows)
"""


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)


def pair(height: int, width: int, x: float, y: float, turn: float = 0, zoom: float = 1) -> np.ndarray:
    """Grey [2, H, W]: a texture, and how it looks when moved by (x, y) pixels, turned and zoomed."""
    image = texture(height, width)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, zoom)
    matrix[:, 2] += x, y
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.rint([image, moved]).astype(np.uint8)


PAIRS = {
    "shift": pair(96, 128, 1.3, -0.6),
    "far": pair(96, 128, 5, 3),
    "turn": pair(90, 75, 0.5, 0.2, 2, 1.02),
    "odd": pair(61, 47, -2.2, 1.1),
    "whole blocks": pair(40, 48, 0.4, 0.4),
    "least": pair(16, 16, 0.7, 0.3),
    "wide": pair(16, 90, 1.5, 0),
    "tall": pair(70, 17, 0, 1.5),
    "dim": pair(50, 60, 1, 1) // 16,
    "almost still": np.stack([texture(50, 60), texture(50, 60) + (texture(50, 60, 1) > 250)]).astype(
        np.uint8
    ),
}


@pytest.fixture(scope="module")
def opencv_flows(tmp_path_factory):
    """What OpenCV's DualTVL1 makes of PAIRS, each by an object of its own: it remembers small scales."""
    folder = tmp_path_factory.mktemp("tvl1")
    np.savez(folder / "pairs.npz", **PAIRS)
    command = [sys.executable, "-c", OPENCV_TVL1, folder / "pairs.npz", folder / "flows.npz"]
    if subprocess.run(command, env=os.environ | {"PYTHONPATH": str(CONTRIB)}).returncode == 3:
        pytest.skip(
            f"no OpenCV with TV-L1: pip install --no-deps --target {CONTRIB} opencv-contrib-python-headless"
        )
    return np.load(folder / "flows.npz")


@pytest.mark.parametrize("name", PAIRS)
def test_flow_is_opencvs(name, opencv_flows):
    flow, theirs = tvl1(*PAIRS[name]), opencv_flows[name]
    assert flow.shape == theirs.shape
    assert flow.dtype == np.float32
    error = np.hypot(*np.moveaxis(flow - theirs, -1, 0))
    assert error.mean() < 0.03
    assert np.percentile(error, 99) < 0.3
    stored, theirs_stored = encode_flow(flow).astype(int), encode_flow(theirs).astype(int)
    assert (np.abs(stored - theirs_stored).max(axis=2) <= 1).mean() > 0.99


def test_known_motion():
    flow = tvl1(*pair(80, 100, 3, -2))[12:-12, 12:-12]
    assert np.abs(flow - [3, -2]).mean() < 0.05


@pytest.mark.parametrize("level", [0, 7, 255])
def test_still_pairs_have_no_flow(level):
    still = np.full((40, 33), level, np.uint8)
    assert tvl1(still, still).tolist() == np.zeros((40, 33, 2)).tolist()
    one_pixel = still.copy()
    one_pixel[20, 16] ^= 1
    assert np.abs(tvl1(still, one_pixel)).max() < 0.5


def test_cuts_and_noise_are_finite():
    rng = np.random.default_rng(1)
    frames = [*rng.integers(0, 256, (3, 33, 50), np.uint8), np.zeros((33, 50), np.uint8)]
    frames.append(~frames[-1])
    for previous in frames:
        for current in frames:
            assert np.isfinite(tvl1(previous, current)).all()


def test_pairs_do_not_influence_each_other():
    alone = tvl1(*PAIRS["shift"])
    tvl1(*PAIRS["least"])
    tvl1(*PAIRS["far"])
    assert (tvl1(*PAIRS["shift"]) == alone).all()


@pytest.fixture
def state():
    """A state of 20 x 37 pixels on its way: the first iteration changes much, the next ones little."""
    state = tvl1_module._aligned_zeros(22, tvl1_module.PLANES, 64)
    inside = state[1:-1, :, tvl1_module.LANES : tvl1_module.LANES + 37]
    inside[:, tvl1_module.IX] = inside[:, tvl1_module.INVERSE] = 1
    inside[:, tvl1_module.RHO] = np.random.default_rng(0).normal(-0.02, 1e-4, (20, 37))
    return state


def test_iterations_in_flight_are_iterations_one_by_one(state):
    together, saved = state.copy(), np.zeros(state.size, np.float32)
    changes = tvl1_module._run_wave(together, saved, 37, 5)
    one_by_one = [tvl1_module._run_wave(state, saved, 37, 1)[0] for _ in range(5)]
    assert (together == state).all()
    assert changes.tolist() == one_by_one


def test_iterations_too_far_are_undone(state):
    start, saved = state.copy(), np.zeros(state.size, np.float32)
    first, second, third = (tvl1_module._run_wave(state, saved, 37, 1)[0] for _ in range(3))
    assert first / 100 > second > third
    stopped = start.copy()
    assert tvl1_module._iterate(stopped, saved, 37, second) == second
    for _ in range(2):
        tvl1_module._run_wave(start, saved, 37, 1)
    assert (stopped == start).all()


@pytest.mark.slow
def test_compilation_is_told_and_kept(tmp_path):
    """The first process on a machine compiles, the next ones load."""
    script = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from dataset.preparation.flow import warm_up; warm_up('tvl1')"
    )

    def load() -> dict[Path, int]:
        """Times of change of the cache's files."""
        command, environment = [sys.executable, "-c", script], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stderr == "loading TV-L1, which is compiled once per machine (some seconds)\n"
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    compiled = load()
    assert len(compiled) > 5
    assert load() == compiled

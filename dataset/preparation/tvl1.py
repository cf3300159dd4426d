"""TV-L1 optical flow: the numbers of OpenCV's ``DualTVL1OpticalFlow``, the iterations compiled by numba.

Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow", DAGM 2007; Sanchez,
Meinhardt-Llopis, Facciolo, "TV-L1 optical flow estimation", IPOL 2013, whose names these are.

An iteration is two passes over each row, in blocks that are one vector. Several iterations follow each other
through the image a row apart, and the planes of a row lie side by side, so that what they share stays in the
cache.
"""

import functools
from collections.abc import Callable

import cv2
import numba
import numpy as np
from numba.core.compiler import CompilerBase, DefaultPassBuilder

from utils.log import log

TAU = 0.25  # step of the dual update
LAMBDA = 0.15  # weight of the data term
THETA = 0.3  # tightness
SCALES = 5
SCALE_STEP = 0.8
MIN_SIDE = 16  # of a scale
WARPS = 5
INNER = 30
OUTER = 10
EPSILON = 0.01  # iterations end at this root mean square change of the flow, pixels
MEDIAN = 5

LANES = 16  # columns per block: a vector of AVX-512, two of AVX2
WAVE = 8  # iterations in flight at most
# Planes of a row of the state; what iterations change comes first
U1, U2, P11, P12, P21, P22, IX, IY, RHO, INVERSE, PLANES = range(11)
CHANGING = IX

THETA_32, STEP, BOUND = np.float32(THETA), np.float32(TAU / THETA), np.float32(LAMBDA * THETA)
TINY = np.finfo(np.float32).eps
ONE = np.float32(1)
BLOCK, LEFT = np.uintp(LANES), np.uintp(1)  # unsigned: numba then looks for no negative index


class _NoAlias(CompilerBase):
    """Tells LLVM that array arguments do not overlap, without which it makes no vectors of so many."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


def _compiled(function: Callable, **options) -> Callable:
    options |= {"fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return numba.njit(**options)(function)


_row_kernel = functools.partial(_compiled, pipeline_class=_NoAlias)


def compile_once() -> None:
    """Compile what this machine's cache lacks, lest each of several processes does."""
    log.info("loading TV-L1, which is compiled once per machine (some seconds)")
    tvl1(np.eye(MIN_SIDE, dtype=np.uint8), np.zeros((MIN_SIDE, MIN_SIDE), np.uint8))


def tvl1(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Flow in pixels from one grey frame to the next, float32 [H, W, 2], (x, y) last; both uint8 [H, W]."""
    if np.array_equal(previous, current):  # as conversions of the frame rate make them
        return np.zeros((*current.shape, 2), np.float32)
    pyramids = list(zip(_pyramid(previous), _pyramid(current), strict=True))
    flow = np.zeros((*pyramids[-1][0].shape, 2), np.float32)
    for source, target in reversed(pyramids):
        if flow.shape[:2] != source.shape:
            flow = cv2.resize(flow, source.shape[::-1], interpolation=cv2.INTER_LINEAR)
            flow *= np.float32(1 / SCALE_STEP)
        flow = _refine(source, target, flow)
    return flow


def _pyramid(frame: np.ndarray) -> list[np.ndarray]:
    scales = [frame.astype(np.float32)]
    while len(scales) < SCALES:
        smaller = cv2.resize(scales[-1], None, fx=SCALE_STEP, fy=SCALE_STEP, interpolation=cv2.INTER_LINEAR)
        if min(smaller.shape) < MIN_SIDE:
            break
        scales.append(smaller)
    return scales


def _refine(source: np.ndarray, target: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Flow of one scale, [H, W, 2], from what the coarser one says."""
    height, width = source.shape
    # a row of zeros above and below, a block of zeros on the left, room on the right up to whole blocks
    state = _aligned_zeros(height + 2, PLANES, LANES + (width + LANES) // LANES * LANES)
    saved = np.empty((height + 2) * CHANGING * state.shape[2], np.float32)
    u1, u2 = (state[1:-1, plane, LANES : LANES + width] for plane in (U1, U2))
    u1[:], u2[:] = flow[..., 0], flow[..., 1]
    columns = np.arange(width, dtype=np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    slope = np.float32([[-0.5, 0, 0.5]])
    gradients = (cv2.filter2D(target, -1, s, borderType=cv2.BORDER_REPLICATE) for s in (slope, slope.T))
    layers = cv2.merge([target, *gradients])
    enough = np.float32(EPSILON**2 * height * width)
    for _ in range(WARPS):
        _linearise(state, source, cv2.remap(layers, columns + u1, rows + u2, cv2.INTER_CUBIC))
        for _ in range(OUTER):
            for u in (u1, u2):
                cv2.medianBlur(u, MEDIAN, dst=u)
            if _iterate(state, saved, width, enough) <= enough:
                break
    return cv2.merge([u1, u2])


def _aligned_zeros(*shape: int) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes: a vector load then touches one line of the cache."""
    size = int(np.prod(shape))
    memory = np.zeros(size + LANES, np.float32)
    start = -memory.ctypes.data // memory.itemsize % LANES
    return memory[start : start + size].reshape(shape)


@_compiled
def _planes(state):
    """The planes one by one, each from its first column above the image to the end of the state."""
    stride = state.shape[2]
    first = state.reshape(-1)[LANES:]
    return (
        first,
        first[stride:],
        first[2 * stride :],
        first[3 * stride :],
        first[4 * stride :],
        first[5 * stride :],
        first[6 * stride :],
        first[7 * stride :],
        first[8 * stride :],
        first[9 * stride :],
    )


@_compiled
def _linearise(state, source, warped):
    """The data term around the flow: fill IX, IY, RHO, INVERSE from image and gradient [H, W, 3] moved."""
    height, planes, stride = state.shape
    for y in range(1, height - 1):
        _linearise_row(np.uintp(y * planes * stride), _planes(state), source[y - 1], warped[y - 1])


@_row_kernel
def _linearise_row(start, planes, source, warped):
    u1, u2, _, _, _, _, ix, iy, rho, inverse = planes
    for i in range(len(source)):
        x = start + np.uintp(i)
        gx, gy = warped[i, 1], warped[i, 2]
        ix[x] = gx
        iy[x] = gy
        rho[x] = warped[i, 0] - source[i] - gx * u1[x] - gy * u2[x]
        inverse[x] = ONE / max(gx * gx + gy * gy, TINY)


@_row_kernel
def _update_flow(start, stop, row, planes, change):
    """The thresholding step and the divergence of the dual variables, along a row of whole blocks.

    ``change`` [2 LANES] gets the squares; those of the last block, which may reach beyond the image, apart.
    """
    u1, u2, p11, p12, p21, p22, ix, iy, rho, inverse = planes
    for block in range(start, stop, BLOCK):
        part = BLOCK if block + BLOCK == stop else np.uintp(0)
        for i in range(BLOCK):
            x = block + i
            old1, old2, gx, gy = u1[x], u2[x], ix[x], iy[x]
            along = -(rho[x] + gx * old1 + gy * old2) * inverse[x]
            along = min(max(along, -BOUND), BOUND)
            new1 = old1 + along * gx + THETA_32 * (p11[x] - p11[x - LEFT] + p12[x] - p12[x - row])
            new2 = old2 + along * gy + THETA_32 * (p21[x] - p21[x - LEFT] + p22[x] - p22[x - row])
            u1[x] = new1
            u2[x] = new2
            change[part + i] += (new1 - old1) ** 2 + (new2 - old2) ** 2


@_row_kernel
def _update_dual(start, stop, row, planes):
    """The dual variables from the forward gradient of the flow, along a row of whole blocks."""
    u1, u2, p11, p12, p21, p22, _, _, _, _ = planes
    for block in range(start, stop, BLOCK):
        for i in range(BLOCK):
            x = block + i
            u1x, u1y = u1[x + LEFT] - u1[x], u1[x + row] - u1[x]
            u2x, u2y = u2[x + LEFT] - u2[x], u2[x + row] - u2[x]
            scale1 = ONE / (ONE + STEP * np.sqrt(u1x * u1x + u1y * u1y))
            scale2 = ONE / (ONE + STEP * np.sqrt(u2x * u2x + u2y * u2y))
            p11[x] = (p11[x] + STEP * u1x) * scale1
            p12[x] = (p12[x] + STEP * u1y) * scale1
            p21[x] = (p21[x] + STEP * u2x) * scale2
            p22[x] = (p22[x] + STEP * u2y) * scale2


@_row_kernel
def _copy(source, start, target, to, size):
    for i in range(size):
        target[to + i] = source[start + i]


@_compiled
def _iterate(state, saved, width, enough):
    """INNER iterations, fewer if one changes the flow by no more than ``enough``; returns the last change.

    The change falls with about the power -3/2 of the iteration. Three quarters of the iterations that are
    foreseen run at once; where they went too far all the same, they are undone.
    """
    height, planes, stride = state.shape
    flat = state.reshape(-1)
    size = np.uintp(CHANGING * stride)
    done, ahead, change = 0, 1, enough + ONE  # not inf, which fastmath does not know
    while done < INNER and change > enough:
        changes = _run_wave(state, saved, width, ahead)
        needed = 0
        while needed < ahead and change > enough:
            change = changes[needed]
            needed += 1
        if needed < ahead:
            for y in range(1, height - 1):
                _copy(saved, np.uintp(y) * size, flat, np.uintp(y * planes * stride), size)
            _run_wave(state, saved, width, needed)
        done += ahead
        foreseen = done * ((change / enough) ** (2 / 3) - 1)
        ahead = min(max(int(0.75 * foreseen), 1), WAVE, INNER - done)
    return change


@_compiled
def _run_wave(state, saved, width, count):
    """``count`` iterations, each a row behind the one before; their changes. ``saved``: what was before."""
    height, number, stride = state.shape
    flat = state.reshape(-1)
    planes = _planes(state)
    row, size = np.uintp(number * stride), np.uintp(CHANGING * stride)
    blocks = (width + LANES - 1) // LANES
    squares = np.zeros((count, 2 * LANES), np.float32)
    for front in range(1, height + count):
        if front < height - 1:
            _copy(flat, np.uintp(front) * row, saved, np.uintp(front) * size, size)
        for k in range(count):
            y = front - k
            start = np.uintp(y) * row
            stop = start + np.uintp(blocks * LANES)
            if 1 <= y < height - 1:
                _update_flow(start, stop, row, planes, squares[k])
                for u in planes[:2]:
                    u[start + np.uintp(width)] = u[start + np.uintp(width - 1)]
            if 2 <= y < height:
                below = row if y < height - 1 else np.uintp(0)
                _update_dual(start - row, stop - row, below, planes)
    inside = LANES + width - (blocks - 1) * LANES
    changes = np.empty(count, np.float32)
    for k in range(count):
        changes[k] = squares[k, :inside].sum()
    return changes

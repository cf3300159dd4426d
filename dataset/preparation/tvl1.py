"""TV-L1 optical flow, the numbers of OpenCV 5's ``DualTVL1OpticalFlow``, compiled by numba for the processor at hand.

Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow", DAGM 2007; Sanchez,
Meinhardt-Llopis, Facciolo, "TV-L1 optical flow estimation", IPOL 2013, whose names these are.

What makes it fast: an update of the flow and one of the dual variables are one pass over a row each, eight iterations
follow each other through the image a row apart, so that what they share stays in the cache, and the planes of a row
lie side by side. Inside, flow is held in units of THETA / TAU pixels, which saves the dual update its products.
"""

import cv2
import numba
import numpy as np
from numba.core.compiler import CompilerBase, DefaultPassBuilder

TAU = 0.25  # step of the dual update
LAMBDA = 0.15  # weight of the data term
THETA = 0.3  # tightness
SCALES = 5
SCALE_STEP = 0.8
WARPS = 5
EPSILON = 0.01  # stops an outer iteration: root mean square change of the flow, pixels
INNER = 30
OUTER = 10
MEDIAN = 5
MIN_SIDE = 16  # of a scale

LANES = 16  # floats per block of columns: a vector of AVX-512, two of AVX2
BORDER = 4  # zeros around the warped image, more than the bicubic kernel reaches
WAVE = 8  # iterations in flight

UNIT = np.float32(TAU / THETA)
STEP = np.float32(TAU)
BOUND = np.float32(LAMBDA * THETA)
TINY = np.finfo(np.float32).eps
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
BLOCK = np.uintp(LANES)
NEXT = np.uintp(1)
PIXELS = np.uintp(4)  # warped at a time
LAYERS = 4  # image, its gradient, and one more so that they fill a vector
FIRST = np.float32(BORDER - 1)  # the kernel begins a pixel before

# Planes of a row of the state: what iterations change first
U1, U2, P11, P12, P21, P22, IX, IY, RHO, INVERSE, PLANES = range(11)
CHANGING = IX


class _NoAlias(CompilerBase):
    """Tells LLVM that array arguments do not overlap, without which it checks every pair of them at each row."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


_compiled = numba.njit(fastmath=True, error_model="numpy", cache=True)
_kernel = numba.njit(fastmath=True, error_model="numpy", cache=True, pipeline_class=_NoAlias)


def tvl1(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Flow in pixels from one grey frame to the next, float32 [H, W, 2] with (x, y) last; both uint8 [H, W]."""
    pyramids = list(zip(_pyramid(previous), _pyramid(current), strict=True))
    flow = np.zeros((*pyramids[-1][0].shape, 2), np.float32)
    for source, target in reversed(pyramids):
        if flow.shape[:2] != source.shape:
            size = source.shape[::-1]
            flow = cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR) * np.float32(1 / SCALE_STEP)
        flow = _flow_of_scale(source, target, flow)
    return flow


def _pyramid(frame: np.ndarray) -> list[np.ndarray]:
    scales = [frame.astype(np.float32)]
    while len(scales) < SCALES:
        smaller = cv2.resize(scales[-1], None, fx=SCALE_STEP, fy=SCALE_STEP, interpolation=cv2.INTER_LINEAR)
        if min(smaller.shape) < MIN_SIDE:
            break
        scales.append(smaller)
    return scales


def _flow_of_scale(source: np.ndarray, target: np.ndarray, flow: np.ndarray) -> np.ndarray:
    height, width = source.shape
    state = _aligned(height + 2, PLANES, LANES + (width + LANES) // LANES * LANES)
    saved = np.empty((height + 2, CHANGING * state.shape[2]), np.float32)
    inside = state[1:-1, :, LANES : LANES + width]
    inside[:, :CHANGING] = 0
    inside[:, U1] = flow[..., 0] * UNIT
    inside[:, U2] = flow[..., 1] * UNIT
    layers = _layers(target)
    enough = EPSILON**2 * height * width * UNIT**2
    for _ in range(WARPS):
        _warp(layers, source, state)
        change = np.inf
        for _ in range(OUTER):
            for plane in (U1, U2):
                inside[:, plane] = cv2.medianBlur(np.ascontiguousarray(inside[:, plane]), MEDIAN)
            change = _iterate(state, saved, width, INNER, enough)
            if change <= enough:
                break
    return np.stack([inside[:, U1], inside[:, U2]], -1) * (ONE / UNIT)


def _aligned(*shape: int) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes: a vector load then touches one line of the cache."""
    size = int(np.prod(shape))
    memory = np.zeros(size + LANES, np.float32)
    start = -memory.ctypes.data // memory.itemsize % LANES
    return memory[start : start + size].reshape(shape)


def _layers(image: np.ndarray) -> np.ndarray:
    """[H + 2 BORDER, W + 2 BORDER, 4]: the image, its centred gradient (x, y), 0; nothing but zeros outside."""
    height, width = image.shape
    framed = np.pad(image, 1, mode="edge")
    layers = np.zeros((height + 2 * BORDER, width + 2 * BORDER, 4), np.float32)
    inside = layers[BORDER:-BORDER, BORDER:-BORDER]
    inside[..., 0] = image
    inside[..., 1] = (framed[1:-1, 2:] - framed[1:-1, :-2]) / 2
    inside[..., 2] = (framed[2:, 1:-1] - framed[:-2, 1:-1]) / 2
    return layers


@_compiled
def _cubic(t):
    """Weights of the four neighbours at distances 1 + t, t, 1 - t, 2 - t (Keys 1981, a = -3/4, as OpenCV's)."""
    a = np.float32(-0.75)
    s = ONE - t
    first = ((a * (t + ONE) - 5 * a) * (t + ONE) + 8 * a) * (t + ONE) - 4 * a
    second = ((a + 2) * t - (a + 3)) * t * t + ONE
    third = ((a + 2) * s - (a + 3)) * s * s + ONE
    return first, second, third, ONE - first - second - third


@_compiled
def _warp(layers, source, state):
    """Linearise the data term around the flow: fill IX, IY, RHO and INVERSE of ``state``."""
    height, width = source.shape
    room = width + PIXELS
    corner = np.zeros(room, np.uint32)
    across = np.zeros((4, room), np.float32)
    down = np.zeros((4, room), np.float32)
    columns = np.empty((room, 4 * LAYERS), np.float32)
    warped = np.empty((3, room), np.float32)
    stride = layers.shape[1] * LAYERS
    for y in range(height):
        u1, u2 = state[y + 1, U1, LANES:], state[y + 1, U2, LANES:]
        ix, iy = state[y + 1, IX, LANES:], state[y + 1, IY, LANES:]
        rho, inverse = state[y + 1, RHO, LANES:], state[y + 1, INVERSE, LANES:]
        for x in range(width):
            at_x = min(max(np.float32(x) + u1[x] / UNIT, np.float32(-3)), np.float32(width + 2))
            at_y = min(max(np.float32(y) + u2[x] / UNIT, np.float32(-3)), np.float32(height + 2))
            left, top = np.floor(at_x), np.floor(at_y)
            corner[x] = np.int32(top + FIRST) * np.int32(stride) + np.int32(left + FIRST) * np.int32(LAYERS)
            across[0, x], across[1, x], across[2, x], across[3, x] = _cubic(at_x - left)
            down[0, x], down[1, x], down[2, x], down[3, x] = _cubic(at_y - top)
        _interpolate(
            np.uintp(width), np.uintp(stride), layers.reshape(-1), corner, across, down, columns, warped
        )
        for x in range(width):
            gx, gy = warped[1, x] * UNIT, warped[2, x] * UNIT
            ix[x] = gx
            iy[x] = gy
            rho[x] = (warped[0, x] - source[y, x]) * (UNIT * UNIT) - gx * u1[x] - gy * u2[x]
            inverse[x] = ONE / max(gx * gx + gy * gy, TINY)


@_kernel
def _interpolate(width, stride, layers, corner, across, down, columns, warped):
    """``warped`` [layer, x] from the 4 x 4 pixels at ``corner``; the columns of four pixels at a time."""
    for block in range(np.uintp(0), width, PIXELS):
        x0, x1, x2, x3 = block, block + NEXT, block + np.uintp(2), block + np.uintp(3)
        a, b, c, d = np.uintp(corner[x0]), np.uintp(corner[x1]), np.uintp(corner[x2]), np.uintp(corner[x3])
        for i in range(np.uintp(4 * LAYERS)):
            columns[x0, i] = _column(layers, a + i, stride, down, x0)
            columns[x1, i] = _column(layers, b + i, stride, down, x1)
            columns[x2, i] = _column(layers, c + i, stride, down, x2)
            columns[x3, i] = _column(layers, d + i, stride, down, x3)
    for x in range(width):
        for k in range(np.uintp(3)):
            total = ZERO
            for i in range(np.uintp(4)):
                total += across[i, x] * columns[x, i * np.uintp(LAYERS) + k]
            warped[k, x] = total


@_compiled
def _column(layers, at, stride, down, x):
    total = ZERO
    for j in range(np.uintp(4)):
        total += down[j, x] * layers[at + j * stride]
    return total


@_kernel
def _update_flow(start, stop, row, u1, u2, p11, p12, p21, p22, ix, iy, rho, inverse, change):
    """The thresholding step and the divergence of the dual variables, along a row of whole blocks.

    ``change`` [2, LANES] gets the squares of the changes: the last block, which may reach beyond the image, apart.
    """
    for block in range(start, stop, BLOCK):
        which = BLOCK if block + BLOCK == stop else np.uintp(0)
        for i in range(BLOCK):
            x = block + i
            old1, old2, gx, gy = u1[x], u2[x], ix[x], iy[x]
            along = -(rho[x] + gx * old1 + gy * old2) * inverse[x]
            along = min(max(along, -BOUND), BOUND)
            new1 = old1 + along * gx + STEP * (p11[x] - p11[x - NEXT] + p12[x] - p12[x - row])
            new2 = old2 + along * gy + STEP * (p21[x] - p21[x - NEXT] + p22[x] - p22[x - row])
            u1[x] = new1
            u2[x] = new2
            change[which + i] += (new1 - old1) ** 2 + (new2 - old2) ** 2


@_kernel
def _update_dual(start, stop, row, u1, u2, p11, p12, p21, p22):
    """The dual variables from the forward gradient of the flow, along a row of whole blocks."""
    for block in range(start, stop, BLOCK):
        for i in range(BLOCK):
            x = block + i
            u1x, u1y = u1[x + NEXT] - u1[x], u1[x + row] - u1[x]
            u2x, u2y = u2[x + NEXT] - u2[x], u2[x + row] - u2[x]
            scale1 = ONE / (ONE + np.sqrt(u1x * u1x + u1y * u1y))
            scale2 = ONE / (ONE + np.sqrt(u2x * u2x + u2y * u2y))
            p11[x] = (p11[x] + u1x) * scale1
            p12[x] = (p12[x] + u1y) * scale1
            p21[x] = (p21[x] + u2x) * scale2
            p22[x] = (p22[x] + u2y) * scale2


@_compiled
def _iterate(state, saved, width, count, enough):
    """Up to ``count`` iterations, fewer if one changes the flow by no more than ``enough``; returns the last change."""
    done, change = 0, np.float32(np.inf)
    while done < count and change > enough:
        ahead = min(WAVE, count - done)
        changes = _run_wave(state, saved, width, ahead)
        for i in range(ahead):
            change = changes[i]
            if change <= enough:
                if i + 1 < ahead:
                    _restore(state, saved)
                    _run_wave(state, saved, width, i + 1)
                break
        done += ahead
    return change


@_compiled
def _restore(state, saved):
    height, planes, stride = state.shape
    flat = state.reshape(-1)
    size = CHANGING * stride
    for y in range(1, height - 1):
        start = y * planes * stride
        for i in range(size):
            flat[start + i] = saved[y, i]


@_compiled
def _run_wave(state, saved, width, count):
    """``count`` iterations, each a row behind the one before it; the change of each.

    ``saved`` gets what was before them.
    """
    height, planes, stride = state.shape
    height -= 2
    flat = state.reshape(-1)
    u1, u2 = flat, flat[stride:]
    p11, p12, p21, p22 = (
        flat[P11 * stride :],
        flat[P12 * stride :],
        flat[P21 * stride :],
        flat[P22 * stride :],
    )
    ix, iy, rho, inverse = (
        flat[IX * stride :],
        flat[IY * stride :],
        flat[RHO * stride :],
        flat[INVERSE * stride :],
    )
    row = planes * stride
    blocks = (width + LANES - 1) // LANES
    lanes = np.zeros((count, 2 * LANES), np.float32)
    size = CHANGING * stride
    for front in range(1, height + count + 1):
        if front <= height:
            saved[front] = flat[front * row : front * row + size]
        for k in range(count):
            y = front - k
            if 1 <= y <= height:
                start = np.uintp(y * row + LANES)
                _update_flow(
                    start,
                    start + np.uintp(blocks * LANES),
                    np.uintp(row),
                    u1,
                    u2,
                    p11,
                    p12,
                    p21,
                    p22,
                    ix,
                    iy,
                    rho,
                    inverse,
                    lanes[k],
                )
                last = y * row + LANES + width
                u1[last] = u1[last - 1]
                u2[last] = u2[last - 1]
            if 2 <= y <= height + 1:
                start = np.uintp((y - 1) * row + LANES)
                below = np.uintp(row if y <= height else 0)
                _update_dual(start, start + np.uintp(blocks * LANES), below, u1, u2, p11, p12, p21, p22)
    inside = LANES + width - (blocks - 1) * LANES
    changes = np.empty(count, np.float32)
    for k in range(count):
        changes[k] = lanes[k, :LANES].sum() + lanes[k, LANES:inside].sum() if blocks else 0
    return changes

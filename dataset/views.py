"""The random draws of training: which clip each view shows, its crop, and its augmentation.

Everything here is a pure function of a ``numpy.random.Generator``; nothing touches pixels. ``dataset.crop`` cuts and
resizes by the drawn box on the CPU, ``utils.augment`` applies the drawn augmentation on the training device.
Follows CoCLR's released augmentation (Han et al. 2020): every draw is made once per clip and holds for all its frames,
but for the channel of the grey operation, which is drawn per frame.
"""

from dataclasses import dataclass

import numpy as np

JITTER_LOW = np.array([0.6, 0.6, 0.6, -0.1])  # brightness, contrast, saturation factors; hue shift in turns
JITTER_HIGH = np.array([1.4, 1.4, 1.4, 0.1])
JITTER_IDENTITY = np.array([1, 1, 1, 0], np.float32)
BLUR_SIGMA = (0.1, 2.0)  # pixels of the resized crop

# probability of each operation by strength
STRENGTHS = {
    "none": {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.0},
    "light": {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.5},
    "strong": {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5},
    "finetune": {"jitter": 0.3, "grey": 0.0, "blur": 0.0, "flip": 0.5},
}


@dataclass(frozen=True)
class View:
    """One view of a video: ``clip`` (0 or 1) of its two clips, augmented with ``strength`` (a key of STRENGTHS)."""

    clip: int
    strength: str


def draw_pretrain_views(rng: np.random.Generator) -> tuple[View, View]:
    """Draw the two views of a pretraining sample.

    With probability 1/2 two clips, each strong with 0.3 and else light; otherwise one clip (drawn evenly) is both
    views, one strong and one light (order drawn evenly), and the other clip is not needed.
    """
    if rng.random() < 0.5:
        first, second = ("strong" if rng.random() < 0.3 else "light" for _ in range(2))
        return View(0, first), View(1, second)
    clip = int(rng.integers(2))
    first, second = ("strong", "light") if rng.random() < 0.5 else ("light", "strong")
    return View(clip, first), View(clip, second)


def draw_crop(
    rng: np.random.Generator, height: int, width: int, attempts: int = 1, fallback: str = "whole"
) -> tuple[int, int, int, int]:
    """Draw a random resized crop of a frame of ``height`` x ``width`` pixels: (top, left, height, width) in pixels.

    Area uniform in [0.2, 1] of the frame, aspect uniform in [3/4, 4/3], width and height swapped with 1/2. A box that
    does not fit is drawn anew until ``attempts`` are spent; then ``fallback`` decides: the "whole" frame
    (pretraining, one attempt) or the "centre" square of the short side (finetuning, ten).
    """
    for _ in range(attempts):
        area = rng.uniform(0.2, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    if fallback == "whole":
        return 0, 0, height, width
    if fallback == "centre":
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    raise ValueError(f"fallback {fallback!r} is neither 'whole' nor 'centre'")


def draw_augmentation(rng: np.random.Generator, strength: str, seq_len: int) -> dict[str, np.ndarray]:
    """Draw the augmentation of one clip of ``seq_len`` frames; ``strength`` is a key of STRENGTHS.

    The arrays have the same shapes whatever was drawn, so that they collate into a batch:
    ``jitter_order`` int64 [4], the order of brightness (0), contrast (1), saturation (2) and hue (3);
    ``jitter_factors`` float32 [4], by operation: three factors and the hue shift in turns, (1, 1, 1, 0) for no jitter;
    ``grey_channel`` int64 [seq_len], the channel that replaces all three in each frame, -1 for no grey;
    ``blur_sigma`` float32 [], pixels, 0 for no blur; ``flip`` bool [].
    """
    if strength not in STRENGTHS:
        raise ValueError(f"strength {strength!r} is none of {', '.join(STRENGTHS)}")
    applied = {operation: rng.random() < p for operation, p in STRENGTHS[strength].items()}
    factors = (
        rng.uniform(JITTER_LOW, JITTER_HIGH).astype(np.float32)
        if applied["jitter"]
        else JITTER_IDENTITY.copy()
    )
    return {
        "jitter_order": rng.permutation(4) if applied["jitter"] else np.arange(4),
        "jitter_factors": factors,
        "grey_channel": rng.integers(3, size=seq_len) if applied["grey"] else np.full(seq_len, -1),
        "blur_sigma": np.array(rng.uniform(*BLUR_SIGMA) if applied["blur"] else 0, np.float32),
        "flip": np.array(applied["flip"]),
    }

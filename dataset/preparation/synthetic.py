"""The embedded footage: small videos of a textured shape moving over a moving, textured background.

The class of a video is the motion of its shape. As in real footage the scene hints at it: six in ten
videos of a class have the background that is typical of the class, the others any of the eight.
Everything else (tints, kind, texture, size and place of the shape, drift of the background, camera shake,
speed, phase, sense) is drawn per video and independent of the class. All have the same light, and every
texture has as many pixels of each brightness. So flow tells the class, a still picture hints at it, and
colour tells nothing. Motions go on throughout a video, and a mirror image keeps its class.

    python -m dataset.synthetic --out DIR

writes DIR/<Class>/v_<Class>_gGG_c01.avi (motion JPEG) and UCF-style lists
DIR/{classInd,trainlist01,testlist01}.txt.
"""

import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.cores import available_cores
from utils.errors import UserError, one_line_errors
from utils.options import Parser

FPS = 25


def triangle(phase: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs(phase % 1 - 0.5) - 1


def wave(phase: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * phase)


# Class -> the pose of a shape at each phase (in periods): place x, y in units of the amplitude, angle in
# turns, logarithms of its width and height.
MOTIONS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "Bounce": lambda p: {"x": 0.7 * triangle(p / 3), "y": 1 - 8 * (p % 1) * (1 - p % 1)},
    "Orbit": lambda p: {"x": 0.8 * wave(p), "y": 0.8 * wave(p + 0.25)},
    "Rotate": lambda p: {"angle": p},
    "Stretch": lambda p: {"width": 0.55 * wave(p), "height": -0.55 * wave(p)},
    "TranslateHorizontal": lambda p: {"x": triangle(p)},
    "TranslateVertical": lambda p: {"y": triangle(p)},
    "Zigzag": lambda p: {"x": 1.6 * triangle(p / 2), "y": 0.8 * triangle(p)},
    "Zoom": lambda p: {"width": 0.55 * wave(p), "height": 0.55 * wave(p)},
}
CLASSES = sorted(MOTIONS, key=str.lower)


# Backgrounds by class: a pattern, coarse or fine.
SCENES = [(pattern, fine) for fine in (False, True) for pattern in ("clouds", "stripes", "checks", "dots")]
TYPICAL = 0.6  # share of the videos of a class whose background is the class's own


def noise(rng: np.random.Generator, size: int, fine: bool = False) -> np.ndarray:
    """Smooth noise with detail at several scales: float32 [size, size] in [0, 1]."""
    total = np.zeros((size, size), np.float32)
    for cells, weight in ((24, 1.0), (40, 1.0)) if fine else ((4, 1.0), (9, 0.7), (20, 0.5)):
        coarse = rng.random((cells, cells), np.float32)
        total += weight * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip((total - total.min()) / np.ptp(total), 0, 1)


def equalised(picture: np.ndarray) -> np.ndarray:
    """A picture with its values spread evenly over [0, 1), in their order."""
    ranks = picture.ravel().argsort(kind="stable").argsort()
    return (ranks / picture.size).reshape(picture.shape)


def texture(
    rng: np.random.Generator, size: int, pattern: str, periods: tuple[float, float], fine: bool = False
) -> np.ndarray:
    """A grey texture of a slight tint, with so many periods across.

    float32 [size, size, 3], about [0, 255].
    """
    tint = 1 + 0.15 * rng.uniform(-1, 1, 3)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    bend = noise(rng, size)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(*periods)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (frequency * (a * cos + b * sin) + 0.8 * bend for a, b in ((x, y), (-y, x)))
    if pattern == "clouds":
        picture = noise(rng, size, fine)
    elif pattern == "stripes":
        picture = 0.5 + 0.5 * wave(u)
    elif pattern == "checks":
        picture = 0.5 + 0.5 * np.tanh(4 * wave(u) * wave(v))
    elif pattern == "dots":
        picture = np.clip(1.5 - 6 * np.hypot(u % 1 - 0.5, v % 1 - 0.5), 0, 1)
    picture = equalised(0.7 * picture + 0.3 * noise(rng, size))
    return (255 * (0.15 + 0.8 * picture[..., None]) * tint).astype(np.float32)


def scenery(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """The background of a video of class ``name``, as ``texture`` gives it."""
    scene = CLASSES.index(name) if rng.random() < TYPICAL else rng.integers(len(SCENES))
    pattern, fine = SCENES[scene]
    return texture(rng, size, pattern, (8, 10) if fine else (3, 4), fine)


def sprite(rng: np.random.Generator, size: int) -> np.ndarray:
    """A textured shape of about ``size`` pixels, colour premultiplied.

    float32 [size, size, 4], BGR and opacity.
    """
    y, x = (np.mgrid[:size, :size] + 0.5) * 2 / size - 1
    angle, radius, corners = np.arctan2(y, x), np.hypot(x, y), int(rng.integers(3, 7))
    kind = rng.integers(3)
    if kind == 0:  # polygon
        outline = np.cos(np.pi / corners) / np.cos(angle % (2 * np.pi / corners) - np.pi / corners)
    elif kind == 1:  # flower
        outline = 0.75 + 0.22 * np.cos(corners * angle)
    else:  # ellipse
        outline = 1 / np.hypot(np.cos(angle), np.sin(angle) / rng.uniform(0.55, 1))
    inside = (0.96 * outline - radius) * size / 2
    pattern = SCENES[rng.integers(4)][0]
    rim = np.clip(0.35 + inside / 4, 0, 1)[..., None]  # dark
    colour = (60 + 0.75 * texture(rng, size, pattern, (4, 6))) * rim
    opacity = np.clip(inside + 0.5, 0, 1)[..., None]
    return np.concatenate([colour * opacity, opacity], axis=2).astype(np.float32)


def render(rng: np.random.Generator, name: str, size: int, frames: int) -> np.ndarray:
    """Draw a video of class ``name``: uint8 [frames, size, size, 3], BGR."""
    time = np.arange(frames)
    background = 0.5 * scenery(rng, name, 2 * size)
    drift = rng.uniform(-0.1, 0.1, 2) * size / 96  # pixels per frame
    shake = cv2.GaussianBlur(rng.normal(0, 1, (frames, 2)), (1, 9), 2) * rng.uniform(0, 0.2) * size / 96
    picture = sprite(rng, round(rng.uniform(0.4, 0.5) * size))
    place = (0.5 + rng.uniform(-0.1, 0.1, 2)) * size
    start, amplitude = rng.random(), rng.uniform(0.2, 0.25) * size
    pose = dict.fromkeys(("x", "y", "angle", "width", "height"), np.zeros(frames))
    pose |= MOTIONS[name](rng.choice([-1, 1]) * time / rng.uniform(14, 16) + rng.random())

    video = np.empty((frames, size, size, 3), np.float32)
    for t in time:
        shift = np.column_stack([np.eye(2), shake[t] + drift * t - size / 2]).astype(np.float32)
        canvas = cv2.warpAffine(background, shift, (size, size), borderMode=cv2.BORDER_REFLECT)
        turn = 2 * np.pi * (start + pose["angle"][t])
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = np.exp([[pose["width"][t]], [pose["height"][t]]]) * rotation
        centre = place + amplitude * np.array([pose["x"][t], pose["y"][t]]) + shake[t]
        matrix = np.column_stack([linear, centre - linear @ np.full(2, len(picture) / 2 - 0.5)])
        layer = cv2.warpAffine(picture, matrix, (size, size))
        video[t] = canvas * (1 - layer[..., 3:]) + layer[..., :3]
    return np.clip(video + 0.5, 0, 255).astype(np.uint8)


def video_name(name: str, number: int) -> str:
    """The name of the video with this ``number``, counted from 0: every video is its own UCF group."""
    return f"{name}/v_{name}_g{number + 1:02d}_c01.avi"


def write_video(job: tuple[str, int], folder: Path, size: int, frames: int, seed: int) -> None:
    """Draw and write the video of ``job`` = (class, number). Same bytes for the same seed."""
    cv2.setNumThreads(1)
    name, number = job
    path = str(folder / video_name(name, number))
    rng = np.random.default_rng((seed, CLASSES.index(name), number))
    writer = cv2.VideoWriter(path, cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), FPS, (size, size))
    for frame in render(rng, name, size, frames):
        writer.write(frame)
    writer.release()
    written = cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT)  # the writer itself never complains
    if written != frames:
        raise UserError(f"{path} could not be written whole: is the disk full?")


def write_footage(out: Path, videos: int, size: int, frames: int, seed: int, jobs: int) -> None:
    """Write ``videos`` videos of every class and their lists to the new folder ``out``.

    A third is for testing.
    """
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    write = partial(write_video, folder=part, size=size, frames=frames, seed=seed)
    todo = [(name, number) for name in CLASSES for number in range(videos)]
    try:
        for name in CLASSES:
            (part / name).mkdir(parents=True)
        with ProcessPoolExecutor(
            jobs, get_context("spawn")
        ) as pool:  # OpenCV's threads do not survive a fork
            work = pool.map(write, todo, chunksize=4)
            list(tqdm(work, "synthetic videos", len(todo), unit="video", disable=None))
        for name, lines in split_lists(videos).items():
            (part / name).write_text("".join(f"{line}\n" for line in lines))
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def split_lists(videos: int) -> dict[str, list[str]]:
    """Lines of the UCF-style lists of ``videos`` per class, by name of the file."""
    lists: dict[str, list[str]] = {"classInd.txt": [], "trainlist01.txt": [], "testlist01.txt": []}
    for label, name in enumerate(CLASSES, 1):
        lists["classInd.txt"].append(f"{label} {name}")
        names = [video_name(name, number) for number in range(videos)]
        first_test = videos - max(1, videos // 3)
        lists["trainlist01.txt"] += [f"{video} {label}" for video in names[:first_test]]
        lists["testlist01.txt"] += names[first_test:]
    return lists


OPTIONS = {  # default, least value, meaning
    "videos": (96, 2, "videos per class; there are eight classes"),
    "size": (64, 16, "width and height in pixels"),
    "frames": (32, 2, "length of a video"),
    "seed": (0, 0, "of everything that is drawn"),
    "jobs": (available_cores(), 1, "processes"),
}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0], "--out OUT")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    for name, (default, _, meaning) in OPTIONS.items():
        short = ["-j"] if name == "jobs" else []
        parser.add_argument(*short, f"--{name}", type=int, default=default, help=meaning)
    args = vars(parser.parse_args(argv))
    for name, (_, least, _) in OPTIONS.items():
        if args[name] < least:
            raise UserError(f"--{name} {args[name]} should be at least {least}")
    if args["out"].exists():
        raise UserError(f"--out {args['out']} exists: remove it or choose another folder")
    try:
        write_footage(**args)
    except OSError as error:
        raise UserError(f"cannot write --out {args['out']}: {error}") from error

"""Tiny databases in the released layout, written independently of dataset/store.py."""

from pathlib import Path

import cv2
import lmdb
import msgpack
import numpy as np

from dataset.augmentation import View
from dataset.registry import Videos, open_videos


def picture(height=61, width=83, seed=0):
    """A photograph-like picture, uint8 [H, W, 3]: smooth colours, edges and some noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    smooth = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(smooth, (width // 2, height // 2), min(height, width) // 4, (250, 20, 90), -1)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """JPEG of an RGB image [H, W, 3]."""
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write_database(path: Path, videos: dict[str, list[bytes]], without: tuple[str, ...] = ()) -> None:
    """Write ``videos`` (name -> frames) as one LMDB file; ``without`` leaves out keys such as "__order__"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [b"%09d" % i for i in range(len(videos))]
    entries = {
        "__order__": list(videos),
        "__keys__": keys,
        "__len__": len(videos),
        "__vlen__": [len(frames) for frames in videos.values()],
    }
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 30, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        for key, frames in zip(keys, videos.values(), strict=True):
            txn.put(key, msgpack.packb(frames))
        for name, value in entries.items():
            if name not in without:
                txn.put(name.encode(), msgpack.packb(value))


def moving_square(
    rng: np.random.Generator, label: int, frames: int, size: int
) -> tuple[list[bytes], list[bytes]]:
    """RGB frames of a square moving right (label 0), down (1) or standing (2), and their flow as images."""
    background = rng.integers(0, 256, (size, size, 3), dtype=np.uint8) // 2
    colour = rng.integers(100, 256, 3, dtype=np.uint8)
    start = rng.integers(0, size // 2, 2)
    step = np.array([(0, 2), (2, 0), (0, 0)][label % 3])
    rgb, flow = [], []
    for t in range(frames):
        y, x = (start + step * t) % (size - 8)
        image = background.copy()
        image[y : y + 8, x : x + 8] = colour
        rgb.append(jpeg(image))
        motion = np.full((size, size, 3), 128, np.uint8)
        motion[y : y + 8, x : x + 8, 1:] = 128 + 6 * step
        flow.append(jpeg(motion))
    return rgb, flow[:-1]


def make_dataset(
    folder: Path, per_class: int = 8, classes: int = 3, frames: int = 20, size: int = 40, seed: int = 0
) -> Path:
    """FOLDER/{rgb,flow}.lmdb with ``classes`` x ``per_class`` videos and UCF-style lists (3 of 4 train)."""
    rng = np.random.default_rng(seed)
    rgb, flow, lists = {}, {}, {"train": [], "test": []}
    for i in range(per_class):
        for label in range(classes):
            name = f"Class{label}/v_Class{label}_g{i + 1:02d}_c01"
            rgb[name], flow[name] = moving_square(rng, label, frames, size)
            lists["test" if i % 4 == 3 else "train"].append(f"{name}.avi")
    write_database(folder / "rgb.lmdb", rgb)
    write_database(folder / "flow.lmdb", flow)
    for part, names in lists.items():
        (folder / f"{part}list01.txt").write_text("\n".join(names) + "\n")
    return folder


def open_tiny(root: Path, name: str = "tiny-2clip", part: str = "train") -> Videos:
    """The videos of the dataset "tiny" in ``root``, for clips of 4 frames at stride 2."""
    return open_videos(name, part, seq_len=4, ds=2, data_root=root)


def both_light(rng: np.random.Generator) -> tuple[View, View]:
    """Two clips, each augmented lightly."""
    return View(0, "light"), View(1, "light")

"""Tiny raw footage: video files and folders of frames whose pictures and motion are known."""

from pathlib import Path

import cv2
import numpy as np


def picture(seed: int, shift: int = 0, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Smooth random BGR image [48, 64, 3] moved right by ``shift`` pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] + 40, size[0] + 80, 3), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)
    return np.ascontiguousarray(smooth[20 : 20 + size[1], 60 - shift : 60 - shift + size[0]])


def write_video(path: Path, frames: list[np.ndarray], fps: float = 30, code: str = "MJPG") -> Path:
    """A video file of BGR frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def rgb_image(jpeg: bytes) -> np.ndarray:
    """RGB image [H, W, 3] of a JPEG."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def extract_frames(folder: Path, count: int = 4, flow: str = "") -> dict[str, list[bytes]]:
    """A folder of extracted frames, and flow as "pairs" or "3-channel" files; their bytes.

    The grey level of flow number t, counted from 0, is 100 + t for x and 160 - t for y.
    """
    folder.mkdir(parents=True)
    files: dict[str, list[bytes]] = {"image": [], "flow": [], "flow_x": [], "flow_y": []}
    for t in range(count):
        kinds = {"image": picture(0, 2 * t)}
        if t < count - 1 and flow:
            x, y = np.full((48, 64), 100 + t, np.uint8), np.full((48, 64), 160 - t, np.uint8)
            whole = {"flow": np.dstack([x, y, x * 0 + 128])}
            kinds |= {"flow_x": x, "flow_y": y} if flow == "pairs" else whole
        for kind, image in kinds.items():
            path = folder / f"{kind}_{t + 1:05d}.jpg"
            cv2.imwrite(str(path), image)
            files[kind].append(path.read_bytes())
    return files

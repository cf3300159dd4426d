"""Preparing databases: dataset.prepare against the bare work that it needs, and its TV-L1 against OpenCV's.

    PYTHONPATH=.venv/contrib python -m benchmarks.prepare --videos DIR [--frames 60000] [--pairs 20]

RGB: dataset.prepare by one process and by all cores beside decoding, resizing and JPEG alone. Flow: each
method on the same pairs of neighbouring frames, with one thread; OpenCV's TV-L1 is in
opencv-contrib-python-headless, which scripts/test.sh puts into .venv/contrib.
"""

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import compare, setting
from dataset.decode import decode_video
from dataset.footage import Video, find_videos
from dataset.jpeg import encode
from dataset.preparation.flow import compute_flow
from dataset.preparation.frames import Options, resize
from utils.cores import available_cores
from utils.errors import one_line_errors
from utils.memory import keep_freed_memory
from utils.options import Parser, positive_int

SHORT_SIDE = 256


def compare_rgb(videos: list[Video], frames: int, rounds: int, folder: Path) -> None:
    """The videos again and again, up to about that many frames, linked in a new ``folder``."""
    once = sum(1 for video in videos for _ in decode_video(video.path))
    times = -(-frames // once)
    links = folder / "links/class"
    links.mkdir(parents=True)
    for i, video in itertools.product(range(times), videos):
        (links / f"{i}-{Path(video.path).name}").symlink_to(Path(video.path).absolute())
    linked = find_videos(links).videos
    work = {"bare work, 1 process": lambda: [encode(frame, Options().quality) for frame in resized(linked)]}
    for jobs in (1, available_cores()):
        work[f"dataset.prepare -j {jobs}"] = partial(prepare, links, folder, jobs)
    compare("RGB, a frame", work, rounds, times * once)


def resized(videos: list[Video]) -> Iterator[np.ndarray]:
    for video in videos:
        yield from (resize(frame, SHORT_SIDE) for frame in decode_video(video.path))


def prepare(videos: Path, folder: Path, jobs: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = f"-m dataset.prepare bench --videos {videos} --out {out}/bench --streams rgb -j {jobs}"
        command += f" --short_side {SHORT_SIDE}"
        subprocess.run([sys.executable, *command.split()], check=True, stderr=subprocess.DEVNULL)


def compare_flow(videos: list[Video], count: int, rounds: int) -> None:
    """``count`` pairs of neighbouring frames, evenly from the videos."""
    pairs = []
    for video in videos:
        grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in resized([video])]
        pairs += itertools.pairwise(grey)
    pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).astype(int)]
    methods = {"TV-L1": partial(compute_flow, method="tvl1"), "DIS": partial(compute_flow, method="dis")}
    if hasattr(cv2, "optflow"):
        theirs = cv2.optflow.DualTVL1OpticalFlow_create()
        methods = {"OpenCV's TV-L1": lambda before, after: theirs.calc(before, after, None), **methods}
    work = {name: lambda method=method: [method(*pair) for pair in pairs] for name, method in methods.items()}
    runs = compare("flow of a pair", work, rounds, count)
    flows = [own[0].result[0] for own in runs.values()]
    error = np.linalg.norm(flows[0] - flows[1], axis=-1).mean()
    print(f"first pair: {' and '.join(list(runs)[:2])} differ by {error:.4f} pixels on average")


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser("Speed of dataset.prepare and of its flow methods.")
    parser.add_argument("--videos", type=Path, required=True, help="folder of class/video files")
    parser.add_argument("--frames", type=int, default=60000, help="of RGB, by repeating the videos; or 0")
    parser.add_argument("--pairs", type=positive_int, default=20, help="pairs of frames for flow")
    parser.add_argument("--rounds", type=positive_int, default=3, help="measurements of each")
    args = parser.parse_args(argv)
    print(setting())
    videos = find_videos(args.videos).videos
    cv2.setNumThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if args.frames:
            compare_rgb(videos, args.frames, args.rounds, Path(folder))
    compare_flow(videos, args.pairs, args.rounds)


if __name__ == "__main__":
    main()

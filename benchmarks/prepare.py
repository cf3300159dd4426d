"""Preparing databases: dataset.prepare against the bare work that it needs, and its TV-L1 against OpenCV's.

    PYTHONPATH=.venv/contrib python -m benchmarks.prepare --videos DIR [--frames 60000] [--pairs 20] [-j N]

RGB: dataset.prepare by one process and by N beside decoding, resizing and JPEG alone. Flow: each method on
the same pairs of neighbouring frames, with one thread; OpenCV's TV-L1 is in opencv-contrib-python-headless,
which scripts/test.sh puts into .venv/contrib. Everything in turns.
"""

import itertools
import logging
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import in_turns, print_setting, spread
from dataset.decode import decode_video
from dataset.footage import Video, find_videos
from dataset.jpeg import encode
from dataset.preparation.flow import compute_flow, warm_up
from dataset.preparation.frames import Options, resize
from utils.cores import available_cores
from utils.errors import one_line_errors
from utils.memory import keep_freed_memory
from utils.options import Parser, positive_int

MILLION_FRAMES = {
    "UCF101": 2.48,
    "HMDB51": 0.64,
    "Kinetics-400": 75,
}  # the last: 260,000 clips of 10 s, 29 frames/s


def repeat(videos: list[Video], folder: Path, frames: int) -> int:
    """Link the videos into ``folder`` again and again, up to about that many frames; the exact number."""
    once = sum(1 for video in videos for _ in decode_video(video.path))
    for i, video in itertools.product(range(-(-frames // once)), videos):
        link = folder / "class" / f"{i}-{Path(video.path).name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(video.path).absolute())
    return once * -(-frames // once)


def bare_work(videos: list[Video], short_side: int) -> None:
    for video in videos:
        for frame in decode_video(video.path):
            encode(resize(frame, short_side), Options().quality)


def prepare(source: Path, jobs: int, short_side: int) -> None:
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        command = f"-m dataset.prepare bench --videos {source} --out {out}/o --streams rgb -j {jobs}"
        command += f" --short_side {short_side}"
        subprocess.run([sys.executable, *command.split()], check=True, stderr=subprocess.DEVNULL)


def compare_rgb(videos: list[Video], args, work: Path) -> None:
    frames = repeat(videos, work / "links", args.frames)
    linked = find_videos(work / "links").videos
    runs = {"bare work": partial(bare_work, linked, args.short_side)}
    for jobs in (1, args.jobs):
        runs[f"dataset.prepare -j {jobs}"] = partial(prepare, work / "links", jobs, args.short_side)
    for name, rounds in in_turns(runs, args.rounds).items():
        rates = [frames / wall for _, wall, _ in rounds]
        used = min(cpu for *_, cpu in rounds) / frames
        print(f"{name:20} {spread(rates, 0)} frames/s, {used * 1e3:.3f} ms of processor time per frame")


def grey_pairs(videos: list[Video], short_side: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``count`` pairs of neighbouring frames, evenly from the videos."""
    pairs = []
    for video in videos:
        grey = [cv2.cvtColor(resize(f, short_side), cv2.COLOR_BGR2GRAY) for f in decode_video(video.path)]
        pairs += itertools.pairwise(grey)
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).astype(int)]


def set_up_process() -> None:
    """As dataset.prepare sets up its processes."""
    cv2.setNumThreads(1)
    keep_freed_memory()


def compute_flows(method: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Flow of each pair by "tvl1", "dis" or "opencv", which is OpenCV's TV-L1."""
    if method == "opencv":
        return [cv2.optflow.DualTVL1OpticalFlow_create().calc(*pair, None) for pair in pairs]
    return [compute_flow(*pair, method) for pair in pairs]


def compare_flow(pairs: list[tuple[np.ndarray, np.ndarray]], args) -> None:
    methods = ["tvl1", "dis", *(["opencv"] if hasattr(cv2, "optflow") else [])]
    runs = in_turns({method: partial(compute_flows, method, pairs) for method in methods}, args.rounds)
    for method, rounds in runs.items():
        ms = [cpu / len(pairs) * 1e3 for *_, cpu in rounds]
        hours = {name: millions * statistics.median(ms) / 3.6 for name, millions in MILLION_FRAMES.items()}
        print(f"{method:6} {spread(ms, 1)} ms of processor time per frame; hours on one core:", end=" ")
        print(*(f"{name} {value:.1f}" for name, value in hours.items()), sep=", ")
    if "opencv" in runs:
        ratios = [b[2] / a[2] for a, b in zip(runs["tvl1"], runs["opencv"], strict=True)]
        error = np.linalg.norm(np.subtract(runs["tvl1"][0][0], runs["opencv"][0][0]), axis=-1)
        print(
            f"tvl1 is {spread(ratios)} times as fast as OpenCV's; mean end point error {error.mean():.4f} px"
        )
    with multiprocessing.get_context("spawn").Pool(args.jobs, set_up_process) as pool:
        one = [(pairs, 2)]
        pool.starmap(time_flow, one * args.jobs, 1)  # started and warm
        work = {"one": partial(pool.starmap, time_flow, one, 1)}
        work["many"] = partial(pool.starmap, time_flow, one * args.jobs, 1)
        runs = in_turns(work, args.rounds)
    gains = [
        sum(1 / s for s in many) * alone[0] for (alone, *_), (many, *_) in zip(*runs.values(), strict=True)
    ]
    print(f"tvl1 by {args.jobs} processes: {spread(gains)} times the frames of one")


def time_flow(pairs: list[tuple[np.ndarray, np.ndarray]], times: int) -> float:
    """Seconds on the clock of TV-L1 in a process of several."""
    start = time.perf_counter()
    for _ in range(times):
        compute_flows("tvl1", pairs)
    return time.perf_counter() - start


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser("Speed of dataset.prepare and of its flow methods.")
    parser.add_argument("--videos", type=Path, required=True, help="folder of class/video files")
    parser.add_argument("--short_side", type=positive_int, default=256, help="of the prepared frames")
    parser.add_argument(
        "--frames", type=int, default=60000, help="frames of RGB, by repeating the videos; or 0"
    )
    parser.add_argument("--pairs", type=positive_int, default=20, help="pairs of frames for flow")
    parser.add_argument("--rounds", type=positive_int, default=3, help="measurements of each")
    parser.add_argument("-j", "--jobs", type=positive_int, default=available_cores(), help="processes (N)")
    args = parser.parse_args(argv)
    print_setting(argv)
    logging.disable()
    set_up_process()
    warm_up("tvl1")
    videos = find_videos(args.videos).videos
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # the speed of a disk is left out of account
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if args.frames:
            compare_rgb(videos, args, Path(folder))
    pairs = grey_pairs(videos, args.short_side, args.pairs)
    print(f"{len(pairs)} pairs of frames, {pairs[0][0].shape[1]}x{pairs[0][0].shape[0]}")
    compare_flow(pairs, args)


if __name__ == "__main__":
    main()

"""Preparing databases: frames per second, against the bare work that it needs.

    python -m benchmarks.prepare [--videos DIR] [-j N]

RGB: dataset.prepare by N processes compared with decoding, resizing and JPEG alone, the frames thrown away, in one
process and in N at once. Processor time is shown as well: it says the same where other work slows the machine down.
Flow: frames per second of one process and the share of time inside the flow method.
"""

import itertools
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from benchmarks.common import in_turns, measured, print_setting
from dataset.jpeg import encode
from dataset.preparation.decode import decode_video
from dataset.preparation.find import Video, find_videos
from dataset.preparation.flow import METHODS
from dataset.preparation.frames import Options, make_frames, resize
from dataset.preparation.synthetic import write_footage
from utils.errors import one_line_errors
from utils.options import Parser, positive_int

ROOT = Path(__file__).resolve().parents[1]
UCF101_FRAMES = 2_480_000


def repeat(videos: list[Video], folder: Path, frames: int) -> int:
    """Link the videos into ``folder`` again and again, up to about that many frames; returns the exact number."""
    once = sum(1 for video in videos for _ in decode_video(video.path))
    times = math.ceil(frames / once)
    for i in range(times):
        for video in videos:
            link = folder / video.name.split("/")[0] / f"{i}-{Path(video.path).name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(video.path))
    return once * times


def bare_work(videos: list[Video], short_side: int) -> float:
    """Decode, resize and compress; seconds of processor time."""
    cv2.setNumThreads(1)
    start = time.process_time()
    for video in videos:
        for frame in decode_video(video.path):
            encode(resize(frame, short_side), Options().quality)
    return time.process_time() - start


def prepare(source: Path, jobs: int, short_side: int) -> float:
    """The whole command; seconds of processor time."""
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        command = [
            sys.executable,
            "-m",
            "dataset.prepare",
            "bench",
            "--videos",
            str(source),
            "--out",
            f"{out}/o",
            "--streams",
            "rgb",
            "--short_side",
            str(short_side),
            "-j",
            str(jobs),
        ]
        return measured(lambda: subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL))[2]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser("Speed of dataset.prepare against the bare work.")
    parser.add_argument(
        "--videos", type=Path, help="folder of class/video files; drawn ones (240x240) if not given"
    )
    parser.add_argument("--short_side", type=positive_int, default=256, help="of the prepared frames")
    parser.add_argument(
        "--frames", type=positive_int, default=60000, help="frames of RGB, by repeating the videos"
    )
    parser.add_argument("--flow_frames", type=positive_int, default=40, help="frames of flow per method")
    parser.add_argument(
        "--rounds", type=positive_int, default=2, help="measurements; the best of each counts"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default="/dev/shm" if Path("/dev/shm").is_dir() else None,
        metavar="DIR",
        help="folder of the outputs; a RAM disk leaves the speed of the disk out of account",
    )
    parser.add_argument(
        "-j", "--jobs", type=positive_int, default=len(os.sched_getaffinity(0)), help="processes (N)"
    )
    args = parser.parse_args(argv)
    print_setting(argv)
    logging.disable()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        if not args.videos:
            write_footage(work / "made", 1, 240, 120, 0, args.jobs)
        videos = find_videos(args.videos or work / "made").videos
        frames = repeat(videos, work / "links", args.frames)
        linked = find_videos(work / "links").videos
        shape = next(decode_video(videos[0].path)).shape
        print(f"{frames} frames, the first {shape[1]}x{shape[0]}, short side {args.short_side}")
        shares = [linked[i :: args.jobs] for i in range(args.jobs)]
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            pool.starmap(bare_work, [(videos[:1], args.short_side)] * args.jobs)  # start and warm up
            runs = in_turns(
                {
                    "bare work, 1 process": lambda: pool.apply(bare_work, (linked, args.short_side)),
                    f"bare work, {args.jobs} at once": lambda: sum(
                        pool.starmap(bare_work, [(share, args.short_side) for share in shares], chunksize=1)
                    ),
                    "dataset.prepare -j 1": lambda: prepare(work / "links", 1, args.short_side),
                    f"dataset.prepare -j {args.jobs}": lambda: prepare(
                        work / "links", args.jobs, args.short_side
                    ),
                },
                args.rounds,
            )
        rates = {name: frames / min(wall for _, wall, _ in rounds) for name, rounds in runs.items()}
        cpus = {name: min(cpu for cpu, *_ in rounds) / frames * 1e3 for name, rounds in runs.items()}
        for name, rate in rates.items():
            print(
                f"{name:24} {rate:8.1f} frames/s, {rate / rates['bare work, 1 process']:5.2f} x one bare process; "
                f"{cpus[name]:.3f} ms of processor time per frame, {cpus[name] / cpus['bare work, 1 process']:.2f} x"
            )
        rate = rates["dataset.prepare -j 1"]
        print(f"UCF101 RGB ({UCF101_FRAMES} frames): {UCF101_FRAMES / rate / 3600:.1f} hours on one core")

        for method in METHODS:
            clock, options = [0.0], Options(flow=method, short_side=args.short_side)
            pairs = itertools.islice(
                (s for s, _ in make_frames(videos[0], options, clock) if s == "flow"), args.flow_frames
            )
            start = time.perf_counter()
            count = sum(1 for _ in pairs)
            total = time.perf_counter() - start
            hours = UCF101_FRAMES / count * total / 3600
            print(
                f"RGB and flow, {method:5} {count / total:12.2f} frames/s, {100 * clock[0] / total:.1f} % of it in "
                f"the flow method; UCF101: {hours:.0f} hours on one core"
            )


if __name__ == "__main__":
    main()

"""Preparing databases: frames per second, against the bare work that it needs.

    python -m benchmarks.prepare [--videos DIR] [-j N]

RGB: dataset.prepare by N processes compared with decoding, resizing and JPEG alone, the frames thrown away, in one
process and in N at once. Processor time is shown as well: it says the same where other work slows the machine down.
Flow: frames per second of one process and the share of time inside the flow method.
"""
import itertools
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from dataset.flow import METHODS
from dataset.footage import Video, find_videos
from dataset.frames import Options, make_frames, read_video, resize
from utils.options import Parser, positive_int

ROOT = Path(__file__).resolve().parents[1]
UCF101_FRAMES = 2_480_000


def write_footage(folder: Path) -> None:
    """Eight videos of 120 textured frames, 320x240 as UCF101's."""
    rng = np.random.default_rng(0)
    for i in range(8):
        texture = cv2.GaussianBlur(rng.integers(0, 256, (400, 900, 3), dtype=np.uint8), (0, 0), 3) * 3
        path = folder / "made" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 240))
        for t in range(120):
            writer.write(np.ascontiguousarray(texture[20 + t % 9:260 + t % 9, 4 * t:4 * t + 320]))
        writer.release()


def repeat(videos: list[Video], folder: Path, frames: int) -> int:
    """Link the videos into ``folder`` again and again, up to about that many frames; returns the exact number."""
    total = 0
    for i in itertools.count():
        for video in videos:
            link = folder / video.name.split("/")[0] / f"{i}-{Path(video.path).name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(video.path))
            total += sum(1 for _ in read_video(video)) if i == 0 else 0
        if i == 0:
            once = total
        if once * (i + 1) >= frames:
            return once * (i + 1)


def bare_work(videos: list[Video], short_side: int) -> float:
    """Decode, resize and compress; seconds of processor time."""
    cv2.setNumThreads(1)
    start, quality = time.process_time(), [cv2.IMWRITE_JPEG_QUALITY, Options().quality]
    for video in videos:
        for frame in read_video(video):
            cv2.imencode(".jpg", resize(frame, short_side), quality)
    return time.process_time() - start


def prepare(source: Path, jobs: int, short_side: int) -> float:
    """The whole command; seconds of processor time."""
    before = os.times()
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        subprocess.run([sys.executable, "-m", "dataset.prepare", "bench", "--videos", str(source), "--out", f"{out}/o",
                        "--streams", "rgb", "--short_side", str(short_side), "-j", str(jobs)], cwd=ROOT, check=True,
                       stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = Parser("Speed of dataset.prepare against the bare work.")
    parser.add_argument("--videos", type=Path, help="folder of class/video files; made up (320x240) if not given")
    parser.add_argument("--short_side", type=positive_int, default=256, help="of the prepared frames")
    parser.add_argument("--frames", type=positive_int, default=60000, help="frames of RGB, by repeating the videos")
    parser.add_argument("--flow_frames", type=positive_int, default=40, help="frames of flow per method")
    parser.add_argument("--rounds", type=positive_int, default=2, help="measurements; the best of each counts")
    parser.add_argument("--work", type=Path, default="/dev/shm" if Path("/dev/shm").is_dir() else None, metavar="DIR",
                        help="folder of the outputs; a RAM disk leaves the speed of the disk out of account")
    parser.add_argument("-j", "--jobs", type=positive_int, default=len(os.sched_getaffinity(0)), help="processes (N)")
    args = parser.parse_args()
    logging.disable()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        if not args.videos:
            write_footage(work / "made")
        videos, _ = find_videos(args.videos or work / "made")
        frames = repeat(videos, work / "links", args.frames)
        linked, _ = find_videos(work / "links")
        shape = next(read_video(videos[0])).shape
        print(f"{frames} frames, the first {shape[1]}x{shape[0]}, short side {args.short_side}; "
              f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; OpenCV {cv2.__version__}")
        shares = [linked[i::args.jobs] for i in range(args.jobs)]
        measured: dict[str, list[tuple[float, float]]] = {}  # (seconds, seconds of processor time)
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            pool.starmap(bare_work, [(videos[:1], args.short_side)] * args.jobs)  # start and warm up
            for _ in range(args.rounds):
                for name, command in {
                    "bare work, 1 process": lambda: pool.apply(bare_work, (linked, args.short_side)),
                    f"bare work, {args.jobs} at once": lambda: sum(pool.starmap(
                        bare_work, [(share, args.short_side) for share in shares], chunksize=1)),
                    "dataset.prepare -j 1": lambda: prepare(work / "links", 1, args.short_side),
                    f"dataset.prepare -j {args.jobs}": lambda: prepare(work / "links", args.jobs, args.short_side),
                }.items():
                    start = time.perf_counter()
                    cpu = command()
                    measured.setdefault(name, []).append((time.perf_counter() - start, cpu))
        rates = {name: frames / min(seconds for seconds, _ in rounds) for name, rounds in measured.items()}
        cpus = {name: min(cpu for _, cpu in rounds) / frames * 1e3 for name, rounds in measured.items()}
        for name, rate in rates.items():
            print(f"{name:24} {rate:8.1f} frames/s, {rate / rates['bare work, 1 process']:5.2f} x one bare process; "
                  f"{cpus[name]:.3f} ms of processor time per frame, {cpus[name] / cpus['bare work, 1 process']:.2f} x")
        rate = rates["dataset.prepare -j 1"]
        print(f"UCF101 RGB ({UCF101_FRAMES} frames): {UCF101_FRAMES / rate / 3600:.1f} hours on one core")

        for method in METHODS:
            clock, start = [0.0], time.perf_counter()
            options = Options(flow=method, short_side=args.short_side)
            pairs = itertools.islice((s for s, _ in make_frames(videos[0], options, clock) if s == "flow"),
                                     args.flow_frames)
            count = sum(1 for _ in pairs)
            total = time.perf_counter() - start
            hours = UCF101_FRAMES / count * total / 3600
            print(f"RGB and flow, {method:5} {count / total:12.2f} frames/s, {100 * clock[0] / total:.1f} % of it in "
                  f"the flow method; UCF101: {hours:.0f} hours on one core")


if __name__ == "__main__":
    main()

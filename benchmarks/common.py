"""What the benchmarks share: timing, comparing in turns, and tables that say what ran and where."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL
import torch

from dataset.jpeg import encode
from dataset.store import pack_frames, write_store
from utils.cores import available_cores

Row = dict[str, Any]


class Run(NamedTuple):
    """What some work gave, its seconds on the clock, and those of processors."""

    result: Any
    seconds: float
    processor_seconds: float


def setting() -> str:
    """Machine, versions and command."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"{platform.processor() or platform.machine()}, {available_cores()} of {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {', '.join(gpus) or 'no GPU'}, torch {torch.__version__}, OpenCV "
        f"{cv2.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}: "
        f"python -m {sys.modules['__main__'].__spec__.name} {' '.join(sys.argv[1:])}"
    )


def make_noise(folder: Path, videos: int, frames: int) -> None:
    """Databases of RGB and flow in ``folder``: moving smooth noise, 340x256, all to train on."""
    records = {}
    for video in range(videos):
        coarse = np.random.default_rng(video).integers(0, 256, (40, 50, 3), np.uint8)
        image = cv2.resize(coarse, (380, 296), interpolation=cv2.INTER_CUBIC)
        shown = [image[t % 40 : t % 40 + 256, t % 40 : t % 40 + 340] for t in range(frames)]
        records[f"A/{video}"] = pack_frames([encode(frame, 80) for frame in shown]), frames
    folder.mkdir(parents=True)
    for stream in ("rgb", "flow"):
        write_store(folder / f"{stream}.lmdb", list(records), records.get)
    (folder / "split.csv").write_text("".join(f"{name},train\n" for name in records))


def measured(work: Callable[[], Any]) -> Run:
    """Time ``work`` until the GPU has finished, too."""
    start, before = time.perf_counter(), processor_seconds()
    result = work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Run(result, time.perf_counter() - start, processor_seconds() - before)


def processor_seconds() -> float:
    """Of this process and its ended children."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_megabytes() -> float:
    """Of the GPU, if this process computes on one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def in_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Run]]:
    """Time each kind of ``work`` ``rounds`` times, one after the other."""
    runs: dict[str, list[Run]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            runs[name].append(measured(run))
    return runs


def compare(what: str, work: dict[str, Callable[[], Any]], rounds: int, count: int) -> dict[str, list[Run]]:
    """Print ``rows`` of each kind of ``work`` by ``rounds`` in turns, after one that does not count."""
    in_turns(work, 1)
    runs = in_turns(work, rounds)
    print_table(rows(what, runs, count))
    return runs


def rows(what: str, runs: dict[str, list[Run]], count: int) -> list[Row]:
    """What each kind takes for one of ``count`` things, beside the first kind: medians and ranges."""
    plain = next(iter(runs.values()))
    return [
        {
            what: name,
            "ms": spread(1e3 * run.seconds / count for run in own),
            "processor ms": spread(1e3 * run.processor_seconds / count for run in own),
            "per second": spread(count / run.seconds for run in own),
            "times as fast": spread(a.seconds / b.seconds for a, b in zip(plain, own, strict=True)),
        }
        for name, own in runs.items()
    ]


def print_table(rows: Iterable[Row]) -> None:
    print(*markdown(rows), sep="\n", flush=True)


def markdown(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of a table as its rows come; where they have other columns than before, another one begins."""
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            yield f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
        yield f"| {' | '.join(map(as_cell, row.values()))} |"


def as_cell(value: object) -> str:
    """Text in a table, numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def spread(values: Iterable[float]) -> str:
    """Median and range."""
    values = list(values)
    return f"{as_cell(statistics.median(values))} ({as_cell(min(values))}-{as_cell(max(values))})"

"""What the benchmarks share: the line that says what ran and where, time, and medians."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import PIL
import torch

from utils.cores import available_cores


def print_setting(argv: Sequence[str] | None) -> None:
    """Print ``setting``."""
    print(setting(argv), flush=True)


def setting(argv: Sequence[str] | None) -> str:
    """Processor, GPUs, versions and command; ``argv`` as ``main`` got it."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"{platform.processor() or platform.machine()}, {available_cores()} of {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}, {f'{len(gpus)} x {gpus[0]}' if gpus else 'no GPU'}, torch "
        f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}, OpenCV {cv2.__version__}, Pillow "
        f"{PIL.__version__}, Python {platform.python_version()}: python -m "
        f"{sys.modules['__main__'].__spec__.name} {' '.join(sys.argv[1:] if argv is None else argv)}"
    )


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds on the clock, and processor seconds of this process and its ended children."""

    def used() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    start, before = time.perf_counter(), used()
    result = work()
    return result, time.perf_counter() - start, used() - before


def in_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[Any, float, float]]]:
    """What ``measured`` says of each kind of ``work``, ``rounds`` times one after the other."""
    runs: dict[str, list] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            runs[name].append(measured(run))
    return runs


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

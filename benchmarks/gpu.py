"""Everything that only a GPU can tell, most important first, in a few minutes.

    python -m benchmarks.gpu [--minutes 9] [--device cpu]

Each of ``PARTS`` runs in a process of its own and has a share of the time that is left; its rows are appended
to STEM.md and STEM.jsonl as they come, so that a run which is cut short loses one part. Footage is drawn. At
the end stands which options the figures recommend. On a CPU parts are small, and what needs a GPU says so.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import gpu_parts
from benchmarks.common import setting
from benchmarks.gpu_parts import TINY, Row, Scale
from utils import launch
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.options import Parser, add_launch_options, non_negative_float

FORKS = multiprocessing.get_context("forkserver")  # parts begin with everything imported, and without CUDA
NOISE = 6.0  # about two standard errors of R@1, in percent, of 208 test videos
GAIN = 1.05  # a quicker option is recommended from here on
OPTIONS = (  # each with a variant without it and one with it
    ("TF32", "fp32", "tf32"),
    ("--precision bf16", "tf32", "bf16"),
    ("--precision fp16", "tf32", "fp16"),
    ("--channels_last in fp32", "tf32", "tf32 channels-last"),
    ("--channels_last in bf16", "bf16", "bf16 channels-last"),
    ("--compile", "bf16 channels-last", "bf16 channels-last compiled"),
)


class Part(NamedTuple):
    """What ``rows`` answers in ``share`` parts of the time."""

    rows: Callable[[Scale, World], Iterator[Row]]
    share: int
    question: str


PARTS = {
    part.rows.__name__: part
    for part in (
        Part(
            gpu_parts.conformance,
            8,
            "Are networks, losses and steps the original's (fp32 without TF32, 1e-3)?",
        ),
        Part(gpu_parts.losses, 10, "Are the losses of seeded steps those of a CPU (fp32 without TF32)?"),
        Part(
            gpu_parts.steps, 28, "How fast is a step, what memory does it take, how near is the matrix rate?"
        ),
        Part(gpu_parts.kernels, 5, "What does a step spend its time with, and does it wait for the GPU?"),
        Part(gpu_parts.learning, 20, "Does bf16 learn as fp32 does?"),
        Part(gpu_parts.data, 8, "Do the cores keep up with the GPU?"),
        Part(gpu_parts.memory, 3, "Is too large a batch told in one line, with the one that fits?"),
        Part(gpu_parts.resume, 5, "Does a resumed run go on exactly?"),
        Part(gpu_parts.evaluation, 3, "Does evaluation give a CPU's features?"),
        Part(gpu_parts.processes, 5, "What do several GPUs win, by NCCL?"),
        Part(gpu_parts.compiled, 12, "What does --compile win?"),
    )
}


def recommended(rows: dict[str, list[Row]]) -> Iterator[Row]:
    """Which options the figures recommend: the quicker ones, unless networks learn less by them."""
    rates = {
        (row["method"], row["step"]): row["clips/s"]
        for row in rows.get("steps", []) + rows.get("compiled", [])
        if row.get("batch") == Scale.global_batch
    }
    recall = {row["precision"]: row["R@1"] for row in rows.get("learning", []) if "R@1" in row}
    for option, without, within in OPTIONS:
        methods = [m for m, name in rates if name == without and (m, within) in rates]
        if not methods:
            yield {"option": option, "times as fast": "not measured", "recommended": "unknown"}
            continue
        gain = statistics.median(rates[m, within] / rates[m, without] for m in methods)
        advice = "yes" if gain >= GAIN else "no"
        if option == "--precision bf16" and advice == "yes":
            if not {"fp32", "bf16"} <= recall.keys():
                advice = "unknown: whether it learns as well was not measured"
            elif recall["bf16"] < recall["fp32"] - NOISE:
                advice = f"no: R@1 {recall['bf16']:.1f} against {recall['fp32']:.1f}"
        yield {"option": option, "times as fast": gain, "recommended": advice}


def run_part(part: Part, scale: Scale, device: str, folder: Path, seconds: float) -> Iterator[Row]:
    """Rows of a part as they come from its process, which is ended after ``seconds``."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=answer, args=(part.rows, scale, device, folder, theirs))
    process.start()
    theirs.close()
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(end - time.monotonic(), 0)):
            row = ours.recv()
            if row is None:
                process.join(10)
                return
            yield row
        yield {"result": f"cut after {seconds:.0f} s"}
    except EOFError:
        yield {"result": "its process ended without a word"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its loader processes
        process.kill()
        process.join()


def answer(
    rows: Callable[[Scale, World], Iterator[Row]], scale: Scale, device: str, folder: Path, pipe: Connection
) -> None:
    """In a part's process: send its rows, or a line about its error, then None."""
    sys.modules["__main__"] = types.ModuleType("__main__")  # what a part starts need not import all this
    os.setpgid(0, 0)
    threading.Thread(target=end_with, args=(pipe,), daemon=True).start()
    os.chdir(folder)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    options = Parser("")
    add_launch_options(options)
    try:
        world = launch.start(options.parse_args([]))
        logging.getLogger("coclr").setLevel(logging.WARNING)
        torch.manual_seed(0)
        for row in rows(scale, world):
            pipe.send(row)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        first_line, *_ = f"{type(error).__name__}: {error}".splitlines()
        pipe.send({"result": f"failed: {first_line}"})
    pipe.send(None)


def end_with(pipe: Connection) -> None:
    """End this process, and what it started, when nobody reads from the pipe any more."""
    poll = select.poll()
    poll.register(pipe, 0)  # an error is told without being asked for
    poll.poll()
    os.killpg(0, signal.SIGKILL)


class Results:
    """STEM.md and STEM.jsonl, each row in them as soon as it is known, and all rows by part."""

    def __init__(self, stem: str):
        self.stem = stem
        self.rows: dict[str, list[Row]] = {}
        self._columns: list[str] = []
        for ending in ("md", "jsonl"):
            Path(f"{stem}.{ending}").write_text("")

    def write(self, text: str) -> None:
        """A line of Markdown, which ends a table."""
        self._columns = []
        self._append(text)

    def _append(self, text: str) -> None:
        print(text, flush=True)
        with open(f"{self.stem}.md", "a") as file:
            file.write(text + "\n")

    def add(self, part: str, row: Row) -> None:
        """A row, of a new table where its columns are others than those before."""
        self.rows.setdefault(part, []).append(row)
        with open(f"{self.stem}.jsonl", "a") as file:
            file.write(json.dumps({"part": part, **row}) + "\n")
        if list(row) != self._columns:
            self._columns = list(row)
            self._append(f"\n| {' | '.join(row)} |\n{'|---' * len(row)}|")
        self._append(f"| {' | '.join(map(as_cell, row.values()))} |")


def as_cell(value: object) -> str:
    """Text in a table: numbers with three digits."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=non_negative_float, default=9.0, help="time of all parts together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: every part small")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=tuple(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--out", default="results.gpu", metavar="STEM", help="writes STEM.md and STEM.jsonl")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible; --device cpu runs every part small")
    end = time.monotonic() + 60 * args.minutes
    FORKS.set_forkserver_preload(["benchmarks.gpu_parts"])
    results = Results(args.out)
    with FORKS.Pool(1) as pool:  # no GPU is held here
        results.write(pool.apply(setting, (argv,)))
    names = [name for name in PARTS if name in args.parts]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            part = PARTS[name]
            share = part.share / sum(PARTS[later].share for later in names[number:])
            results.write(f"\n**{name}** {part.question}")
            scale = Scale() if args.device == "cuda" else TINY
            for row in run_part(part, scale, args.device, Path(folder), share * (end - time.monotonic())):
                results.add(name, row)
    results.write("\n**defaults** Which options do the figures recommend?")
    for row in recommended(results.rows):
        results.add("defaults", row)


if __name__ == "__main__":
    main()

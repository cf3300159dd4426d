"""Everything that only a GPU can tell, most important first, in a few minutes.

    python -m benchmarks.gpu [--minutes 9] [--device cpu]

Each part of ``benchmarks.gpu_parts`` runs in a process of its own and has a share of the time that is left;
its rows are in results.gpu.md and results.gpu.jsonl as they come, so that a run which is cut short loses one
part. At the end stands which options the figures recommend. On a CPU parts are small, and what needs a GPU
says so.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import torch

from benchmarks.common import Row, markdown, setting
from benchmarks.gpu_parts import FULL, PARTS, SHARES, TINY, make_data
from utils.errors import UserError, one_line_errors
from utils.options import Parser, non_negative_float

ROOT = Path(__file__).parent.parent
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


def recommended(rows: dict[str, list[Row]]) -> Iterator[Row]:
    """Which options the figures recommend: the quicker ones, unless networks learn less by them."""
    rates = {
        (row["method"], row["step"]): row["clips/s"]
        for row in rows.get("steps", []) + rows.get("compiled", [])
        if row.get("batch") == FULL.batch
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


def run_part(name: str, device: str, folder: Path, seconds: float) -> Iterator[Row]:
    """Rows of a part as they come from its process, which is ended after ``seconds`` with all it started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name]
    process = Popen(command, cwd=folder, env=environment, stdout=PIPE, text=True, start_new_session=True)
    end = time.monotonic() + seconds
    limit = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        yield from map(json.loads, process.stdout)
        if time.monotonic() >= end:
            yield {"result": f"cut after {seconds:.0f} s"}
        elif process.wait():
            yield {"result": f"its process ended with status {process.returncode}"}
    finally:
        limit.cancel()
        process.kill()
        process.wait()


def write(text: str) -> None:
    print(text, flush=True)
    with open("results.gpu.md", "a") as file:
        file.write(text + "\n")


def write_part(name: str, question: str, rows: Iterable[Row]) -> list[Row]:
    """The table and the records of a part, row by row; all its rows."""
    known = []

    def recorded() -> Iterator[Row]:
        for row in rows:
            with open("results.gpu.jsonl", "a") as file:
                file.write(json.dumps({"part": name, **row}) + "\n")
            known.append(row)
            yield row

    write(f"\n**{name}** {question}")
    for line in markdown(recorded()):
        write(line)
    return known


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=non_negative_float, default=9.0, help="time of all parts together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: every part small")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=tuple(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible; --device cpu runs every part small")
    end = time.monotonic() + 60 * args.minutes
    for ending in ("md", "jsonl"):
        Path(f"results.gpu.{ending}").write_text("")
    write(setting())
    shares = {part: share for part, share in SHARES.items() if part.__name__ in args.parts}
    left = sum(shares.values())
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), FULL if args.device == "cuda" else TINY)
        for part, share in shares.items():
            name = part.__name__
            seconds = share / left * (end - time.monotonic())
            left -= share
            found[name] = write_part(name, part.__doc__, run_part(name, args.device, folder, seconds))
    write_part("defaults", "Which options do the figures recommend?", recommended(found))


if __name__ == "__main__":
    main()

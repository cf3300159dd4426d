"""Table of results.jsonl beside the paper's numbers, as Markdown and CSV."""
import csv
import io
import logging
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.records import read_records, write_file
from utils.errors import one_line_errors
from utils.log import start_logging
from utils.options import Parser

log = logging.getLogger("coclr")

# (what, method, pretrained on, stream, tested on) -> numbers in percent: Han et al., NeurIPS 2020, tables 1 and 2;
# InfoNCE's, and CoCLR's flow and K400 R@1, belong to the released weights
PAPER: dict[tuple[str, str, str, str, str], dict[str, float]] = {
    ("linear", "InfoNCE", "ucf101", "rgb", "ucf101"): {"top1": 46.8},
    ("linear", "InfoNCE", "ucf101", "flow", "ucf101"): {"top1": 66.8},
    ("linear", "CoCLR", "ucf101", "rgb", "ucf101"): {"top1": 70.2},
    ("linear", "CoCLR", "ucf101", "rgb+flow", "ucf101"): {"top1": 72.1},
    ("linear", "CoCLR", "ucf101", "rgb", "hmdb51"): {"top1": 39.1},
    ("linear", "CoCLR", "ucf101", "rgb+flow", "hmdb51"): {"top1": 40.2},
    ("linear", "CoCLR", "k400", "rgb", "ucf101"): {"top1": 74.5},
    ("linear", "CoCLR", "k400", "rgb+flow", "ucf101"): {"top1": 77.8},
    ("linear", "CoCLR", "k400", "rgb", "hmdb51"): {"top1": 46.1},
    ("linear", "CoCLR", "k400", "rgb+flow", "hmdb51"): {"top1": 52.4},
    ("finetune", "CoCLR", "ucf101", "rgb", "ucf101"): {"top1": 81.4},
    ("finetune", "CoCLR", "ucf101", "rgb+flow", "ucf101"): {"top1": 87.3},
    ("finetune", "CoCLR", "ucf101", "rgb", "hmdb51"): {"top1": 52.1},
    ("finetune", "CoCLR", "ucf101", "rgb+flow", "hmdb51"): {"top1": 58.7},
    ("finetune", "CoCLR", "k400", "rgb", "ucf101"): {"top1": 87.9},
    ("finetune", "CoCLR", "k400", "flow", "ucf101"): {"top1": 85.27},
    ("finetune", "CoCLR", "k400", "rgb+flow", "ucf101"): {"top1": 90.6},
    ("finetune", "CoCLR", "k400", "rgb", "hmdb51"): {"top1": 54.6},
    ("finetune", "CoCLR", "k400", "rgb+flow", "hmdb51"): {"top1": 62.9},
    ("retrieval", "InfoNCE", "ucf101", "rgb", "ucf101"): {"R@1": 33.1},
    ("retrieval", "InfoNCE", "ucf101", "flow", "ucf101"): {"R@1": 45.2},
    ("retrieval", "CoCLR", "ucf101", "rgb", "ucf101"): {"R@1": 53.3, "R@5": 69.4, "R@10": 76.6, "R@20": 82.0},
    ("retrieval", "CoCLR", "ucf101", "flow", "ucf101"): {"R@1": 48.4},
    ("retrieval", "CoCLR", "ucf101", "rgb+flow", "ucf101"): {"R@1": 55.9, "R@5": 70.8, "R@10": 76.9, "R@20": 82.5},
    ("retrieval", "CoCLR", "ucf101", "rgb", "hmdb51"): {"R@1": 23.2, "R@5": 43.2, "R@10": 53.5, "R@20": 65.5},
    ("retrieval", "CoCLR", "ucf101", "rgb+flow", "hmdb51"): {"R@1": 26.1, "R@5": 45.8, "R@10": 57.9, "R@20": 69.7},
    ("retrieval", "CoCLR", "k400", "rgb", "ucf101"): {"R@1": 45.6},
    ("retrieval", "CoCLR", "k400", "flow", "ucf101"): {"R@1": 44.4},
}
SUBJECT = ("what", "method", "pretrained on", "stream", "tested on", "split", "checkpoint")
NUMBERS = {"Classification": ("top1", "top5", "best_epoch_top1"), "Retrieval": ("R@1", "R@5", "R@10", "R@20", "R@50")}


@dataclass(frozen=True)
class Cell:
    """One number: the mean of ``values`` in percent, and the paper's."""

    values: list[float]
    paper: float | None

    @property
    def ours(self) -> str:
        spread = f" ± {statistics.stdev(self.values):.1f} (n={len(self.values)})" if len(self.values) > 1 else ""
        return f"{statistics.fmean(self.values):.1f}{spread}"

    @property
    def difference(self) -> str:
        return "" if self.paper is None else f"{statistics.fmean(self.values) - self.paper:+.1f}"

    def __str__(self) -> str:
        return self.ours if self.paper is None else f"{self.ours} (paper {self.paper:.1f}, {self.difference})"


Table = dict[tuple[str, ...], dict[str, Cell]]


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="?", default="results.jsonl", help="records of evaluations")
    parser.add_argument("--out", default="results", metavar="STEM", help="writes STEM.md and STEM.csv")
    parser.add_argument("--mean", action="store_true",
                        help="mean and standard deviation over checkpoints and splits instead of a row for each")
    return parser


def newest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each evaluation: of equal what, crops, dataset, split, stream, checkpoint and settings."""
    found = {}
    for record in records:
        key = [record.get(name) for name in ("what", "crops", "dataset", "split", "stream", "checkpoint", "settings")]
        found[repr(key)] = record
    return list(found.values())


def table(records: list[dict[str, Any]], mean: bool) -> Table:
    """Numbers by subject (see ``SUBJECT``); with ``mean`` one subject for all checkpoints and splits."""
    found: Table = {}
    for record in newest(records):
        origin = record.get("origin") or {}
        key = (record["what"], *(str(value or "unknown") for value in (
            origin.get("method"), origin.get("pretrained_on"), record.get("stream"), record.get("dataset"))))
        what = f"{key[0]}, {record['crops']} crop" if record.get("crops") else key[0]
        which = ("all", "all") if mean else (str(record.get("split") or "unknown"), str(record.get("checkpoint")))
        cells = found.setdefault((what, *key[1:], *which), {})
        for number, value in record["numbers"].items():
            if isinstance(value, int | float):
                cells.setdefault(number, Cell([], PAPER.get(key, {}).get(number))).values.append(value)
    return found


def as_markdown(found: Table) -> str:
    """A table of classification and one of retrieval."""
    parts = []
    for title, numbers in NUMBERS.items():
        lines = [(*subject, *(str(cells.get(number, "-")) for number in numbers))
                 for subject, cells in found.items() if cells.keys() & set(numbers)]
        shown = [(*SUBJECT, *numbers), ("---",) * (len(SUBJECT) + len(numbers)), *lines]
        parts.append(f"**{title}** (%)\n\n" + "".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in shown if lines))
    return "\n".join(parts)


def as_csv(found: Table) -> str:
    """A line per number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*SUBJECT, "number", "ours", "paper", "difference"])
    for subject, cells in found.items():
        for number, cell in cells.items():
            writer.writerow([*subject, number, cell.ours, "" if cell.paper is None else cell.paper, cell.difference])
    return text.getvalue()


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    found = table(read_records(args.results), args.mean)
    markdown = as_markdown(found)
    sys.stdout.write(markdown)
    for ending, text in ((".md", markdown), (".csv", as_csv(found))):
        log.info("wrote %s", write_file(args.out + ending, text))


if __name__ == "__main__":
    main()

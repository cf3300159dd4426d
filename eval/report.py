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

from eval.pictures import stage_chart
from eval.records import read_records, write_file
from utils.errors import UserError, one_line_errors
from utils.log import start_logging
from utils.options import Parser

log = logging.getLogger("coclr")

NUMBERS = {
    "Classification": ("top1", "top5", "best_epoch_top1"),
    "Retrieval": ("R@1", "R@5", "R@10", "R@20", "R@50"),
}
# (method, pretrained on, stream) -> "what tested on" -> top-1, or R@1, 5, 10, 20, in percent: Han et al., NeurIPS 2020,
# tables 1 and 2; InfoNCE's, and CoCLR's flow and K400 R@1, belong to the released weights
PAPER: dict[tuple[str, str, str], dict[str, tuple[float, ...]]] = {
    ("InfoNCE", "ucf101", "rgb"): {"linear ucf101": (46.8,), "retrieval ucf101": (33.1,)},
    ("InfoNCE", "ucf101", "flow"): {"linear ucf101": (66.8,), "retrieval ucf101": (45.2,)},
    ("CoCLR", "ucf101", "rgb"): {
        "linear ucf101": (70.2,),
        "linear hmdb51": (39.1,),
        "finetune ucf101": (81.4,),
        "finetune hmdb51": (52.1,),
        "retrieval ucf101": (53.3, 69.4, 76.6, 82.0),
        "retrieval hmdb51": (23.2, 43.2, 53.5, 65.5),
    },
    ("CoCLR", "ucf101", "flow"): {"retrieval ucf101": (48.4,)},
    ("CoCLR", "ucf101", "rgb+flow"): {
        "linear ucf101": (72.1,),
        "linear hmdb51": (40.2,),
        "finetune ucf101": (87.3,),
        "finetune hmdb51": (58.7,),
        "retrieval ucf101": (55.9, 70.8, 76.9, 82.5),
        "retrieval hmdb51": (26.1, 45.8, 57.9, 69.7),
    },
    ("CoCLR", "k400", "rgb"): {
        "linear ucf101": (74.5,),
        "linear hmdb51": (46.1,),
        "finetune ucf101": (87.9,),
        "finetune hmdb51": (54.6,),
        "retrieval ucf101": (45.6,),
    },
    ("CoCLR", "k400", "flow"): {"finetune ucf101": (85.27,), "retrieval ucf101": (44.4,)},
    ("CoCLR", "k400", "rgb+flow"): {
        "linear ucf101": (77.8,),
        "linear hmdb51": (52.4,),
        "finetune ucf101": (90.6,),
        "finetune hmdb51": (62.9,),
    },
}
SUBJECT = ("what", "method", "pretrained on", "stream", "tested on", "split", "checkpoint")
ORDER = {
    "what": ("linear", "feature probe", "finetune", "retrieval"),
    "method": ("random", "InfoNCE", "CoCLR", "UberNCE"),
    "stream": ("rgb", "flow", "rgb+flow"),
}


@dataclass(frozen=True)
class Cell:
    """One number: the mean of ``values`` in percent, and the paper's."""

    values: list[float]
    paper: float | None

    @property
    def ours(self) -> str:
        spread = (
            f" ± {statistics.stdev(self.values):.1f} (n={len(self.values)})" if len(self.values) > 1 else ""
        )
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
    parser.add_argument(
        "--mean",
        action="store_true",
        help="mean and standard deviation over checkpoints and splits instead of a row for each",
    )
    parser.add_argument(
        "--chart", metavar="FILE.png", help="draw R@1 of each stage and stream, with its spread"
    )
    return parser


def newest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each evaluation: of equal what, crops, dataset, split, stream, checkpoint and settings."""
    key = ("what", "crops", "dataset", "split", "stream", "checkpoint", "settings")
    return list({repr([record.get(name) for name in key]): record for record in records}.values())


def subject_of(record: dict[str, Any], mean: bool) -> tuple[str, ...]:
    """What a record is about, see ``SUBJECT``; with ``mean`` the same for all checkpoints and splits."""
    origin = record.get("origin") or {}
    cycle = f", cycle {origin['cycle']}" if origin.get("cycle") else ""
    epochs = f", {origin['pretrain_epoch'] + 1} epochs" if origin.get("pretrain_epoch", -1) >= 0 else ""
    named = (origin.get("pretrained_on"), record.get("stream"), record.get("dataset"))
    return (
        record["what"] + (f", {record['crops']} crop" if record.get("crops") else ""),
        (origin.get("method") or "unknown") + cycle + epochs,
        *(str(value or "unknown") for value in named),
        *(("all", "all") if mean else (str(record.get("split") or "unknown"), str(record.get("checkpoint")))),
    )


def paper_numbers(record: dict[str, Any]) -> dict[str, float]:
    """The paper's numbers for the like of a record; they are of two cycles."""
    origin = record.get("origin") or {}
    published = PAPER.get((origin.get("method"), origin.get("pretrained_on"), record.get("stream")), {})
    values = (
        published.get(f"{record['what']} {record.get('dataset')}", ()) if origin.get("cycle", 2) == 2 else ()
    )
    return dict(
        zip(NUMBERS["Retrieval" if record["what"] == "retrieval" else "Classification"], values, strict=False)
    )


def place(subject: tuple[str, ...]) -> tuple:
    """Sorts subjects: by evaluation and data, then from random weights to supervision, one stream to two."""
    what, method, pretrained_on, stream, tested_on, *which = subject
    rank = [
        (order.index(word) if word in order else len(order))
        for word, order in zip(
            (what.split(",")[0], method.split(",")[0], stream), ORDER.values(), strict=True
        )
    ]
    return (
        rank[0],
        what,
        tested_on,
        pretrained_on != "nothing",
        pretrained_on,
        rank[1],
        method,
        rank[2],
        stream,
        which,
    )


def table(records: list[dict[str, Any]], mean: bool) -> Table:
    """Numbers by subject, in order."""
    found: Table = {}
    for record in newest(records):
        cells, paper = found.setdefault(subject_of(record, mean), {}), paper_numbers(record)
        for number, value in record["numbers"].items():
            if isinstance(value, int | float):
                cells.setdefault(number, Cell([], paper.get(number))).values.append(value)
    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def chart(found: Table) -> bytes:
    """R@1 by stage and stream (see ``stage_chart``), a panel per tested dataset."""
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (what, method, pretrained_on, stream, tested_on, *_), cells in found.items():
        if what == "retrieval":
            stage = method.replace(", ", "\n") + (
                "" if pretrained_on in (tested_on, "nothing") else f"\n({pretrained_on})"
            )
            bars = panels.setdefault(f"retrieval on {tested_on}", {}).setdefault(stage, {})
            bars.setdefault(stream, []).extend(cells["R@1"].values)
    if not panels:
        raise UserError(
            "--chart shows R@1, but the records hold no retrieval; run main_classifier.py --retrieval"
        )
    return stage_chart(panels, "R@1 (%)")


def as_markdown(found: Table) -> str:
    """A table of classification and one of retrieval."""
    parts = []
    for title, numbers in NUMBERS.items():
        lines = [
            (*subject, *(str(cells.get(number, "-")) for number in numbers))
            for subject, cells in found.items()
            if cells.keys() & set(numbers)
        ]
        shown = [(*SUBJECT, *numbers), ("---",) * (len(SUBJECT) + len(numbers)), *lines]
        parts.append(
            f"**{title}** (%)\n\n"
            + "".join(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n"
                for line in shown
                if lines
            )
        )
    return "\n".join(parts)


def as_csv(found: Table) -> str:
    """A line per number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*SUBJECT, "number", "ours", "paper", "difference"])
    for subject, cells in found.items():
        for number, cell in cells.items():
            writer.writerow(
                [*subject, number, cell.ours, "" if cell.paper is None else cell.paper, cell.difference]
            )
    return text.getvalue()


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    found = table(read_records(args.results), args.mean)
    markdown = as_markdown(found)
    sys.stdout.write(markdown)
    files = {f"{args.out}.md": markdown, f"{args.out}.csv": as_csv(found)}
    if args.chart:
        files[args.chart] = chart(found)
    for path, content in files.items():
        log.info("wrote %s", write_file(path, content))


if __name__ == "__main__":
    main()

"""Table of results.jsonl beside the paper's numbers, as Markdown."""

import statistics
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import eval  # noqa: F401  # first: see eval/eval.py
from eval.pictures import stage_chart
from eval.records import read_records, write_file
from utils.errors import UserError, one_line_errors
from utils.log import log, start_logging
from utils.options import Parser

NUMBERS = {
    "Classification": ("top1", "top5", "best_epoch_top1"),
    "Retrieval": ("R@1", "R@5", "R@10", "R@20", "R@50"),
}
# (method, pretrained on, stream) -> percent by "what tested on": Han et al., NeurIPS 2020, tables 1 and 2;
# InfoNCE's, and CoCLR's flow and K400 R@1, belong to the released weights
TESTS = ("linear ucf101", "linear hmdb51", "finetune ucf101", "finetune hmdb51")
PAPER_TOP1 = {  # of TESTS
    ("InfoNCE", "ucf101", "rgb"): (46.8,),
    ("InfoNCE", "ucf101", "flow"): (66.8,),
    ("CoCLR", "ucf101", "rgb"): (70.2, 39.1, 81.4, 52.1),
    ("CoCLR", "ucf101", "rgb+flow"): (72.1, 40.2, 87.3, 58.7),
    ("CoCLR", "k400", "rgb"): (74.5, 46.1, 87.9, 54.6),
    ("CoCLR", "k400", "flow"): (None, None, 85.27),
    ("CoCLR", "k400", "rgb+flow"): (77.8, 52.4, 90.6, 62.9),
}
PAPER_RECALL = {  # R@1, 5, 10, 20
    ("InfoNCE", "ucf101", "rgb", "ucf101"): (33.1,),
    ("InfoNCE", "ucf101", "flow", "ucf101"): (45.2,),
    ("CoCLR", "ucf101", "rgb", "ucf101"): (53.3, 69.4, 76.6, 82.0),
    ("CoCLR", "ucf101", "rgb", "hmdb51"): (23.2, 43.2, 53.5, 65.5),
    ("CoCLR", "ucf101", "flow", "ucf101"): (48.4,),
    ("CoCLR", "ucf101", "rgb+flow", "ucf101"): (55.9, 70.8, 76.9, 82.5),
    ("CoCLR", "ucf101", "rgb+flow", "hmdb51"): (26.1, 45.8, 57.9, 69.7),
    ("CoCLR", "k400", "rgb", "ucf101"): (45.6,),
    ("CoCLR", "k400", "flow", "ucf101"): (44.4,),
}
ORDER = (  # of rows, by the words in their columns
    *("linear", "feature probe", "finetune", "retrieval"),
    *("nothing", "random", "no learning", "InfoNCE", "CoCLR", "UberNCE"),
    *("rgb", "flow", "rgb+flow"),
)


class Subject(NamedTuple):
    """What a row of the table is about: an evaluation of a network."""

    what: str
    method: str
    pretrained_on: str
    stream: str
    tested_on: str
    split: str
    checkpoint: str
    settings: str  # those in which the evaluations of a kind differ

    def rank(self) -> list[tuple[int, str]]:
        """Sorts rows: by evaluation and data, then from random weights to supervision, one stream to two."""
        evaluation = (self.what, self.tested_on)
        network = (self.pretrained_on, self.method, self.stream)
        ranks = {word: rank for rank, word in enumerate(ORDER)}
        columns = (*evaluation, *network, self.split, self.checkpoint, self.settings)
        return [(ranks.get(column.split(",")[0], len(ORDER)), column) for column in columns]


@dataclass(frozen=True)
class Cell:
    """One number: the mean of ``values`` in percent, each a share of ``videos``, and the paper's."""

    values: list[float]
    videos: int | None
    paper: float | None

    def __str__(self) -> str:
        mean, error = statistics.fmean(self.values), standard_error(self.values, self.videos)
        text = f"{mean:.1f}"
        text += "" if error is None else f" ± {error:.1f}"
        text += f" (n={len(self.values)})" if len(self.values) > 1 else ""
        return text if self.paper is None else f"{text} (paper {self.paper:.1f}, {mean - self.paper:+.1f})"


Table = dict[Subject, dict[str, Cell]]


def standard_error(values: Sequence[float], videos: int | None) -> float | None:
    """Of the mean of ``values``: by how they differ, or of a single one as a percentage of ``videos``."""
    if len(values) > 1:
        return statistics.stdev(values) / len(values) ** 0.5
    if videos:
        return (values[0] * (100 - values[0]) / videos) ** 0.5
    return None


def make_parser() -> Parser:
    parser = Parser(__doc__, "[RESULTS]")
    parser.add_argument("results", nargs="?", default="results.jsonl", help="records of evaluations")
    parser.add_argument("--out", default="results.md", metavar="FILE.md", help="where the table goes")
    meaning = "means and standard errors over checkpoints and splits instead of a row for each"
    parser.add_argument("--mean", action="store_true", help=meaning)
    parser.add_argument("--chart", metavar="FILE.png", help="draw R@1 of each stage and stream")
    return parser


def newest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each evaluation: equal what, crops, dataset, split, stream, checkpoint, settings."""
    key = ("what", "crops", "dataset", "split", "stream", "checkpoint", "settings")
    return list({repr([record.get(name) for name in key]): record for record in records}.values())


def flat_settings(record: dict[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation, those by which its features were made among them."""
    settings = dict(record.get("settings") or {})
    return (settings.pop("features", None) or {}) | settings


def differing_settings(records: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Names of the settings in which the records of each kind of evaluation differ."""
    found: dict[str, dict[str, set[str]]] = {}
    for record in records:
        values = found.setdefault(record["what"], {})
        for name, value in flat_settings(record).items():
            values.setdefault(name, set()).add(repr(value))
    return {what: {name for name in values if len(values[name]) > 1} for what, values in found.items()}


def subject_of(record: dict[str, Any], mean: bool, differing: Collection[str] = ()) -> Subject:
    """What a record is about; with ``mean`` the same for all checkpoints and splits.

    ``differing`` settings keep records apart.
    """
    origin = record.get("origin") or {}
    crops = f", {record['crops']} crop" if record.get("crops") else ""
    cycle = f", cycle {origin['cycle']}" if origin.get("cycle") else ""
    epochs = f", {origin['pretrain_epoch'] + 1} epochs" if origin.get("pretrain_epoch", -1) >= 0 else ""
    return Subject(
        what=record["what"] + crops,
        method=(origin.get("method") or "unknown") + cycle + epochs,
        pretrained_on=str(origin.get("pretrained_on") or "unknown"),
        stream=str(record.get("stream") or "unknown"),
        tested_on=str(record.get("dataset") or "unknown"),
        split="all" if mean else str(record.get("split") or "unknown"),
        checkpoint="all" if mean else str(record.get("checkpoint")),
        settings=" ".join(f"{k} {v}" for k, v in flat_settings(record).items() if k in differing),
    )


def paper_numbers(record: dict[str, Any]) -> dict[str, float | None]:
    """The paper's numbers for the like of a record; they are of two cycles."""
    origin = record.get("origin") or {}
    if origin.get("cycle", 2) != 2:
        return {}
    network = (origin.get("method"), origin.get("pretrained_on"), record.get("stream"))
    if record["what"] == "retrieval":
        recalls = PAPER_RECALL.get((*network, record.get("dataset")), ())
        return dict(zip(NUMBERS["Retrieval"], recalls, strict=False))
    top1 = dict(zip(TESTS, PAPER_TOP1.get(network, ()), strict=False))
    return {"top1": top1.get(f"{record['what']} {record.get('dataset')}")}


def table(records: list[dict[str, Any]], mean: bool) -> Table:
    """Numbers by subject, in order."""
    found: Table = {}
    records = newest(records)
    differing = differing_settings(records)
    for record in records:
        cells = found.setdefault(subject_of(record, mean, differing[record["what"]]), {})
        paper = paper_numbers(record)
        for number, value in record["numbers"].items():
            cell = cells.setdefault(number, Cell([], record.get("videos"), paper.get(number)))
            cell.values.append(value)
    return {subject: found[subject] for subject in sorted(found, key=Subject.rank)}


def chart(found: Table) -> bytes:
    """R@1 by stage and stream (see ``stage_chart``), a panel per tested dataset."""
    panels: dict[str, dict[str, dict[str, tuple[list[float], float | None]]]] = {}
    for subject, cells in found.items():
        if subject.what == "retrieval":
            stage = subject.method.replace(", ", "\n")
            if subject.pretrained_on not in (subject.tested_on, "nothing"):
                stage += f"\n({subject.pretrained_on})"
            stage += f"\n{subject.settings}" if subject.settings else ""
            bars = panels.setdefault(f"retrieval on {subject.tested_on}", {}).setdefault(stage, {})
            earlier, _ = bars.get(subject.stream, ([], None))
            values = earlier + cells["R@1"].values
            bars[subject.stream] = (values, standard_error(values, cells["R@1"].videos))
    if not panels:
        raise UserError("--chart shows R@1, but the records hold no retrieval; run --retrieval first")
    return stage_chart(panels, "R@1 (%)")


def as_markdown(found: Table) -> str:
    """A table of classification and one of retrieval."""
    parts = ["±: standard error, of one test by its number of videos, of n tests by how they differ\n"]
    for title, numbers in NUMBERS.items():
        shown = {subject: cells for subject, cells in found.items() if cells.keys() & set(numbers)}
        columns = Subject._fields if any(subject.settings for subject in shown) else Subject._fields[:-1]
        header = [*(column.replace("_", " ") for column in columns), *numbers]
        rows = [
            [*subject[: len(columns)], *(str(cells.get(number, "-")) for number in numbers)]
            for subject, cells in shown.items()
        ]
        lines = [header, ["---"] * len(header), *rows] if rows else []
        parts.append(f"**{title}** (%)\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    found = table(read_records(args.results), args.mean)
    markdown = as_markdown(found)
    sys.stdout.write(markdown)
    files = {args.out: markdown}
    if args.chart:
        files[args.chart] = chart(found)
    for path, content in files.items():
        write_file(path, content)
        log.info("wrote %s", path)


if __name__ == "__main__":
    main()

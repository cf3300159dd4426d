"""Merge RGB and flow: mean of class probabilities (--mode c), or sum of similarities (--mode s)."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eval  # noqa: F401  # first: see eval/eval.py
from dataset.catalogue import parse_name
from dataset.splits import class_of, class_order
from eval.features import PARTS, Features, find_folder, load_features, read_provenance
from eval.metrics import accuracies, retrieve
from eval.records import Provenance, append_record, read_json, read_records
from utils.errors import UserError, one_line_errors
from utils.log import start_logging
from utils.metrics import as_text
from utils.options import Parser

log = logging.getLogger("coclr")

Probabilities = dict[str, dict[str, Any]]


def make_parser() -> Parser:
    parser = Parser(__doc__, "--prob1 PROB1 --prob2 PROB2")
    parser.add_argument("--prob1", required=True, help="RGB: JSON of probabilities (c), feature folder (s)")
    parser.add_argument("--prob2", required=True, help="flow: the same")
    parser.add_argument("--dataset", default="ucf101", help="dataset that both were made of")
    parser.add_argument("--mode", default="c", choices=["c", "s"], help="c: classification; s: retrieval")
    parser.add_argument("--dirname", default="feature", help="feature folder beside a checkpoint (s)")
    parser.add_argument("--results", default="results.jsonl", help="file that gets a record")
    return parser


def read_probabilities(path: str, dataset: str) -> Probabilities:
    """{video: {"mean_prob": [...], ...}} of a JSON file; UserError if another, or of another dataset."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; --mode c takes a ...-prob-ten.json, --mode s folders")
    videos = read_json(path)
    entries = list(videos.values()) if isinstance(videos, dict) else []
    lengths = {len(entry["mean_prob"]) if _has_probabilities(entry) else 0 for entry in entries}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(
            f'{path} should be {{video: {{"mean_prob": [...]}}}} with as many numbers for every video; '
            "make it anew by main_classifier.py --test CKPT --ten_crop"
        )
    made_of = {entry.get("dataset", dataset) for entry in entries}
    if made_of != {dataset}:
        raise UserError(f"{path} was made of {', '.join(sorted(map(str, made_of)))}, --dataset is {dataset}")
    return videos


def _has_probabilities(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("mean_prob"), list):
        return False
    numbers = [*entry["mean_prob"], entry.get("label", 0)]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def common_names(first: list[str], second: list[str], paths: tuple[str, str]) -> list[str]:
    """The names that both have, in the first's order; says how many either lacks. UserError without any."""
    there = set(second)
    common = [name for name in first if name in there]
    if not common:
        raise UserError(
            f"{paths[0]} and {paths[1]} have no video in common ({first[0]} there, {second[0]} here); "
            "are they of one dataset and split?"
        )
    lacking = len(there - set(first)), len(set(first) - there)
    log.info(f"{len(common)} videos in both; {paths[0]} lacks {lacking[0]}, {paths[1]} lacks {lacking[1]}")
    return common


def labels_of(names: list[str], probabilities: Probabilities, classes: int, path: str) -> Tensor:
    """Labels [N] noted with the probabilities, else from the names, if these show all the ``classes``."""
    if all("label" in probabilities[name] for name in names):
        return torch.tensor([probabilities[name]["label"] for name in names])
    order = class_order(probabilities)
    if len(order) != classes:
        raise UserError(
            f"{path} has probabilities of {classes} classes, but its videos are of {len(order)}, so the "
            "labels are unknown; make it anew by main_classifier.py"
        )
    return torch.tensor([order.index(class_of(name)) for name in names])


def merge_classification(paths: tuple[str, str], dataset: str) -> tuple[dict[str, float], int]:
    """Top-1 and top-5 in percent of the mean probabilities, and of each stream, over the common videos."""
    first, second = (read_probabilities(path, dataset) for path in paths)
    names = common_names(list(first), list(second), paths)
    rows = [[videos[name]["mean_prob"] for name in names] for videos in (first, second)]
    p1, p2 = (torch.tensor(probabilities, dtype=torch.float64) for probabilities in rows)  # [N, classes]
    if p1.shape != p2.shape:
        raise UserError(
            f"{paths[0]} has probabilities of {p1.shape[1]} classes, {paths[1]} of {p2.shape[1]}; they are "
            "of different datasets"
        )
    labels = labels_of(names, first, p1.shape[1], paths[0])
    if not torch.equal(labels, labels_of(names, second, p1.shape[1], paths[1])):
        raise UserError(f"{paths[0]} and {paths[1]} give the same videos different labels; make them anew")
    numbers = accuracies((p1 + p2) / 2, labels)
    for stream, probabilities in (("first", p1), ("second", p2)):
        alone = accuracies(probabilities, labels)
        numbers |= {f"{stream}_{name}": value for name, value in alone.items()}
    return numbers, len(names)


def select(features: Features, names: list[str]) -> Features:
    """The features of the ``names``, in their order."""
    row = {name: i for i, name in enumerate(features.names)}
    rows = [row[name] for name in names]
    return Features(features.features[rows], features.labels[rows], names)


def merge_retrieval(folders: tuple[tuple[Path, str], tuple[Path, str]]) -> tuple[dict[str, float], int]:
    """R@k of summed similarities over the videos of both streams; ``folders``, and the datasets in them."""
    streams: dict[str, list[Features]] = {}
    for part in PARTS:
        first, second = (load_features(folder, dataset, part) for folder, dataset in folders)
        places = tuple(f"{folder} ({part})" for folder, _ in folders)
        if first.names is None or second.names is None:  # the original's: aligned, if anything
            if not torch.equal(first.labels, second.labels):
                raise UserError(
                    f"the features in {places[0]} and {places[1]} come without names and have different "
                    "labels; make them anew by --retrieval"
                )
            streams[part] = [first, second]
        else:
            names = common_names(first.names, second.names, places)
            streams[part] = [select(features, names) for features in (first, second)]
    numbers, _, _ = retrieve(streams["train"], streams["test"])
    return numbers, len(streams["test"][0].labels)


def record_of(results: str, path: str) -> dict[str, Any]:
    """The last record of the evaluation that wrote the JSON file at ``path``; nothing if it is not known."""
    records = read_records(results) if Path(results).is_file() else []
    file = str(Path(path).resolve())
    return next((record for record in reversed(records) if record.get("file") == file), {})


def folder_of(path: str, dirname: str, datasets: tuple[str, str]) -> tuple[Path, str]:
    """Feature folder and the name of the dataset in it, the first of ``datasets`` that is there."""
    try:
        return find_folder(path, dirname, datasets[0]), datasets[0]
    except UserError:
        return find_folder(path, dirname, datasets[1]), datasets[1]


def merged_provenance(
    streams: tuple[Provenance, Provenance], paths: tuple[str, str], mode: str
) -> Provenance:
    """The provenance of two merged streams, as far as known; UserError where their splits differ."""
    splits = {stream["split"] for stream in streams if stream.get("split")}
    if len(splits) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} are of different splits: {min(splits)} and {max(splits)}")
    origins = [stream.get("origin") or {} for stream in streams]
    methods = dict.fromkeys(origin.get("method", "unknown") for origin in origins)
    checkpoints = [stream.get("checkpoint", path) for stream, path in zip(streams, paths, strict=True)]
    return {
        "split": streams[0].get("split"),
        "stream": "rgb+flow",
        "checkpoint": " + ".join(checkpoints),
        "epoch": streams[0].get("epoch"),
        "origin": origins[0] | {"method": " + ".join(methods)},
        "settings": {"mode": mode},
    }


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    base = parse_name(args.dataset).base
    paths = (args.prob1, args.prob2)
    if args.mode == "c":
        numbers, videos = merge_classification(paths, base)
        streams = tuple(record_of(args.results, path) for path in paths)
        test = {"what": streams[0].get("what", "two-stream"), "crops": streams[0].get("crops")}
    else:
        rgb, flow = base, f"{base}-f"
        folders = (
            folder_of(args.prob1, args.dirname, (rgb, flow)),
            folder_of(args.prob2, args.dirname, (flow, rgb)),
        )
        numbers, videos = merge_retrieval(folders)
        streams = tuple(read_provenance(folder, dataset) for folder, dataset in folders)
        test = {"what": "retrieval"}
    log.info("%s, two streams, %d videos: %s", base, videos, as_text(numbers))
    provenance = {"dataset": base, **merged_provenance(streams, paths, args.mode)}
    append_record(args.results, provenance=provenance, **test, videos=videos, numbers=numbers)


if __name__ == "__main__":
    main()

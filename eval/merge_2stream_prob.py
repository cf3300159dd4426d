"""Merge RGB and flow: mean of class probabilities (--mode c), or sum of similarities (--mode s)."""

from pathlib import Path
from typing import Any

import torch

import eval  # noqa: F401  # first: see eval/eval.py
from dataset.catalogue import parse_name
from dataset.splits import class_of, class_order
from eval.features import PARTS, Features, find_folder, load_features, read_provenance
from eval.metrics import accuracies, retrieve
from eval.records import Provenance, append_record, read_json, read_records
from utils.errors import UserError, one_line_errors
from utils.log import log, start_logging
from utils.metrics import as_text
from utils.options import Parser


def make_parser() -> Parser:
    parser = Parser(__doc__, "--prob1 PROB1 --prob2 PROB2")
    parser.add_argument("--prob1", required=True, help="RGB: JSON of probabilities (c), feature folder (s)")
    parser.add_argument("--prob2", required=True, help="flow: the same")
    parser.add_argument("--dataset", default="ucf101", help="dataset that both were made of")
    parser.add_argument("--mode", default="c", choices=["c", "s"], help="c: classification; s: retrieval")
    parser.add_argument("--dirname", default="feature", help="feature folder beside a checkpoint (s)")
    parser.add_argument("--results", default="results.jsonl", help="file that gets a record")
    return parser


def read_probabilities(path: str, dataset: str) -> Features:
    """Class probabilities float64 [N, classes] of a JSON file {video: {"mean_prob": [...], ...}}.

    Labels are those noted there, else follow from the names, if these show all classes. UserError where the
    file is another, or of another dataset.
    """
    videos = read_json(path)
    try:
        entries = list(videos.values())
        probabilities = torch.tensor([entry["mean_prob"] for entry in entries], dtype=torch.float64)
        labels = torch.tensor([int(entry.get("label", -1)) for entry in entries])
        is_sound = probabilities.dim() == 2 and bool(probabilities.isfinite().all())
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise UserError(
            f'{path} should be {{video: {{"mean_prob": [...]}}}} with as many numbers for every video; '
            "make it anew by main_classifier.py --test CKPT --ten_crop"
        )
    made_of = {str(entry.get("dataset", dataset)) for entry in entries}
    if made_of != {dataset}:
        raise UserError(f"{path} was made of {', '.join(sorted(made_of))}, --dataset is {dataset}")
    if (labels < 0).any():
        order, classes = class_order(videos), probabilities.shape[1]
        if len(order) != classes:
            raise UserError(
                f"{path} has probabilities of {classes} classes, but its videos are of {len(order)}, so the "
                "labels are unknown; make it anew by main_classifier.py"
            )
        labels = torch.tensor([order.index(class_of(name)) for name in videos])
    return Features(probabilities, labels, list(videos))


def in_common(streams: list[Features], places: list[str]) -> list[Features]:
    """Both streams for the videos of both, in the first's order; says how many either lacks.

    Without names, as the original's are, they are taken to be aligned. UserError without a video in common.
    """
    first, second = (stream.names for stream in streams)
    if first is None or second is None:
        return streams
    there = set(second)
    common = [name for name in first if name in there]
    if not common:
        raise UserError(
            f"{places[0]} and {places[1]} have no video in common ({first[0]} there, {second[0]} here); "
            "are they of one dataset and split?"
        )
    lacking = len(there - set(first)), len(set(first) - there)
    log.info(f"{len(common)} videos in both; {places[0]} lacks {lacking[0]}, {places[1]} lacks {lacking[1]}")
    return [stream.select(common) for stream in streams]


def check_labels(streams: list[Features], places: list[str]) -> None:
    """Raise UserError unless both streams give the same labels to the same videos."""
    if not torch.equal(streams[0].labels, streams[1].labels):
        raise UserError(f"{places[0]} and {places[1]} give the same videos different labels; make them anew")


def merge_classification(paths: list[str], dataset: str) -> tuple[dict[str, float], int]:
    """Top-1 and top-5 in percent of the mean probabilities over the common videos, and how many these are."""
    streams = in_common([read_probabilities(path, dataset) for path in paths], paths)
    first, second = (stream.features for stream in streams)
    if first.shape != second.shape:
        raise UserError(
            f"{paths[0]} has probabilities of {first.shape[1]} classes, {paths[1]} of {second.shape[1]}; "
            "they are of different datasets"
        )
    check_labels(streams, paths)
    return accuracies((first + second) / 2, streams[0].labels), len(first)


def merge_retrieval(folders: list[tuple[Path, str]]) -> tuple[dict[str, float], int]:
    """R@k of summed similarities over the common videos; ``folders``, and the datasets in them."""
    merged = {}
    for part in PARTS:
        places = [f"{folder} ({part})" for folder, _ in folders]
        streams = [load_features(folder, dataset, part) for folder, dataset in folders]
        merged[part] = in_common(streams, places)
        if None in (stream.names for stream in streams):
            check_labels(streams, places)
    numbers, _, _ = retrieve(merged["train"], merged["test"])
    return numbers, len(merged["test"][0].labels)


def record_of(results: str, path: str) -> dict[str, Any]:
    """The last record of the evaluation that wrote the JSON file at ``path``; nothing if it is not known."""
    records = read_records(results) if Path(results).is_file() else []
    file = str(Path(path).resolve())
    return next((record for record in reversed(records) if record.get("file") == file), {})


def folder_of(path: str, dirname: str, datasets: tuple[str, str]) -> tuple[Path, str]:
    """Feature folder and the name of the dataset in it, the first of ``datasets`` that is there."""
    try:
        return find_folder(path, dirname, datasets[0]), datasets[0]
    except UserError as error:
        try:
            return find_folder(path, dirname, datasets[1]), datasets[1]
        except UserError:
            raise error from None


def merged_provenance(streams: list[Provenance], paths: list[str], mode: str) -> Provenance:
    """The provenance of two merged streams, as far as known.

    Raises UserError where their splits differ, or they are of the same stream.
    """
    splits = {stream["split"] for stream in streams if stream.get("split")}
    if len(splits) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} are of different splits: {min(splits)} and {max(splits)}")
    kinds = [stream.get("stream") for stream in streams]
    if kinds[0] and kinds[0] == kinds[1]:
        raise UserError(f"{paths[0]} and {paths[1]} are both of {kinds[0]}; give one of RGB and one of flow")
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
    paths = [args.prob1, args.prob2]
    if args.mode == "c":
        streams = [record_of(args.results, path) for path in paths]
        provenance = merged_provenance(streams, paths, args.mode)
        numbers, videos = merge_classification(paths, base)
        test = {"what": streams[0].get("what", "two-stream"), "crops": streams[0].get("crops")}
    else:
        orders = [(base, f"{base}-f"), (f"{base}-f", base)]
        folders = [folder_of(path, args.dirname, order) for path, order in zip(paths, orders, strict=True)]
        streams = [read_provenance(folder, dataset) for folder, dataset in folders]
        provenance = merged_provenance(streams, paths, args.mode)
        numbers, videos = merge_retrieval(folders)
        test = {"what": "retrieval"}
    log.info("%s, two streams, %d videos: %s", base, videos, as_text(numbers))
    provenance |= {"dataset": base}
    append_record(args.results, provenance=provenance, **test, videos=videos, numbers=numbers)


if __name__ == "__main__":
    main()

"""Features of videos on disk: {dataset}_{train,test}_{feature,label}.pth.tar, names, provenance as JSON."""

import json
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dataset.catalogue import parse_name
from eval.records import Provenance, read_json, write_file
from model.released import fetch
from model.weights import digest
from utils.checkpoint import load_saved, save_atomically
from utils.errors import UserError
from utils.files import lock
from utils.log import log
from utils.options import Parser

PARTS = ("train", "test")


class Features(NamedTuple):
    """Features [N, C] float32 of a part of a dataset, labels [N] int64, "class/video" names (or None)."""

    features: Tensor
    labels: Tensor
    names: list[str] | None

    def select(self, names: list[str]) -> "Features":
        """Those of the ``names``, in their order."""
        row = {name: i for i, name in enumerate(self.names)}
        rows = [row[name] for name in names]
        return Features(self.features[rows], self.labels[rows], names)


def provenance_path(folder: Path, dataset: str) -> Path:
    """Where the provenance of the features in ``folder`` is kept."""
    return folder / f"{dataset}_provenance.json"


def read_provenance(folder: Path, dataset: str) -> Provenance:
    """Where the features in ``folder`` come from; of the original's, only dataset and stream are known."""
    path = provenance_path(folder, dataset)
    saved = read_json(path) if path.is_file() else {}
    if not isinstance(saved, dict):
        raise UserError(f"{path} is corrupt; make the features anew by --retrieval")
    name = parse_name(dataset)
    return {"dataset": name.base, "stream": name.streams[0], **saved}


def are_current(folder: Path, dataset: str, provenance: Provenance) -> bool:
    """Whether the features in ``folder`` are of this ``provenance``, wherever its checkpoint lies."""
    saved = read_provenance(folder, dataset)
    differing = [key for key, value in provenance.items() if key != "checkpoint" and saved.get(key) != value]
    if differing and provenance_path(folder, dataset).is_file():
        log.info("the features in %s differ in %s; making them anew", folder, ", ".join(differing))
    return not differing


def save_features(folder: Path, dataset: str, parts: dict[str, Features], provenance: Provenance) -> None:
    """Write the features of each part, then their provenance: a half-written set is not taken for whole.

    One process at a time writes to a folder.
    """
    write_file(provenance_path(folder, dataset), "{}")  # makes the folder, or says why not
    with lock(folder / ".lock"):
        write_file(provenance_path(folder, dataset), "{}")
        for part, content in parts.items():
            save_atomically(content.features, folder / f"{dataset}_{part}_feature.pth.tar")
            save_atomically(content.labels, folder / f"{dataset}_{part}_label.pth.tar")
            write_file(folder / f"{dataset}_{part}_names.json", json.dumps(content.names))
        write_file(provenance_path(folder, dataset), json.dumps(provenance, indent=1))


def load_features(folder: Path, dataset: str, part: str) -> Features:
    """Read one part's features, ours or the original's (without names); UserError where they do not fit."""
    stem = f"{dataset}_{part}"
    feature, label = (folder / f"{stem}_{kind}.pth.tar" for kind in ("feature", "label"))
    features, labels = load_saved(feature, "feature file"), load_saved(label, "feature file")
    names_path = folder / f"{stem}_names.json"
    names = read_json(names_path) if names_path.is_file() else None
    fits = isinstance(features, Tensor) and isinstance(labels, Tensor) and features.dim() == 2
    fits = fits and 0 < len(features) == labels.numel()
    fits = fits and (names is None or (isinstance(names, list) and len(names) == len(features)))
    if not fits:
        raise UserError(
            f"{feature}, the labels and the names do not fit together; make them anew by --retrieval"
        )
    return Features(features.float(), labels.long().flatten(), names)


def add_feature_options(parser: Parser) -> None:
    """Where saved features lie, see ``find_folder``."""
    meaning = "feature folder, or the checkpoint beside which it lies"
    parser.add_argument("--test", required=True, metavar="DIR|CKPT", help=meaning)
    parser.add_argument("--dirname", default="feature", help="name of the feature folder beside a checkpoint")
    parser.add_argument("--dataset", default="ucf101", help="dataset of the features, NAME[-f]")


def open_features(args: Namespace) -> tuple[Path, Features, Features]:
    """The folder that the options mean, and its features of training and of test videos."""
    folder = find_folder(args.test, args.dirname, args.dataset)
    train, test = (load_features(folder, args.dataset, part) for part in PARTS)
    return folder, train, test


def find_folder(test: str, dirname: str, dataset: str) -> Path:
    """The feature folder that ``test`` means: itself, DIRNAME in it, or DIRNAME beside that checkpoint,
    which may be a URL or the name of a released one.

    Raises UserError when there are no features of ``dataset``, or they were made from another checkpoint.
    """
    path = fetch(test)
    folders = [path.parent / dirname] if path.is_file() else [path, path / dirname]
    found = [folder for folder in folders if (folder / f"{dataset}_test_feature.pth.tar").is_file()]
    if not found:
        raise UserError(
            f"no features of {dataset} in {folders[0]}; make them by "
            f"'python main_classifier.py --dataset {dataset} --test CKPT --retrieval'"
        )
    is_noted = provenance_path(found[0], dataset)
    if is_noted.is_file() and not read_json(is_noted):
        raise UserError(f"the features of {dataset} in {found[0]} are half-written; make them by --retrieval")
    saved = read_provenance(found[0], dataset)
    if path.is_file() and saved.get("sha256") != digest(path):
        raise UserError(
            f"the features in {found[0]} are of another checkpoint ({saved.get('checkpoint', 'unknown')}), "
            f"not of {path}; make them anew by main_classifier.py --test {path} --retrieval"
        )
    return found[0]

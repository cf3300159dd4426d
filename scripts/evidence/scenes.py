"""Does retrieval on real footage see the action, or the scene in which it was filmed?

    python -m scripts.evidence.scenes

Reads what scripts.evidence.real_footage has saved in the current folder: features of the training videos
of sets whose names tell the scene. Printed are, for each network, means and standard errors over seeds: how
often the nearest other training video of the set is of the same scene, how often of the same class, and how
often the nearest of another scene is of the same class. No test video is read.
"""

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from dataset.catalogue import STREAMS
from eval.features import Features, load_features, provenance_path, read_provenance
from eval.metrics import centred
from eval.report import Cell, Subject, subject_of
from utils.errors import UserError, one_line_errors
from utils.options import Parser

SCENES = {  # of the name of a video
    "ut_interaction": re.compile(r"_(set\d+_seq\d+)_"),  # place and people
    "arid6": re.compile(r"_(\d+)_\d+$"),  # place and person
}


def measure(features: Features, scenes: list[str]) -> list[float]:
    """Percent of videos whose nearest is of their scene; of their class; of it among other scenes."""
    unit, labels = centred(features.features), features.labels
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    numbers = torch.tensor([sorted(set(scenes)).index(scene) for scene in scenes])
    same_scene = numbers[:, None] == numbers
    elsewhere = similarity.masked_fill(same_scene, -2)
    pairs = ((numbers, similarity), (labels, similarity), (labels, elsewhere))
    return [agreement(kinds, similar) for kinds, similar in pairs]


def agreement(kinds: Tensor, similarity: Tensor) -> float:
    """Percent of rows of ``similarity`` [N, N] whose greatest entry is of the same kind [N]."""
    return (kinds[similarity.argmax(dim=1)] == kinds).double().mean().item() * 100


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    Parser(__doc__.split("\n")[0]).parse_args(argv)
    for name, scene in SCENES.items():
        found: dict[Subject, list[list[float]]] = defaultdict(list)
        for stream in STREAMS.values():
            dataset = name + stream.ending
            pattern = provenance_path(Path("log-*/*/**/feature-real"), dataset)
            for folder in sorted(path.parent for path in Path().glob(str(pattern))):
                features = load_features(folder, dataset, "train")
                subject = subject_of({"what": "scenes"} | read_provenance(folder, dataset), mean=True)
                scenes = [scene.search(video)[1] for video in features.names]
                found[subject].append(measure(features, scenes))
        if not found:
            raise UserError(f"no features of {name} here; make them by scripts.evidence.real_footage")
        print(f"\n| {name} | same scene | same class | same class, other scenes |\n|---|---|---|---|")
        for subject in sorted(found, key=Subject.rank):
            cells = (Cell(list(values), None, None) for values in zip(*found[subject], strict=True))
            print(f"| {subject.stream}, {subject.method} |", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()

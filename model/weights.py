"""What a checkpoint, ours or the original's, holds for evaluation: a backbone, a classifier, and where it came from."""

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

from torch import nn

from dataset.registry import parse_name
from model.classifier import LinearClassifier
from utils.checkpoint import describe, encoder_state, load_state
from utils.errors import UserError

Checkpoint = dict[str, Any]

RANDOM = {"method": "random", "pretrained_on": "nothing", "pretrain_epoch": -1}
UNKNOWN = {"method": "unknown", "pretrained_on": "unknown", "pretrain_epoch": -1}


def load_backbone(backbone: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Load ``encoder_q.0.*`` of a pretraining checkpoint, or ``backbone.*`` of a classifier's, into ``backbone``.

    The rest (projection head, key encoder, queue) is not needed. Raises UserError, saying what the checkpoint seems to
    be, unless every tensor of the backbone is there.
    """
    state = encoder_state(checkpoint, "encoder_q.0.") or encoder_state(checkpoint, "backbone.")
    load_state(backbone, state, path, checkpoint["state_dict"])


def has_classifier(checkpoint: Checkpoint) -> bool:
    """Whether it is a classifier's checkpoint rather than one of pretraining."""
    return any(key.startswith("final_fc.") for key in checkpoint["state_dict"])


def check_classes(checkpoint: Checkpoint, classes: list[str], path: str | Path) -> None:
    """Raise UserError unless the checkpoint's classifier was trained on this very list of classes."""
    state = checkpoint["state_dict"]
    number = next(len(value) for key, value in state.items() if re.fullmatch(r"final_fc\.\d\.weight", key))
    if number != len(classes):
        raise UserError(
            f"{path} tells {number} classes apart, the dataset has {len(classes)}; check --dataset"
        )
    saved = checkpoint.get("classes", classes)  # the original's checkpoints have none
    if list(saved) != classes:
        known, own = next((a, b) for a, b in itertools.zip_longest(saved, classes) if a != b)
        raise UserError(
            f"{path} was trained on other classes: {known!r} stands where the dataset has {own!r}; "
            "check --dataset and its classes.txt"
        )


def load_classifier(
    checkpoint: Checkpoint, network: str, classes: list[str], path: str | Path
) -> LinearClassifier:
    """The classifier of a checkpoint; whether it is a linear probe (L2-norm, no dropout) follows from its keys."""
    check_classes(checkpoint, classes, path)
    state = checkpoint["state_dict"]
    probe = "final_fc.0.weight" in state
    model = LinearClassifier(
        len(classes),
        network,
        use_dropout=not probe,
        use_l2_norm=probe,
        use_final_bn="final_bn.weight" in state,
    )
    load_state(model, state, path)
    return model


def origin(checkpoint: Checkpoint, path: str | Path) -> dict[str, Any]:
    """Where the backbone was trained: {"method", "pretrained_on", "pretrain_epoch"}, as far as it is known.

    A run of co-training says in its --name_prefix which "cycle" it is of: Cycle1-...
    """
    if has_classifier(checkpoint) or "origin" in checkpoint:
        return checkpoint.get("origin", UNKNOWN)
    options = checkpoint.get("options", {})
    dataset = options.get("dataset")
    named = re.search(r"ucf101|k400", Path(path).name)  # the released files say it in their names
    method = describe(checkpoint["state_dict"]).removeprefix("an ").split()[0]
    cycle = (
        re.search(r"cycle(\d+)", options.get("name_prefix", ""), re.IGNORECASE) if method == "CoCLR" else None
    )
    return {
        "method": method,
        "pretrained_on": parse_name(dataset).base if dataset else named[0] if named else "unknown",
        "pretrain_epoch": int(checkpoint.get("epoch", -1)),
        **({"cycle": int(cycle[1])} if cycle else {}),
    }


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

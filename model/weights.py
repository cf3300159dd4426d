"""What a checkpoint, ours or the original's, holds, and how models take it up."""

import hashlib
import itertools
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.classifier import LinearClassifier
from model.released import fetch
from utils.checkpoint import TrainState, load_checkpoint
from utils.errors import UserError
from utils.log import log

Checkpoint = dict[str, Any]

RANDOM = {"method": "random", "pretrained_on": "nothing", "pretrain_epoch": -1}
UNKNOWN = {"method": "unknown", "pretrained_on": "unknown", "pretrain_epoch": -1}

# those that its name does not tell and that are the same to its end
OPTIONS_OF_A_RUN = ("pretrain", "seed", "wd", "moco_m", "moco_t", "bn_bias", "flow_colour", "hide_self")

# for checkpoints that do not say it, the original's and those of earlier versions: the first whose mark is in
# a key
MARKS_OF_NETWORKS = {"s3dg": "gating_b0", "s3d": "Conv_1a", "r50": "layer4.2"}
MARKS_OF_METHODS = {
    "CoCLR": "sampler.",
    "UberNCE": "queue_label",
    "InfoNCE": "encoder_q.",
    "a classifier": "final_fc.",
}


def method_of(checkpoint: Checkpoint) -> str | None:
    """What was trained: as the checkpoint says, else as its keys look."""
    return checkpoint.get("method") or _recognised(checkpoint, MARKS_OF_METHODS)


def network_of(checkpoint: Checkpoint) -> str | None:
    """Name of the network: as the checkpoint says, else as its keys look."""
    return checkpoint.get("net") or _recognised(checkpoint, MARKS_OF_NETWORKS)


def _recognised(checkpoint: Checkpoint, marks: dict[str, str]) -> str | None:
    keys = " ".join(checkpoint["state_dict"])
    return next((name for name, mark in marks.items() if mark in keys), None)


def load_state(module: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint, path: str | Path) -> None:
    """Load ``state``, which is the state of the ``checkpoint`` or a part of it, strictly into ``module``.

    UserError, saying what the checkpoint seems to be, when it does not fit.
    """
    own = {key: value.shape for key, value in module.state_dict().items()}
    given = {key: getattr(value, "shape", None) for key, value in state.items()}
    wrong = {key for key in own.keys() | given.keys() if own.get(key) != given.get(key)}
    if wrong:
        method = method_of(checkpoint) or "an unknown model"
        network = network_of(checkpoint) or "an unknown network"
        raise UserError(
            f"{path} does not fit: it seems to be {method} on {network}; "
            f"{len(own.keys() - wrong)} of the {len(own)} tensors wanted match, {min(wrong)} does not; check "
            "--net, --model, --moco-k and --moco-dim"
        )
    module.load_state_dict(state)


def part_of_state(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The part of a checkpoint's state dict under ``prefix``, without the prefix."""
    state = checkpoint["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_encoder(encoder: nn.Module, path: str) -> int:
    """Load ``encoder_q`` of a pretraining checkpoint into ``encoder``; returns its epoch.

    Args:
        path: or a URL, or the name of a released one.

    Raises UserError when the file holds no such encoder, or one of another network.
    """
    checkpoint = load_checkpoint(fetch(path))
    load_state(encoder, part_of_state(checkpoint, "encoder_q."), checkpoint, path)
    return int(checkpoint.get("epoch", -1))


def load_backbone(backbone: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Load ``encoder_q.0.*`` of a pretraining checkpoint, or ``backbone.*`` of a classifier, into a network.

    The rest (projection head, key encoder, queue) is not needed. Raises UserError, saying what the checkpoint
    seems to be, unless every tensor of the backbone is there.
    """
    state = part_of_state(checkpoint, "encoder_q.0.") or part_of_state(checkpoint, "backbone.")
    load_state(backbone, state, checkpoint, path)


def refuse_other_options(saved: dict[str, Any], args: Namespace, path: Path) -> None:
    """Raise UserError where the options of the run at ``path`` that are ``saved`` are not those given now."""
    for name in filter(saved.__contains__, OPTIONS_OF_A_RUN):
        there, here = saved[name], getattr(args, name, None)
        if here is None or there == here:  # None: not given again
            continue
        there, here = (" ".join(value) if isinstance(value, list) else value for value in (there, here))
        raise UserError(
            f"{path} was trained with --{name} {there}, not {here}; give the same, another --name_prefix for "
            "a new run, or --resume FILE to go on from it all the same"
        )


def resume(state: TrainState, path: Path, processes: int, args: Namespace) -> None:
    """Go on from the checkpoint at ``path``, see ``TrainState.restore``.

    Raises UserError where it does not fit, or "--resume auto" found one that was trained with other options.
    """
    checkpoint = load_checkpoint(path)
    if args.resume == "auto":
        refuse_other_options(checkpoint.get("options", {}), args, path)
    load_state(state.model, checkpoint["state_dict"], checkpoint, path)
    state.restore(checkpoint, path, processes, args.reset_lr)
    log.info("resumed from %s: epoch %d, iteration %d", path, state.epoch, state.iteration)


def has_classifier(checkpoint: Checkpoint) -> bool:
    """Whether it is a classifier's checkpoint rather than one of pretraining."""
    return any(key.startswith("final_fc.") for key in checkpoint["state_dict"])


def check_classes(checkpoint: Checkpoint, classes: list[str], path: str | Path) -> None:
    """Raise UserError unless the checkpoint's classifier was trained on this very list of classes."""
    state = checkpoint["state_dict"]
    weights = (value for key, value in state.items() if re.fullmatch(r"final_fc\.\d\.weight", key))
    number = next(map(len, weights), None)
    if number is None:
        raise UserError(f"{path} has no final_fc.N.weight; it is not a classifier of this project")
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
    """The classifier of a checkpoint; whether it is a linear probe (L2-norm, no dropout), its keys say."""
    check_classes(checkpoint, classes, path)
    state = checkpoint["state_dict"]
    probe = "final_fc.0.weight" in state
    norms = {"use_l2_norm": probe, "use_final_bn": "final_bn.weight" in state}
    model = LinearClassifier(len(classes), network, use_dropout=not probe, **norms)
    load_state(model, state, checkpoint, path)
    return model


def origin(checkpoint: Checkpoint, path: str | Path) -> dict[str, Any]:
    """Where the backbone was trained: {"method", "pretrained_on", "pretrain_epoch"}, as far as it is known.

    A run of co-training says in its --name_prefix which "cycle" it is of: Cycle1-...
    """
    if "origin" in checkpoint:
        return checkpoint["origin"]
    if has_classifier(checkpoint):  # the original's, which do not say it
        return UNKNOWN
    options = checkpoint.get("options", {})
    method = method_of(checkpoint)
    found = {
        "method": method or "unknown",
        "pretrained_on": checkpoint.get("pretrained_on") or _guessed_dataset(options, path),
        "pretrain_epoch": int(checkpoint.get("epoch", -1)),
    }
    cycle = re.search(r"cycle(\d+)", options.get("name_prefix", ""), re.IGNORECASE)
    if method == "CoCLR" and cycle:
        found["cycle"] = int(cycle[1])
    return found


def _guessed_dataset(options: dict[str, Any], path: str | Path) -> str:
    """The dataset of a checkpoint that does not say it: by its --dataset, else a released one's file name."""
    if "dataset" in options:
        return re.sub(r"(-f|-2stream)?(-2clip)?$", "", options["dataset"])
    released = re.search(r"ucf101|k400", Path(path).name)
    return released[0] if released else "unknown"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

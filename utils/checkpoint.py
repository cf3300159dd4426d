"""Checkpoints in the released form: {epoch, state_dict, best_acc, optimizer, iteration}, read without running code."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import write_atomically


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save``, so that ``path`` is never a half-written file; UserError where that fails."""
    remedy = "the checkpoints saved before are unharmed: make room, then --resume auto goes on from the last"
    with write_atomically(path, remedy) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch's zip writer makes of a full disk
            raise OSError(str(error)) from error


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """What numpy's own unpickling function does, for plain numbers only."""
    if dtype.kind not in "biufSU":
        raise pickle.UnpicklingError(f"numpy scalar of dtype {dtype}")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


_SAFE = [
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def load_saved(path: Path, what: str) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU; no code in it is run. UserError where that fails."""
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the reader trips over
        if unsafe := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} is not a readable {what}: it holds {unsafe[1]}, which could run code; where you trust the "
                "file, load it by torch.load(..., weights_only=False) and save {'state_dict': ...} of it alone"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} is not a readable {what} (truncated, or not one): {reason}") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its best_acc and ids may be numpy scalars.

    The prefixes "module." of DistributedDataParallel and "_orig_mod." of torch.compile are removed. Raises UserError
    when the file is absent, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check the path given to --resume, --pretrain or --test")
    checkpoint = load_saved(path, "checkpoint")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint: it lacks the entry 'state_dict'")
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {_plain(str(key)): value for key, value in state.items()}
    return checkpoint


def _plain(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def describe(state: dict[str, Tensor]) -> str:
    """In words, which network and model a state dict seems to be."""
    keys = " ".join(state)
    network = (
        "s3dg"
        if "gating_b0" in keys
        else "s3d"
        if "Conv_1a" in keys
        else "r50"
        if "layer4.2" in keys
        else "an unknown network"
    )
    model = (
        "CoCLR"
        if "sampler." in keys
        else "UberNCE"
        if "queue_label" in keys
        else "InfoNCE"
        if "encoder_q." in keys
        else "a classifier"
        if "final_fc." in keys
        else "an unknown model"
    )
    return f"{model} on {network}"


def load_state(
    module: nn.Module, state: dict[str, Tensor], path: str | Path, whole: dict[str, Tensor] | None = None
) -> None:
    """Load ``state``, a part of the ``whole`` state of a checkpoint or all of it, strictly into ``module``.

    UserError, saying what the checkpoint seems to be, when it does not fit.
    """
    own = module.state_dict()
    shapes = [{key: value.shape for key, value in part.items()} for part in (own, state)]
    wrong = sorted(dict(shapes[0].items() ^ shapes[1].items()))
    if wrong:
        fitting = len(own) - len(own.keys() & wrong)
        raise UserError(
            f"{path} does not fit: it seems to be {describe(whole or state)}; {fitting} of the {len(own)} "
            f"tensors wanted for {describe(own)} match, {wrong[0]} does not; check --net, --model, "
            "--moco-k and --moco-dim"
        )
    module.load_state_dict(state)


def encoder_state(checkpoint: dict[str, Any], prefix: str = "encoder_q.") -> dict[str, Tensor]:
    """The part of a checkpoint's state dict under ``prefix``, without the prefix."""
    return {
        key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }


def optimizer_state_per_parameter(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimiser's state in the released form: one group per parameter of ``model``, frozen ones included."""
    parameters, first = list(model.parameters()), optimizer.param_groups[0]
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    return {
        "state": {i: optimizer.state[p] for i, p in enumerate(parameters) if p in optimizer.state},
        "param_groups": [{**group_of.get(p, first), "params": [i]} for i, p in enumerate(parameters)],
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any], path: str | Path
) -> None:
    """Load a state saved with one group per parameter (of all, or of the trainable ones) into grouped parameters.

    Hyperparameters stay those of ``optimizer``. Raises UserError when the saved state does not fit.
    """
    ids = [i for group in saved["param_groups"] for i in group["params"]]
    everything = list(model.parameters())
    trainable = [p for p in everything if p.requires_grad]
    if len(ids) not in (len(everything), len(trainable)):
        raise UserError(
            f"{path}: its optimiser knows {len(ids)} parameters, the model has {len(everything)} "
            f"({len(trainable)} trainable); it belongs to another model"
        )
    saved_id = dict(zip(everything if len(ids) == len(everything) else trainable, ids, strict=True))
    state = {}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        entry = saved["state"].get(saved_id[parameter], {})
        if any(isinstance(v, Tensor) and v.dim() > 0 and v.shape != parameter.shape for v in entry.values()):
            raise UserError(
                f"{path}: its optimiser state does not fit the model's parameters; it belongs to another"
            )
        if entry:
            state[i] = entry
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class CheckpointFolder:
    """``<run folder>/model``: epoch<N>.pth.tar, model_best_epoch<N>.pth.tar, interrupted.pth.tar, and which to keep.

    Args:
        folder: the folder.
        keep_all: keep every epoch's file instead of the newest alone.
    """

    INTERRUPTED = "interrupted.pth.tar"
    BEST_KEPT = 5

    def __init__(self, folder: Path, keep_all: bool = False):
        self.folder, self.keep_all = folder, keep_all

    def _numbered(self, stem: str) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"^{stem}(\d+)\.pth\.tar$")
        found = [
            (match, path) for path in self.folder.glob(f"{stem}*") if (match := pattern.match(path.name))
        ]
        return sorted((int(match[1]), path) for match, path in found)

    def save_epoch(self, content: dict[str, Any], epoch: int, is_best: bool) -> None:
        """Write epoch<N>, and model_best_epoch<N> if it is the best; then remove what need not be kept."""
        path = self.folder / f"epoch{epoch}.pth.tar"
        save_atomically(content, path)
        if is_best:
            best = self.folder / f"model_best_epoch{epoch}.pth.tar"
            best.unlink(missing_ok=True)
            try:
                os.link(path, best)  # a second name of the same file
            except OSError:
                save_atomically(content, best)
        older = [] if self.keep_all else [old for number, old in self._numbered("epoch") if number < epoch]
        worse = [old for _, old in self._numbered("model_best_epoch")[: -self.BEST_KEPT]]
        leftovers = self.folder.glob(".*.part")  # of a killed process
        for unneeded in (*older, *worse, *leftovers, self.folder / self.INTERRUPTED):
            unneeded.unlink(missing_ok=True)

    def save_interrupted(self, content: dict[str, Any]) -> Path:
        """Write the state in the middle of an epoch."""
        path = self.folder / self.INTERRUPTED
        save_atomically(content, path)
        return path

    def newest(self) -> Path | None:
        """Where to go on: the interrupted state if there is one, else the last epoch; None in a new folder."""
        interrupted = self.folder / self.INTERRUPTED
        if interrupted.is_file():
            return interrupted
        epochs = self._numbered("epoch")
        return epochs[-1][1] if epochs else None

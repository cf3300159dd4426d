"""Checkpoints in the released form: {epoch, state_dict, best_acc, optimizer, iteration}; no code is run."""

import contextlib
import math
import os
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import Meters


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
                f"{path} is not a readable {what}: it holds {unsafe[1]}, which could run code; where you "
                "trust the file, load it by torch.load(..., weights_only=False) and save {'state_dict': ...} "
                "of it alone"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} is not a readable {what} (truncated, or not one): {reason}") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its best_acc and ids may be numpy scalars.

    The prefixes "module." of DistributedDataParallel and "_orig_mod." of torch.compile are removed. Raises
    UserError when the file is absent, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check the path given to --resume, --pretrain or --test")
    checkpoint = load_saved(path, "checkpoint")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint: it lacks the entry 'state_dict'")
    epoch = checkpoint.get("epoch", -1)
    if not isinstance(epoch, (int, float, np.number)):
        raise UserError(f"{path} is not a checkpoint: its epoch is {epoch!r}, not a number")
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {_plain(str(key)): value for key, value in state.items()}
    return checkpoint


def _plain(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def optimizer_state_per_parameter(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimiser's state in the released form: a group per parameter of ``model``, frozen ones too."""
    parameters, first = list(model.parameters()), optimizer.param_groups[0]
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    return {
        "state": {i: optimizer.state[p] for i, p in enumerate(parameters) if p in optimizer.state},
        "param_groups": [{**group_of.get(p, first), "params": [i]} for i, p in enumerate(parameters)],
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any], path: str | Path
) -> None:
    """Load a state saved with a group per parameter (of all, or the trainable ones) into grouped parameters.

    Moments get the memory layout of their parameters, which fused optimisers take for granted.
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
            raise UserError(f"{path}: its optimiser state does not fit the model; it belongs to another")
        if entry:
            state[i] = {name: _laid_out(value, parameter) for name, value in entry.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A tensor of the shape of ``parameter`` in the memory layout of that; anything else as it is."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


@dataclass
class TrainState:
    """What training changes, which is what a checkpoint holds.

    Args:
        model: on its device.
        optimizer: an entry "lr_scale" of a group multiplies the learning rate of that group.
        scaler: of the losses of fp16; not enabled for other precisions.
        base_lr: learning rate of the first epoch.
        epoch: the epoch that is being trained, counted from 0.
        facts: further entries of every checkpoint, which say what it is.
        seen: samples that all processes have taken from this epoch.
        iteration: steps of all epochs.
        best: the best score of an epoch so far.
        meters: scalars of this epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    base_lr: float
    epoch: int
    facts: dict[str, Any]
    seen: int = 0
    iteration: int = 0
    best: float = -math.inf
    meters: Meters = field(default_factory=Meters)

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.seen = 0
        self.meters = Meters()

    def checkpoint(self, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of a checkpoint; its "epoch" is the last finished one, "seen" samples of the next."""
        content = {
            "epoch": self.epoch - 1,
            "state_dict": self.model.state_dict(),
            "best_acc": self.best,
            "optimizer": optimizer_state_per_parameter(self.optimizer, self.model),
            "iteration": self.iteration,
            "seen": self.seen,
            "options": {**options, "lr": self.base_lr},
            "scaler": self.scaler.state_dict(),
            **self.facts,
        }
        if self.seen:
            content["meters"] = {"sums": dict(self.meters.sums), "counts": dict(self.meters.counts)}
        return content

    def restore(self, saved: dict[str, Any], path: str | Path, processes: int, reset_lr: bool) -> None:
        """Take up everything but the model's weights from the checkpoint ``saved`` at ``path``.

        Earlier versions counted steps of the epoch, on as many ``processes`` as there are now. Raises
        UserError where the optimiser's state does not fit.
        """
        if "optimizer" in saved:
            load_optimizer_state(self.optimizer, self.model, saved["optimizer"], path)
        if "scaler" in saved:
            self.scaler.load_state_dict(saved["scaler"])
        options = saved.get("options", {})
        steps = int(saved.get("batches", 0))
        self.epoch = int(saved.get("epoch", -1)) + 1
        self.seen = int(saved.get("seen", steps * options.get("batch_size", 0) * processes))
        self.iteration = int(saved.get("iteration", 0))
        self.best = float(saved.get("best_acc", -math.inf))
        self.meters = Meters(**saved.get("meters", {}))
        if not reset_lr:
            self.base_lr = float(options.get("lr", self.base_lr))


class CheckpointFolder:
    """``<run folder>/model``: epoch<N>.pth.tar, model_best_epoch<N>.pth.tar, interrupted.pth.tar.

    The file "newest" names the one written last, which has not the highest number where a run went back to an
    earlier epoch.
    """

    INTERRUPTED = "interrupted.pth.tar"
    BEST_KEPT = 5

    def __init__(self, folder: Path):
        self.folder = folder

    def _numbered(self, stem: str) -> dict[Path, int]:
        pattern = re.compile(rf"{stem}(\d+)\.pth\.tar")
        matches = {path: pattern.fullmatch(path.name) for path in self.folder.glob(f"{stem}*")}
        return {path: int(match[1]) for path, match in matches.items() if match}

    def _write(self, content: dict[str, Any], path: Path) -> None:
        save_atomically(content, path)
        with write_atomically(self.folder / "newest") as file:
            file.write(path.name.encode())

    def save_epoch(self, content: dict[str, Any], epoch: int, is_best: bool, keep_all: bool = False) -> None:
        """Write epoch<N>, and model_best_epoch<N> if it is the best; then remove what need not be kept.

        Of earlier epochs nothing but the best is kept, unless ``keep_all``.
        """
        path = self.folder / f"epoch{epoch}.pth.tar"
        self._write(content, path)
        if is_best:
            best = self.folder / f"model_best_epoch{epoch}.pth.tar"
            best.unlink(missing_ok=True)
            try:
                os.link(path, best)  # a second name of the same file
            except OSError:
                save_atomically(content, best)
        bests = self._numbered("model_best_epoch")
        by_age = sorted(bests, key=lambda path: (bests[path] == epoch, path.stat().st_mtime_ns))
        unneeded = [self.folder / self.INTERRUPTED, *by_age[: -self.BEST_KEPT]]
        unneeded += self.folder.glob(".*.part")  # of a killed process
        if not keep_all:
            unneeded += [old for old, number in self._numbered("epoch").items() if number < epoch]
        for old in unneeded:
            old.unlink(missing_ok=True)

    def save_interrupted(self, content: dict[str, Any]) -> Path:
        """Write the state in the middle of an epoch."""
        path = self.folder / self.INTERRUPTED
        self._write(content, path)
        return path

    def newest(self) -> Path | None:
        """The checkpoint written last; None in a new folder.

        Without a record of it, as earlier versions left none: the interrupted state, else the highest epoch.
        """
        with contextlib.suppress(OSError):
            path = self.folder / (self.folder / "newest").read_text()
            if path.is_file():
                return path
        interrupted = self.folder / self.INTERRUPTED
        if interrupted.is_file():
            return interrupted
        epochs = self._numbered("epoch")
        return max(epochs, key=epochs.get, default=None)

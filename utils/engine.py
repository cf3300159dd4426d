"""The training loop that every main shares; a main brings its model, its data and its step."""

import argparse
import fcntl
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.augmentation import augment
from utils.checkpoint import (
    CheckpointFolder,
    load_checkpoint,
    load_optimizer_state,
    load_state,
    optimizer_state_per_parameter,
)
from utils.errors import UserError
from utils.launch import World
from utils.log import log_to_file
from utils.metrics import Meters, as_text
from utils.precision import autocast
from utils.scalars import Scalars
from utils.schedule import learning_rate

log = logging.getLogger("coclr")

Batch = dict[str, Any]
Step = Callable[[nn.Module, Tensor, Batch, int], tuple[Tensor | None, dict[str, Tensor]]]

SECONDS_BETWEEN_LINES = 30  # of progress within an epoch
LOST_PROCESS = re.compile(r"gloo|nccl|closed by peer|connection reset|timed out|heartbeat", re.IGNORECASE)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers a signal that asks the run to stop (Ctrl-C, SIGTERM, SLURM's SIGUSR1) until a step is finished."""

    def __init__(self, device: torch.device):
        self.signal, self.device = 0, device
        self._previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number

    def agreed(self) -> int:
        """The signal that any rank got, 0 for none; all ranks ask together and get the same answer."""
        if not dist.is_initialized():
            return self.signal
        answer = torch.tensor([self.signal], device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return int(answer)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run_folder(args: argparse.Namespace, run_name: str, world: World) -> tuple[Path, Path | None]:
    """Make ``log-<prefix>/<run name>/{model,img}`` and hold it for this run alone.

    Returns it and the checkpoint that --resume means, None for a fresh start. Raises UserError when it cannot be
    written, another run holds it, or it has checkpoints and --resume is not given.
    """
    folder = Path(f"log-{args.prefix}") / run_name
    if world.is_main:
        try:
            for part in ("model", "img"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror}; choose another place or --prefix"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except OSError as error:
            raise UserError(
                f"another run is writing to {folder}; wait for it or choose another --name_prefix"
            ) from error
    newest = CheckpointFolder(folder / "model").newest()
    if world.is_main:
        if newest and not args.resume:
            raise UserError(
                f"{newest} exists: --resume auto goes on from it; for a new run choose another "
                "--name_prefix or remove the folder"
            )
        log_to_file(folder / "log.txt")
    if args.resume == "auto" and not newest:
        log.info("--resume auto: no checkpoint in %s yet, starting anew", folder)
    return folder, newest if args.resume == "auto" else Path(args.resume) if args.resume else None


class Trainer:
    """Runs epochs of ``step`` over ``loader``, with meters, checkpoints and exact resumption.

    Args:
        args: the options; read only.
        world: this process's place.
        model: moved to the device and wrapped for several processes here.
        groups: optimiser groups; an entry "lr_scale" multiplies the learning rate of its group.
        make_optimizer: builds the optimiser from the groups.
        step: (model, clips, batch, iteration) -> (loss or None for no update, scalars); clips are augmented
            [B, V, streams, 3, T, S, S].
        loader: its batch sampler is a ``ShuffledBatches``.
        folder: the run's folder.
        resume: checkpoint to go on from.
        keep_all: keep every checkpoint.
        best: name of the scalar whose maximum marks the best epoch.
        validate: called after each epoch with its number, returns further scalars of the epoch.
        extra: further entries of every checkpoint.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        world: World,
        model: nn.Module,
        groups: list[dict[str, Any]],
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        step: Step,
        loader: DataLoader,
        folder: Path,
        resume: Path | None = None,
        keep_all: bool = False,
        best: str = "top1",
        validate: Callable[[int], dict[str, float]] | None = None,
        extra: dict[str, Any] | None = None,
    ):
        self.args, self.world, self.step, self.loader, self.best, self.validate = (
            args,
            world,
            step,
            loader,
            best,
            validate,
        )
        self.batches = loader.batch_sampler
        if self.batches.batches_per_epoch() == 0:
            raise UserError(
                f"{self.batches.length} videos are fewer than one batch of {args.batch_size} on each of "
                f"{world.size} processes; lower --batch_size"
            )
        self.folder, self.extra = folder, extra or {}
        self.checkpoints = CheckpointFolder(folder / "model", keep_all)
        memory_format = torch.channels_last_3d if args.channels_last else torch.contiguous_format
        self.model = model.to(world.device, memory_format=memory_format)
        self.optimizer = make_optimizer(groups)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=args.precision == "fp16")
        self.epoch, self.first_batch, self.iteration = args.start_epoch, 0, 0
        self.best_value, self.base_lr = -math.inf, args.lr
        self.meters = Meters()
        self._last_line = time.monotonic()
        self._reported = {""}
        if resume is not None:
            self._resume(resume)
        self.parallel = model
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            # each rank keeps its own running statistics, which training never reads; rank 0's are saved
            self.parallel = DistributedDataParallel(
                model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _resume(self, path: Path) -> None:
        saved = load_checkpoint(path)
        load_state(self.model, saved["state_dict"], path)
        if "optimizer" in saved:
            load_optimizer_state(self.optimizer, self.model, saved["optimizer"], path)
        if "scaler" in saved:
            self.scaler.load_state_dict(saved["scaler"])
        self.epoch = int(saved.get("epoch", -1)) + 1
        self.first_batch = int(saved.get("batches", 0))
        self.iteration = int(saved.get("iteration", 0))
        self.best_value = float(saved.get("best_acc", -math.inf))
        self.meters = Meters(**saved.get("meters", {}))
        if not self.args.reset_lr:
            self.base_lr = float(saved.get("options", {}).get("lr", self.args.lr))
        log.info(
            "resumed from %s: epoch %d, batch %d, iteration %d",
            path,
            self.epoch,
            self.first_batch,
            self.iteration,
        )

    def _content(self, epoch: int, batches: int) -> dict[str, Any]:
        """A checkpoint: ``epoch`` is the last finished one, counted from 0; ``batches`` steps of the next are done."""
        content = {
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "best_acc": self.best_value,
            "optimizer": optimizer_state_per_parameter(self.optimizer, self.model),
            "iteration": self.iteration,
            "batches": batches,
            "options": {**vars(self.args), "lr": self.base_lr},
            "scaler": self.scaler.state_dict(),
            **self.extra,
        }
        if batches:
            content["meters"] = {"sums": dict(self.meters.sums), "counts": dict(self.meters.counts)}
        return content

    def fit(self) -> None:
        """Train up to --epochs. Exits with status 128 + signal after saving when a signal asked to stop."""
        args, world = self.args, self.world
        scalars = Scalars(self.folder, self.iteration) if world.is_main else None
        stop = StopRequest(world.device)
        try:
            for epoch in range(self.epoch, args.epochs):
                if number := self._train_epoch(epoch, scalars, stop):
                    self._leave(number, epoch)
                means = self.meters.means()
                if self.validate:
                    means |= self.validate(epoch)
                self._end_epoch(epoch, means, scalars)
        except RuntimeError as error:
            if not (dist.is_initialized() and LOST_PROCESS.search(str(error))):
                raise
            raise UserError(
                f"another process of this run ended ({str(error).splitlines()[0][:120]}); the checkpoints "
                "stand: the same command with --resume auto goes on from the last"
            ) from error
        finally:
            stop.restore()
            if scalars:
                scalars.close()

    def _loaded(self, epoch: int) -> Iterator[tuple[int, Batch, float]]:
        """(batch number, batch, seconds waited for it) of what is left of the epoch, behind a progress bar."""
        self.batches.start_at(epoch, self.first_batch * self.batches.global_batch)
        batches, total = iter(self.loader), self.batches.batches_per_epoch()
        quiet = None if self.world.is_main else True  # None: where it is not a terminal
        for number in tqdm(
            range(self.first_batch, total),
            f"epoch {epoch}",
            total,
            initial=self.first_batch,
            disable=quiet,
            leave=False,
            dynamic_ncols=True,
            unit="batch",
        ):
            start = time.perf_counter()
            batch = next(batches)
            yield number, batch, time.perf_counter() - start

    def _train_epoch(self, epoch: int, scalars: Scalars | None, stop: StopRequest) -> int:
        """One epoch, or the rest of it; returns the signal that cut it short, or 0."""
        args = self.args
        lr = learning_rate(self.base_lr, epoch, args.epochs, args.schedule, args.cos)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.model.train()
        waited, names, window_start = 0.0, [], time.perf_counter()
        last = self.batches.batches_per_epoch() - 1
        for number, batch, wait in self._loaded(epoch):
            waited += wait
            self._report_broken(batch)
            self.meters.add(self._update(batch))
            names.append(batch["index"])
            self.iteration += 1
            read = len(self.meters) >= args.print_freq or number == last
            # several ranks agree where they wait for each other anyway
            number_of_signal = stop.agreed() if read or self.world.size == 1 else 0
            if read or number_of_signal:
                steps = self.meters.flush()
                seconds = time.perf_counter() - window_start
                self._refuse_non_finite(steps, names, lr)
                rate = len(steps) * args.batch_size * self.world.size / seconds
                speed = {"lr": lr, "clips_per_second": rate, "data_wait": waited / seconds}
                self._record(epoch, number + 1, steps, speed, scalars)
                waited, names, window_start = 0.0, [], time.perf_counter()
            if number_of_signal:
                self.first_batch = number + 1
                return number_of_signal
        self.first_batch = 0
        return 0

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns its scalars, still on the device."""
        args, device = self.args, self.world.device
        # what a step draws follows from its number and rank, so that a resumed run draws what an undisturbed one would
        torch.manual_seed((args.seed * 1_000_003 + self.iteration) * 1009 + self.world.rank)
        clips = augment_batch(batch, device, args.channels_last)
        batch = {name: batch[name].to(device, non_blocking=True) for name in ("label", "source")}
        with autocast(args.precision, device):
            loss, scalars = self.step(self.parallel, clips, batch, self.iteration)
        if loss is not None:
            one = torch.ones((), device=device)
            scale = self.scaler.scale(one)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.is_enabled():  # an overflow skips the step and lowers the scale
                scalars = scalars | {"skipped": (self.scaler.scale(one) < scale).float()}
        return scalars

    def _report_broken(self, batch: Batch) -> None:
        for problem in set(batch["broken"]) - self._reported:
            log.warning("left out, another video stands in: %s", problem)
            self._reported.add(problem)

    def _refuse_non_finite(self, steps: list[dict[str, float]], indices: list[Tensor], lr: float) -> None:
        for back, (scalars, index) in enumerate(zip(steps, indices, strict=True)):
            if not math.isfinite(scalars.get("loss", 0.0)):
                videos = [self.loader.dataset.videos.names[i] for i in index.tolist()]
                raise UserError(
                    f"loss is {scalars['loss']} at step {self.iteration - len(steps) + back} (lr {lr:g}), "
                    f"batch of rank {self.world.rank}: {', '.join(videos)}; nothing was saved; lower --lr "
                    "or use --precision fp32"
                )

    def _record(
        self,
        epoch: int,
        done: int,
        steps: list[dict[str, float]],
        speed: dict[str, float],
        scalars: Scalars | None,
    ) -> None:
        if not scalars:
            return
        for iteration, values in enumerate(steps, self.iteration - len(steps)):
            scalars.add_line(iteration=iteration, epoch=epoch, **values)
            scalars.add("train", values, iteration)
        scalars.add("train", speed, self.iteration)
        scalars.flush()
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            total = self.batches.batches_per_epoch()
            left = (self.args.epochs - epoch) * total - done
            seconds = left * self.args.batch_size * self.world.size / speed["clips_per_second"]
            log.info(
                "epoch %d, step %d/%d: %s, %.1f clips/s, data wait %.0f %%, %s left",
                epoch,
                done,
                total,
                as_text(steps[-1], 4),
                speed["clips_per_second"],
                100 * speed["data_wait"],
                tqdm.format_interval(seconds),
            )

    def _end_epoch(self, epoch: int, means: dict[str, float], scalars: Scalars | None) -> None:
        is_saved = (epoch + 1) % self.args.save_freq == 0 or epoch == self.args.epochs - 1
        is_best = is_saved and means.get(self.best, -math.inf) > self.best_value
        if is_best:
            self.best_value = means[self.best]
        self.meters = Meters()
        if not scalars:
            return
        scalars.add("epoch", means, epoch)
        scalars.flush()
        log.info("epoch %d of 0-%d: %s", epoch, self.args.epochs - 1, as_text(means, 4))
        if is_saved:
            self.checkpoints.save_epoch(self._content(epoch, batches=0), epoch, is_best)

    def _leave(self, number: int, epoch: int) -> None:
        """Save in the middle of an epoch and exit."""
        if self.world.is_main:
            path = self.checkpoints.save_interrupted(self._content(epoch - 1, batches=self.first_batch))
            log.warning(
                "stopped by %s; saved %s; the same command with --resume auto goes on from there",
                signal.Signals(number).name,
                path,
            )
        sys.exit(128 + number)


def augment_batch(batch: Batch, device: torch.device, channels_last: bool) -> Tensor:
    """Augment ``ClipDataset`` items on ``device``: uint8 [B, V, streams, T, S, S, 3] -> [B, V, streams, 3, T, S, S]."""
    clips = batch["clips"].to(device, non_blocking=True)
    shape = clips.shape[:3]
    draws = {
        name: draw.flatten(0, 1).repeat_interleave(shape[2], dim=0) for name, draw in batch["draws"].items()
    }
    return augment(clips.flatten(0, 2), draws, channels_last).unflatten(0, shape)

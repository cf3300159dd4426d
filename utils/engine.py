"""One step and one epoch of training, which every main shares; it brings its model, data and step."""

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from utils.checkpoint import TrainState
from utils.errors import UserError
from utils.launch import World
from utils.log import log, progress
from utils.precision import autocast
from utils.run import Run
from utils.schedule import learning_rate

Batch = dict[str, Any]
# (batch on the device, iteration) -> (loss, or None for no update; scalars)
Step = Callable[[Batch, int], tuple[Tensor | None, dict[str, Tensor]]]


def compile_children(model: nn.Module) -> None:
    """Compile each part of the model by itself, as it is when it runs first."""
    for name, child in model.named_children():
        log.info("compiling %s", name)
        child.compile()


def in_parallel(model: nn.Module, world: World) -> nn.Module:
    """``model``, wrapped where there are several processes, so that its gradients are the mean over them.

    Each rank keeps its own running statistics, which training never reads; rank 0's are saved.
    """
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def train_step(
    args: argparse.Namespace, world: World, state: TrainState, step: Step, batch: Batch
) -> dict[str, Tensor]:
    """One optimiser step; returns its scalars, still on the device. What is nested stays on the CPU."""
    # what a step draws follows from its number and rank, so that a resumed run draws what an undisturbed one
    # would
    torch.manual_seed((args.seed * 1_000_003 + state.iteration) * 1009 + world.rank)
    batch = {
        name: value.to(world.device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    with autocast(args.precision, world.device):
        loss, scalars = step(batch, state.iteration)
    if loss is None:
        return scalars
    one = torch.ones((), device=world.device)
    scale = state.scaler.scale(one)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.is_enabled():  # an overflow skips the step and lowers the scale
        scalars = {**scalars, "skipped": (state.scaler.scale(one) < scale).float()}
    return scalars


def first_samples(batch: Batch, count: int) -> Batch:
    """The first ``count`` samples of a batch."""
    return {
        name: first_samples(value, count) if isinstance(value, dict) else value[:count]
        for name, value in batch.items()
    }


def batch_that_fits(
    args: argparse.Namespace, world: World, state: TrainState, step: Step, batch: Batch
) -> int | None:
    """The largest half, quarter, ... of a batch that a step has memory for, by trying; None if there is none.

    The model trains on it, so it must not be saved. Not for several processes.
    """
    size = len(batch["name"])
    while world.size == 1 and size % 4 == 0:  # two samples at least: batch norm has groups
        size //= 2
        state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        with contextlib.suppress(torch.OutOfMemoryError):
            train_step(args, world, state, step, first_samples(batch, size))
            return size
    return None


def train_epoch(
    args: argparse.Namespace, world: World, run: Run, state: TrainState, loader: DataLoader, step: Step
) -> dict[str, float]:
    """Train what is left of epoch ``state.epoch``; returns the means of its scalars.

    The batch sampler of ``loader`` has ``start_at(epoch, seen)`` and ``global_batch``; a batch has the "name"
    of each sample, and "broken", why another stands in for it. Raises UserError where the loss is not finite
    or the GPU's memory too small; where a signal asks to stop, saves and exits.
    """
    loader.batch_sampler.start_at(state.epoch, state.seen)
    global_batch = loader.batch_sampler.global_batch
    done = state.seen // global_batch
    total = done + len(loader)
    lr = learning_rate(state.base_lr, state.epoch, args.epochs, args.schedule, args.cos)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    state.model.train()
    if state.seen:
        seen_already = (state.epoch, state.seen, total - done, total)
        log.info(
            "epoch %d goes on after the %d videos that it has seen: %d of %d steps are left", *seen_already
        )
    bar = progress(loader, f"epoch {state.epoch}", "batch", world.is_main, total=total, initial=done)
    names, waited = [], 0.0  # of the steps since the meters were read; seconds of waiting for data
    start = ready = time.perf_counter()
    for batch in bar:
        waited += time.perf_counter() - ready
        names.append(batch["name"])
        run.warn_of_broken(batch["broken"])
        try:
            scalars = train_step(args, world, state, step, batch)
        except torch.OutOfMemoryError:
            scalars = None  # told below, as the traceback keeps the memory
        if scalars is None:
            fitting = batch_that_fits(args, world, state, step, batch)
            raise UserError(
                f"the memory of {world.device} is too small for --batch_size {args.batch_size}: "
                f"{f'{fitting} fits' if fitting else 'lower it'}; --precision bf16 or more GPUs take more"
            )
        state.meters.add(scalars)
        state.iteration += 1
        state.seen += global_batch
        done += 1
        is_read = len(state.meters) >= args.print_freq or done == total
        # several ranks agree where they wait for each other anyway
        stop = run.asked_to_stop() if is_read or world.size == 1 else 0
        if is_read or stop:
            steps = state.meters.flush()
            seconds = time.perf_counter() - start
            refuse_non_finite(steps, names, state.iteration - len(steps), lr, world.rank)
            speed = {
                "lr": lr,
                "clips_per_second": len(steps) * global_batch / seconds,
                "data_wait": waited / seconds,
            }
            run.record(state, steps, speed, done, total)
            names, waited, start = [], 0.0, time.perf_counter()
        if stop:
            run.leave(state, stop)
        ready = time.perf_counter()
    return state.meters.means()


def refuse_non_finite(
    steps: list[dict[str, float]], names: list[list[str]], first: int, lr: float, rank: int
) -> None:
    """Raise UserError, naming the samples, unless every loss is finite; ``first`` numbers the first."""
    for iteration, (scalars, batch) in enumerate(zip(steps, names, strict=True), first):
        if not math.isfinite(scalars.get("loss", 0.0)):
            raise UserError(
                f"loss is {scalars['loss']} at step {iteration} (lr {lr:g}), batch of rank {rank}: "
                f"{', '.join(batch)}; nothing was saved; lower --lr or use --precision fp32"
            )

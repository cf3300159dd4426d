"""Training steps on a CPU: the product's against a plain one, each in a fresh process.

    python -m benchmarks.step [--ddp | --waiting]

The plain step is fp32, contiguous and eager, with ungrouped batch norm, Adam and momentum parameter by
parameter, and reads its loss at once. Both augment the same uint8 clips. --ddp: one process against two that
share batch and cores. --waiting: how long threads spin while they wait for one another, alone and beside a
process that keeps one core busy.
"""

import argparse
import contextlib
import gc
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Run, in_turns, make_noise, measured, peak_megabytes, print_table, rows, setting
from dataset.augmentation import augment_batch
from model.loss import mil_nce_loss
from model.split_batch_norm import split_batch_norm
from utils.cores import available_cores
from utils.engine import train_step
from utils.errors import one_line_errors
from utils.options import Parser, positive_int
from utils.precision import to_device

COMMANDS = {
    "infonce": "main_nce --dataset noise-2clip",
    "coclr": "main_coclr --dataset noise-2stream-2clip --pretrain random random",
}
WAITING = {  # environments
    "as torch comes": {},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread less": {"OMP_NUM_THREADS": str(max(available_cores() - 1, 1))},
}


class Done(Exception):
    """Nothing more of a training is wanted."""


def in_training(command: str, work: Callable[..., Any]) -> Any:
    """What ``work`` gives in place of the first epoch of the training that ``command`` sets up.

    It takes what ``utils.engine.train_epoch`` takes.
    """
    gc.collect()  # a training before holds its folder and memory until then
    name, *words = command.split()
    found = []

    def epoch(args, world, run, state, *others):
        if args.model == "coclr":
            state.model.queue_label.fill_(1)  # full, so that mining begins
        found.append(work(args, world, run, state, *others))
        raise Done

    main = import_module(name)
    with mock.patch.object(main, "train_epoch", epoch), contextlib.suppress(Done):
        main.main(words)
    return found.pop()


def our_step(args, world, run, state, loader, step) -> Callable[[], Tensor]:
    """The step of training, always on one batch; it gives the loss."""
    batch = next(iter(loader))
    return lambda: train_step(args, world, state, step, batch)["loss"]


def plain_step(args, world, run, state, loader, step) -> Callable[[], Tensor]:
    """What one would write first."""
    model = to_device(split_batch_norm(state.model, 1), world.device, channels_last=False)
    optimizer = torch.optim.Adam(model.encoder_q.parameters(), lr=1e-3, weight_decay=1e-5, foreach=False)
    batch = next(iter(loader))

    @torch.no_grad()
    def momentum_update() -> None:
        for key, query in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
            key.mul_(model.m).add_(query, alpha=1 - model.m)

    model._momentum_update = momentum_update

    def plain() -> Tensor:
        clips = augment_batch(batch)  # [B, 2, streams, 3, T, S, S]
        if args.model == "coclr":
            loss = mil_nce_loss(*model(clips[:, 0], clips[:, 1], batch["source"]))
        else:
            loss = F.cross_entropy(*model(clips[:, :, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        return loss

    return plain


def measure(make_step: Callable[..., Callable[[], Tensor]], repeat: int, command: str) -> list[Run]:
    """Steps after two that do not count; their results are peak megabytes."""

    def steps(*training) -> list[Run]:
        step = make_step(*training)
        runs = [measured(step) for _ in range(repeat + 2)][2:]
        return [run._replace(result=peak_megabytes()) for run in runs]

    logging.disable(logging.INFO)
    return in_training(command, steps)


def in_processes(work: Callable[[str], Any], command: str, size: int = 1, **environment: str) -> Any:
    """What ``work`` gives for ``command`` in the first of ``size`` fresh processes that train together."""
    environment["LOCAL_WORLD_SIZE"] = str(size)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, environment),
        ProcessPoolExecutor(size, get_context("spawn")) as pool,
    ):
        command += f" --world_size {size} --dist_url file://{folder}/meeting"
        ranks = [pool.submit(work, f"{command} --rank {rank} --local_rank {rank}") for rank in range(size)]
        return ranks[0].result()


def compare(what: str, kinds: dict[str, Callable[[], list[Run]]], clips: int, rounds: int = 1) -> None:
    """Print the steps of each kind, of ``rounds`` in turns."""
    turns = in_turns(kinds, rounds)
    runs = {name: [step for turn in own for step in turn.result] for name, own in turns.items()}
    table = rows(what, runs, clips)
    print_table(row | {"peak MB": runs[row[what]][0].result} for row in table)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=tuple(COMMANDS), choices=COMMANDS, help="models")
    parser.add_argument("--global_batch", type=positive_int, default=4, help="pairs of clips in a step")
    parser.add_argument("--seq_len", type=positive_int, default=32, help="frames per clip")
    parser.add_argument("--img_dim", type=positive_int, default=128, help="side of the frames in pixels")
    parser.add_argument("--moco_k", type=positive_int, default=2048, help="negatives in the queue")
    parser.add_argument("--repeat", type=positive_int, default=3, help="timed steps, after two that are not")
    parser.add_argument("--ddp", action="store_true", help="two processes against one, instead")
    parser.add_argument("--waiting", action="store_true", help="ways of waiting of threads, instead")
    args = parser.parse_args(argv)
    print(setting())
    with tempfile.TemporaryDirectory() as folder:
        make_noise(Path(folder, "data/noise"), args.global_batch, args.seq_len)
        os.chdir(folder)
        for method in args.methods:
            compare_steps(method, args)


def compare_steps(method: str, args: argparse.Namespace) -> None:
    """Print the tables of one method."""
    clips = 2 * args.global_batch
    sizes = f"--seq_len {args.seq_len} --img_dim {args.img_dim} --moco_k {args.moco_k} -j 0 --gpu -1"

    def steps(make_step=our_step, precision: str = "fp32", processes: int = 1, **environment: str):
        command = f"{COMMANDS[method]} {sizes} --precision {precision}"
        command += f" --batch_size {args.global_batch // processes}"
        work = partial(measure, make_step, args.repeat)
        return partial(in_processes, work, command, processes, **environment)

    if args.ddp:
        for precision in ("fp32", "bf16"):
            kinds = {"one process": steps(precision=precision)}
            kinds["two"] = steps(precision=precision, processes=2)
            compare(f"{method}, {precision}", kinds, clips)
    elif args.waiting:
        ways = {way: steps(**environment) for way, environment in WAITING.items()}
        compare(f"{method}, alone", ways, clips, args.repeat)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            compare(f"{method}, beside a busy process", ways, clips, args.repeat)
        finally:
            busy.kill()
    else:
        ours = {precision: steps(precision=precision) for precision in ("fp32", "bf16")}
        compare(method, {"plain": steps(plain_step)} | ours, clips)


if __name__ == "__main__":
    main()

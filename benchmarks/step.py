"""Training steps of each method: ``utils.engine.train_step`` against a plain one, in fresh processes.

    python -m benchmarks.step [--seq_len 8 --img_dim 64] [--ddp]

The plain step is fp32, contiguous and eager, with ungrouped batch norm, Adam and momentum parameter by
parameter, and reads its loss at once. Both augment the same uint8 clips on the device. Loss and gradient of
the first step, ungrouped in all, are compared with the plain step's. --ddp: one process with all threads
against two with half of them each, same global batch, ours alone. --waiting: ours on a CPU, by how long
threads spin while they wait for one another, alone and beside a process that keeps one core busy.
"""

import argparse
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from benchmarks.common import print_setting, spread
from dataset.augmentation import augment_batch, draw_augmentation
from model.loss import mil_nce_loss
from model.methods import METHODS
from model.options import add_network_option
from model.pretrain import CoCLR, projection_encoder
from model.split_batch_norm import split_batch_norm
from utils import launch
from utils.checkpoint import TrainState
from utils.cores import available_cores
from utils.engine import Batch, compile_children, in_parallel, train_step
from utils.errors import one_line_errors
from utils.options import Parser, add_launch_options, positive_int
from utils.precision import to_device

MODELS = {name: method.model for name, method in METHODS.items()} | {"coclr": CoCLR}
SOURCES = 40  # that the videos of a full queue come from


@dataclass(frozen=True)
class Variant:
    """How a step computes."""

    plain: bool = False
    tf32: bool = False  # on a GPU
    channels_last: bool = True
    precision: str = "fp32"
    compile: bool = False


VARIANTS = {
    "plain": Variant(plain=True, channels_last=False),
    "plain tf32": Variant(plain=True, channels_last=False, tf32=True),
    "fp32": Variant(channels_last=False),
    "tf32": Variant(channels_last=False, tf32=True),
    "bf16": Variant(channels_last=False, tf32=True, precision="bf16"),
    "fp16": Variant(channels_last=False, tf32=True, precision="fp16"),
    "fp32 channels-last": Variant(),
    "fp32 channels-last compiled": Variant(compile=True),
    "tf32 channels-last": Variant(tf32=True),
    "bf16 channels-last": Variant(tf32=True, precision="bf16"),
    "fp16 channels-last": Variant(tf32=True, precision="fp16"),
    "bf16 channels-last compiled": Variant(tf32=True, precision="bf16", compile=True),
}
WAITING = {  # environments, and threads less than there are
    "as torch comes": ({}, 0),
    "GOMP_SPINCOUNT=30000": ({"GOMP_SPINCOUNT": "30000"}, 0),
    "GOMP_SPINCOUNT=3000": ({"GOMP_SPINCOUNT": "3000"}, 0),
    "OMP_WAIT_POLICY=passive": ({"OMP_WAIT_POLICY": "passive"}, 0),
    "one thread less": ({}, 1),
}
ON_CPU = ["plain", "fp32 channels-last", "bf16 channels-last"]
ON_GPU = ["plain", "plain tf32", "fp32 channels-last", "tf32 channels-last", "bf16 channels-last"]


def make_batch(args: argparse.Namespace, method: str, world: launch.World, seed: int = 0) -> Batch:
    """This process's part of a batch as the loader gives it: squares of noise, each pair light and strong."""
    rng = np.random.default_rng(seed)
    streams = 2 if method == "coclr" else 1
    samples = []
    for index in range(args.global_batch):
        draws = [draw_augmentation(rng, strength, args.seq_len) for strength in ("light", "strong")]
        coarse = rng.integers(0, 256, (2, streams, args.seq_len, 8, 8, 3), dtype=np.uint8)
        clips = coarse.repeat(args.img_dim // 8, axis=3).repeat(args.img_dim // 8, axis=4)
        source = index % SOURCES
        samples.append({"clips": clips, "draws": default_collate(draws), "source": source, "label": source})
    own = samples[world.rank :: world.size]
    return next(iter(DataLoader(own, len(own), pin_memory=world.device.type == "cuda")))


def make_model(method: str, args: argparse.Namespace) -> nn.Module:
    """The model, with full queues, and keys that are not the queries: else its first gradient is near 0."""
    torch.manual_seed(0)
    model = MODELS[method](args.net, 128, args.moco_k)
    model.encoder_k.load_state_dict(projection_encoder(args.net, 128).state_dict())
    if method != "infonce":
        model.queue_label.copy_(torch.arange(args.moco_k) % SOURCES)
    if method == "coclr":
        model.queue_vname.copy_(model.queue_label)
    return model.train()


def loss_of(method: str, model: nn.Module, batch: Batch, channels_last: bool) -> Tensor:
    """Loss of a batch on the device."""
    clips = augment_batch(batch, channels_last)  # [B, 2, streams, 3, T, S, S]
    if method == "coclr":
        return mil_nce_loss(*model(clips[:, 0], clips[:, 1], batch["source"]))
    return METHODS[method].loss(*model(clips[:, :, 0], *(batch[name] for name in METHODS[method].inputs)))


def plain_step(method: str, model: nn.Module, device: torch.device) -> Callable[[Batch], Tensor]:
    """What one would write first."""

    @torch.no_grad()
    def momentum_update() -> None:
        for key, query in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
            key.mul_(model.m).add_(query, alpha=1 - model.m)

    model.to(device)._momentum_update = momentum_update
    parameters = list(model.encoder_q.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-5, foreach=False, fused=False)

    def run(batch: Batch) -> Tensor:
        torch.manual_seed(0)
        on_device = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()
        }
        loss = loss_of(method, model, on_device, channels_last=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        return loss

    return run


def our_step(
    method: str, model: nn.Module, variant: Variant, world: launch.World
) -> Callable[[Batch], Tensor]:
    """The step of training."""
    to_device(model, world.device, variant.channels_last)
    if variant.compile:
        compile_children(model)
    parallel = in_parallel(model, world)
    optimizer = torch.optim.Adam(model.encoder_q.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)
    scaler = torch.amp.GradScaler(world.device.type, enabled=variant.precision == "fp16")
    state = TrainState(model, optimizer, scaler, base_lr=1e-3, epoch=0, facts={})
    options = argparse.Namespace(seed=0, precision=variant.precision)

    def step(batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = loss_of(method, parallel, batch, variant.channels_last)
        return loss, {"loss": loss}

    return lambda batch: train_step(options, world, state, step, batch)["loss"]


def measure(method: str, name: str, args: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Figures of one variant, in a process of ``environment``."""
    os.environ |= environment
    variant = VARIANTS[name]
    launch_options = Parser("")
    add_launch_options(launch_options)
    world = launch.start(launch_options.parse_args([]))
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = variant.tf32
    model = make_model(method, args)
    split_batch_norm(model, 1)
    batch = make_batch(args, method, world)
    if variant.plain:
        run = plain_step(method, model, world.device)
    else:
        run = our_step(method, model, variant, world)
    result: dict[str, Any] = {"loss": run(batch).item(), "device": str(world.device)}
    gradients = [p.grad.float().flatten().cpu() for p in model.encoder_q.parameters()]
    result["gradient"] = torch.cat(gradients)
    if not variant.plain and world.size == 1 and args.global_batch % 2 == 0:
        split_batch_norm(model, 2)  # the default of one process
    run(batch)
    result["seconds"] = [timed(run, batch, world.device) for _ in range(args.repeat)]
    if world.device.type == "cuda":
        result["device"] = torch.cuda.get_device_name()
        result["megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        result["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    launch.stop()
    return result


def timed(run: Callable[[Batch], Tensor], batch: Batch, device: torch.device) -> float:
    """Seconds until the device has finished."""
    start = time.perf_counter()
    run(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_processes(method: str, name: str, args: argparse.Namespace, size: int = 1) -> dict[str, Any]:
    """What ``measure`` finds in the first of ``size`` fresh processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ProcessPoolExecutor(size, mp_context=mp.get_context("spawn")) as pool:
        places = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        futures = [pool.submit(measure, method, name, args, place) for place in places]
        return futures[0].result()


def compare(method: str, args: argparse.Namespace) -> None:
    """Print the table of one method."""
    names = args.variants or (ON_GPU if torch.cuda.is_available() else ON_CPU)
    results = {name: in_processes(method, name, args) for name in names}
    first = results[names[0]]
    print(
        f"\n{method}: {args.global_batch} pairs of {args.seq_len}x{args.img_dim}x{args.img_dim}, {args.net}, "
        f"{first['device']}\n\n| step | s, median (range) | clips/s | times {names[0]} | peak MB | loss off "
        "by | gradient off by |\n" + "|---" * 7 + "|"
    )
    for name, result in results.items():
        median = statistics.median(result["seconds"])
        gradient_error = (result["gradient"] - first["gradient"]).norm() / first["gradient"].norm()
        print(
            f"| {name} | {spread(result['seconds'], 3)} | {2 * args.global_batch / median:.2f} | "
            f"{statistics.median(first['seconds']) / median:.2f} | {result['megabytes']:.0f} | "
            f"{abs(result['loss'] / first['loss'] - 1):.0e} | {gradient_error:.0e} |"
        )


def compare_processes(method: str, args: argparse.Namespace) -> None:
    """Print the speed of two processes beside one."""
    half = argparse.Namespace(**vars(args) | {"threads": max(args.threads // 2, 1)})
    for name in args.variants or ["fp32 channels-last", "bf16 channels-last"]:
        one = statistics.median(in_processes(method, name, args)["seconds"])
        two = statistics.median(in_processes(method, name, half, size=2)["seconds"])
        print(
            f"{method}, {name}: one process, {args.threads} threads: {2 * args.global_batch / one:.2f} "
            f"clips/s; two, {half.threads} each: {2 * args.global_batch / two:.2f} clips/s, {one / two:.2f} "
            "times as fast"
        )


def keep_busy() -> None:
    """Keep one core busy, until it is ended."""
    while True:
        pass


def compare_waiting(method: str, args: argparse.Namespace) -> None:
    """Print clips/s by way of waiting, of ``--repeat`` rounds in turns, alone and beside a busy process."""
    for beside in ("alone", "beside a busy process"):
        rates: dict[str, list[float]] = {way: [] for way in WAITING}
        busy = mp.get_context("spawn").Process(target=keep_busy, daemon=True)
        if beside != "alone":
            busy.start()
        for way in list(WAITING) * args.repeat:
            variables, fewer = WAITING[way]
            here = argparse.Namespace(**vars(args) | {"threads": max(args.threads - fewer, 1)})
            os.environ |= variables  # which the OpenMP of a new process reads
            seconds = in_processes(method, "fp32 channels-last", here)["seconds"]
            for name in variables:
                del os.environ[name]
            rates[way].append(2 * args.global_batch / statistics.median(seconds))
        if beside != "alone":
            busy.terminate()
        for way, values in rates.items():
            print(f"{method}, {beside}, {way}: {spread(values, 1)} clips/s", flush=True)


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument(
        "--methods", nargs="+", default=("infonce", "coclr"), choices=list(MODELS), help="which models"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        metavar="VARIANT",
        help=f"{', '.join(VARIANTS)}: compared with the first given",
    )
    add_network_option(parser)
    parser.add_argument("--global_batch", type=positive_int, default=4, help="pairs of clips in a step")
    parser.add_argument("--seq_len", type=positive_int, default=32, help="frames per clip")
    parser.add_argument(
        "--img_dim", type=positive_int, default=128, help="side of the frames, divisible by 8"
    )
    parser.add_argument("--moco_k", type=positive_int, default=2048, help="negatives in the queue")
    parser.add_argument("--threads", type=positive_int, default=available_cores(), help="threads of torch")
    parser.add_argument("--repeat", type=positive_int, default=3, help="timed steps, after two that are not")
    parser.add_argument("--ddp", action="store_true", help="two processes against one, instead")
    parser.add_argument("--waiting", action="store_true", help="ways of waiting of threads, instead")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    print_setting(argv)
    for method in args.methods:
        if args.ddp:
            compare_processes(method, args)
        elif args.waiting:
            compare_waiting(method, args)
        else:
            compare(method, args)


if __name__ == "__main__":
    main()

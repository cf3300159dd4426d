"""Training steps of InfoNCE and CoCLR: the trainer's own against a plain one on the same clips, in fresh processes.

    python -m benchmarks.step [--seq_len 8 --img_dim 64] [--ddp]

The plain step is fp32, contiguous and eager, with ungrouped batch norm, Adam and momentum parameter by parameter, and
reads its loss at once. Ours is ``Trainer._update``. Both augment the same uint8 clips on the device. Loss and
gradient of the first step, ungrouped in all, are compared with the plain step's. --ddp: one process with all threads
against two processes with half of them each, same global batch, ours alone.
"""

import argparse
import contextlib
import itertools
import os
import resource
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

import main_coclr
import main_nce
from benchmarks.common import print_setting, spread
from dataset.augmentation import draw_augmentation
from model.loss import mil_nce_loss
from model.pretrain import CoCLR, InfoNCE, projection_encoder
from model.split_batch_norm import SplitBatchNorm3d, split_batch_norm
from utils import engine, launch
from utils.engine import Batch, Trainer, augment_batch
from utils.errors import one_line_errors
from utils.options import Parser, positive_int

SOURCES = 40
# name: (options of main_nce or main_coclr; None: the plain step, TF32 on a GPU)
VARIANTS = {
    "plain": (None, False),
    "plain tf32": (None, True),
    "fp32": ([], False),
    "fp32 channels-last": (["--channels_last"], False),
    "fp32 channels-last compiled": (["--channels_last", "--compile"], False),
    "tf32 channels-last": (["--channels_last"], True),
    "bf16 channels-last": (["--channels_last", "--precision", "bf16"], True),
    "bf16 channels-last compiled": (["--channels_last", "--precision", "bf16", "--compile"], True),
}
SYNCHRONISING = (
    "aten::_local_scalar_dense",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
)


def now() -> float:
    """Seconds, when the device has finished; of the processor alone with --processor_time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if "PROCESSOR_TIME" in os.environ else time.perf_counter()


def make_batch(args: argparse.Namespace, streams: int, rank: int = 0, size: int = 1) -> Batch:
    """A batch as the loader gives it, or this rank's part of it: squares of noise, each pair light and strong."""
    rng, samples, times = np.random.default_rng(0), [], args.img_dim // 8
    for index in range(args.global_batch):
        draws = [draw_augmentation(rng, strength, args.seq_len) for strength in ("light", "strong")]
        coarse = rng.integers(0, 256, (2, streams, args.seq_len, 8, 8, 3), dtype=np.uint8)
        samples.append(
            {
                "clips": coarse.repeat(times, axis=3).repeat(times, axis=4),
                "draws": default_collate(draws),
                "label": index,
                "source": index % SOURCES,
                "index": index,
            }
        )
    part = args.global_batch // size
    return default_collate(samples[rank * part : (rank + 1) * part])


def make_model(method: str, args: argparse.Namespace) -> nn.Module:
    """The model, with full queues, and keys that are not yet the queries: else the first gradient is all but zero."""
    torch.manual_seed(0)
    model = (CoCLR if method == "coclr" else InfoNCE)(args.net, 128, args.moco_k)
    model.encoder_k.load_state_dict(projection_encoder(args.net, 128).state_dict())
    if method == "coclr":
        model.queue_label.fill_(1)
        model.queue_vname.copy_(torch.arange(args.moco_k) % SOURCES)
    return split_batch_norm(model, 1)


class PlainStep:
    """What one would write first; an update returns the loss."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model.to(device).train(), device
        model._momentum_update = self._momentum_update
        self.optimizer = torch.optim.Adam(
            model.encoder_q.parameters(), lr=1e-3, weight_decay=1e-5, foreach=False, fused=False
        )

    @torch.no_grad()
    def _momentum_update(self) -> None:
        model = self.model
        for key, query in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
            key.mul_(model.m).add_(query, alpha=1 - model.m)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        torch.manual_seed(0)
        clips = engine.augment_batch(batch, self.device, False)
        if isinstance(self.model, CoCLR):
            logits, positives = self.model(clips[:, 0], clips[:, 1], batch["source"].to(self.device))
            loss = mil_nce_loss(logits, positives)
        else:
            loss = nn.functional.cross_entropy(*self.model(clips[:, :, 0]))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return {"loss": loss}


def make_step(
    method: str, options: list[str] | None, args: argparse.Namespace, folder: Path
) -> tuple[Callable[[Batch], dict[str, Tensor]], nn.Module, Any, torch.device]:
    """(update, model, optimiser, device) of the plain step (options None) or of the trainer's."""
    model = make_model(method, args)
    if options is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        step = PlainStep(model, device)
        return step, model, step.optimizer, device
    main = main_coclr if method == "coclr" else main_nce
    size = int(os.environ.get("WORLD_SIZE", 1))
    own = main.make_parser().parse_args(
        [
            "--net",
            args.net,
            "--moco-k",
            str(args.moco_k),
            "--batch_size",
            str(args.global_batch // size),
            "--seq_len",
            str(args.seq_len),
            "--img_dim",
            str(args.img_dim),
            "-j",
            "0",
            *options,
        ]
    )
    world = launch.start(own)
    step = (
        main.step
        if method == "infonce"
        else main.make_step(own, torch.zeros(SOURCES, dtype=torch.long, device=world.device))
    )
    if method == "coclr":
        own.hide_self = 0.0  # as in the plain step
    if own.compile:
        for child in model.children():
            child.compile()
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(batches_per_epoch=lambda: 1))
    trainer = Trainer(
        own,
        world,
        model,
        [{"params": list(model.encoder_q.parameters())}],
        lambda groups: torch.optim.Adam(groups, lr=1e-3, weight_decay=1e-5, fused=True),
        step,
        loader,
        folder,
    )
    model.train()
    return trainer._update, model, trainer.optimizer, world.device


def timed(update: Callable[[Batch], Any], batch: Batch) -> float:
    start = now()
    update(batch)
    return now() - start


def measure(method: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one variant in this process."""
    options, tf32 = VARIANTS[variant]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    batch = make_batch(args, 1 + (method == "coclr"), rank, size)
    with tempfile.TemporaryDirectory() as folder:
        update, model, optimizer, device = make_step(method, options, args, Path(folder))
        torch.set_num_threads(args.threads)  # after the trainer's own choice
        result: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU"}
        start = time.perf_counter()
        result["loss"] = update(batch)["loss"].item()
        result["first"] = time.perf_counter() - start
        result["gradient"] = torch.cat([p.grad.float().flatten().cpu() for p in model.encoder_q.parameters()])
        if options is not None and size == 1:
            for module in model.modules():
                if isinstance(module, SplitBatchNorm3d):
                    module.splits = 2  # the trainer's default for one process
        update(batch)
        result["seconds"] = [timed(update, batch) for _ in range(args.repeat)]
        result["memory"] = (
            torch.cuda.max_memory_allocated()
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        ) / 2**20
        if args.split:
            result |= taken_apart(update, model, optimizer, batch, device)
        if options is not None:
            launch.stop()
    return result


def taken_apart(
    update: Callable[[Batch], Any], model: nn.Module, optimizer: Any, batch: Batch, device: torch.device
) -> dict[str, Any]:
    """Seconds by part of one step, floating-point operations, and calls in it that wait for the device."""
    parts: dict[str, float] = defaultdict(float)

    def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run_timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = function(*args, **kwargs)
            parts[name] += now() - start
            return result

        return run_timed

    children = (("encoder_q", "forward q"), ("encoder_k", "forward k"), ("sampler", "sampler"))
    with contextlib.ExitStack() as watches:
        for owner, attribute, name in (
            (engine, "augment_batch", "augmentation"),
            *((getattr(model, child), "forward", name) for child, name in children if hasattr(model, child)),
            (model, "_momentum_update", "momentum update"),
            (torch.Tensor, "backward", "backward"),
            (optimizer, "step", "optimiser"),
        ):
            watches.enter_context(patch.object(owner, attribute, watched(getattr(owner, attribute), name)))
        total = timed(update, batch)
    parts["rest"] = total - sum(parts.values())
    augmented = augment_batch(batch, device, False)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with (
        patch.object(engine, "augment_batch", lambda *_: augmented),  # its draws are read on the CPU
        profile(activities=activities) as trace,
        FlopCounterMode(display=False) as flops,
    ):
        update(batch)
    waits = {event.key: event.count for event in trace.key_averages() if event.key in SYNCHRONISING}
    return {"parts": dict(parts), "flops": flops.get_total_flops(), "waits": waits}


def in_process(rank: int, size: int, port: int, work: Callable[..., Any], *args: Any) -> Any:
    """work(*args) as process ``rank`` of ``size``."""
    if size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return work(*args)


def run(work: Callable[..., Any], *args: Any, size: int = 1) -> Any:
    """What work(*args) gives in the first of ``size`` fresh processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(size, mp_context=mp.get_context("spawn")) as pool:
        return pool.map(
            in_process, range(size), *(itertools.repeat(x) for x in (size, port, work, *args))
        ).__next__()


def matrix_rate(dtype: torch.dtype, tf32: bool, threads: int) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    return 2 * size**3 / min(timed(a.mm, a) for _ in range(6))


def compare(method: str, args: argparse.Namespace) -> None:
    """Print the table of one method, and where the time of each step goes."""
    cuda = torch.cuda.is_available()
    names = args.variants or (
        ["plain", "plain tf32", "fp32 channels-last", "tf32 channels-last", "bf16 channels-last"]
        if cuda
        else ["plain", "fp32 channels-last", "bf16 channels-last"]
    )
    rates = {
        variant: run(
            matrix_rate,
            torch.bfloat16 if "bf16" in variant else torch.float32,
            VARIANTS[variant][1],
            args.threads,
        )
        for variant in names
    }
    results = {variant: run(measure, method, variant, args) for variant in names}
    plain = results[names[0]]
    print(
        f"\n{method}: {args.global_batch} pairs of {args.seq_len}x{args.img_dim}x{args.img_dim}, {args.net}, "
        f"{plain['device']}, {plain['flops'] / 1e12:.2f} TFLOP per step\n\n| step | s, median (range) | clips/s | "
        f"times {names[0]} | peak MB | TFLOP/s | of matrix rate | loss off by | gradient off by | waits | "
        "first step, s |"
    )
    print("|---" * 11 + "|")
    for variant, result in results.items():
        seconds, grad = result["seconds"], result["gradient"]
        median = statistics.median(seconds)
        rate = plain["flops"] / median
        print(
            f"| {variant} | {spread(seconds, 3)} | "
            f"{2 * args.global_batch / median:.2f} | {statistics.median(plain['seconds']) / median:.2f} | "
            f"{result['memory']:.0f} | {rate / 1e12:.3f} | {rate / rates[variant]:.0%} | "
            f"{abs(result['loss'] / plain['loss'] - 1):.0e} | "
            f"{(grad - plain['gradient']).norm() / plain['gradient'].norm():.0e} | "
            f"{sum(result['waits'].values())} | {result['first']:.1f} |",
            flush=True,
        )
    parts = list(plain["parts"])
    print("\nmatrix rate, TFLOP/s: " + ", ".join(f"{name} {rate / 1e12:.3f}" for name, rate in rates.items()))
    print("\n| ms | " + " | ".join(parts) + " |\n" + "|---" * (len(parts) + 1) + "|")
    for variant, result in results.items():
        print(
            "|".join([f"| {variant} ", *(f" {1000 * result['parts'][part]:.0f} " for part in parts), ""]),
            flush=True,
        )


def compare_processes(method: str, args: argparse.Namespace) -> None:
    """Print the speed of two processes beside one."""
    half = argparse.Namespace(**vars(args) | {"threads": max(args.threads // 2, 1)})
    for variant in args.variants or ["fp32 channels-last", "bf16 channels-last"]:
        medians = [
            statistics.median(run(measure, method, variant, options, size=size)["seconds"])
            for size, options in ((1, args), (2, half))
        ]
        print(
            f"{method}, {variant}: one process, {args.threads} threads: {2 * args.global_batch / medians[0]:.2f} "
            f"clips/s; two, {half.threads} each: {2 * args.global_batch / medians[1]:.2f} clips/s, "
            f"{medians[0] / medians[1]:.2f} times as fast",
            flush=True,
        )


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["infonce", "coclr"], choices=["infonce", "coclr"])
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        metavar="VARIANT",
        help=f"{', '.join(VARIANTS)}: compared with the first given",
    )
    parser.add_argument("--net", default="s3d", choices=["s3d", "s3dg", "r50"], help="backbone")
    parser.add_argument("--global_batch", type=positive_int, default=4, help="pairs of clips in a step")
    parser.add_argument("--seq_len", type=positive_int, default=32, help="frames per clip")
    parser.add_argument(
        "--img_dim", type=positive_int, default=128, help="side of the frames, divisible by 8"
    )
    parser.add_argument("--moco-k", type=positive_int, default=2048, help="negatives in the queue")
    parser.add_argument(
        "--threads", type=positive_int, default=len(os.sched_getaffinity(0)), help="threads of torch"
    )
    parser.add_argument("--repeat", type=positive_int, default=3, help="timed steps, after two that are not")
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="time the processor, not the clock: for one thread on a busy machine",
    )
    parser.add_argument("--ddp", action="store_true", help="two processes against one, instead")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    args.split = not args.ddp
    if args.processor_time:
        os.environ["PROCESSOR_TIME"] = "1"
    print_setting(argv)
    for method in args.methods:
        (compare_processes if args.ddp else compare)(method, args)


if __name__ == "__main__":
    main()

"""The parts of ``benchmarks.gpu``: each a function that yields rows, in a process of its own.

    python -m benchmarks.gpu_parts PART

prints the rows of one, a line of JSON each. On a CPU parts are small.
"""

import contextlib
import gc
import io
import json
import logging
import os
import queue
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import main_classifier
from backbone.select_backbone import select_backbone
from benchmarks.common import Row, make_noise, measured, peak_megabytes
from benchmarks.step import COMMANDS, in_processes, in_training, measure, our_step
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.preparation import prepare
from dataset.preparation.synthetic import write_footage
from dataset.registry import open_videos
from eval.predict import features_of
from utils.cores import available_cores
from utils.engine import Batch, train_step
from utils.launch import World
from utils.precision import DTYPES

CONFORMANCE = Path(__file__).parent.parent / "tests/conformance"
METHODS = {**COMMANDS, "ubernce": f"{COMMANDS['infonce']} --model ubernce"}
VARIANTS = {  # options, with TF32 but for "fp32"
    "bf16 channels-last": "--precision bf16 --channels_last",
    "tf32": "",
    "bf16": "--precision bf16",
    "tf32 channels-last": "--channels_last",
    "fp32": "",
    "fp16 channels-last": "--precision fp16 --channels_last",
    "fp16": "--precision fp16",
    "bf16 channels-last compiled": "--precision bf16 --channels_last --compile",
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = f"--seq_len 8 --img_dim 32 -j {available_cores()}"


@dataclass(frozen=True)
class Scale:
    """How large the parts are.

    ``noise`` and ``videos`` count videos, of footage those of each class; ``matrix`` rows of matrices.
    """

    net: str = "s3d"
    clip: str = "--seq_len 32 --img_dim 128 --moco-k 2048"
    batch: int = 32
    larger: tuple[int, ...] = (64, 128, 256)
    noise: int = 256
    repeat: int = 5
    matrix: int = 8192
    methods: tuple[str, ...] = ("infonce", "coclr", "ubernce")
    variants: tuple[str, ...] = tuple(VARIANTS)[:-1]
    usual: str = "bf16 channels-last"
    cases: str = "s3d s3dg r50 cls_ft cls_last infonce_train_w1 coclr_reverse_eval_w1"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    epochs: int = 20
    videos: int = 80


FULL = Scale()
TINY = Scale(
    net="s3d_quarter",
    clip="--seq_len 8 --img_dim 32 --moco-k 64",
    batch=4,
    larger=(8,),
    noise=16,
    repeat=1,
    matrix=512,
    methods=("coclr",),
    variants=("tf32 channels-last",),
    usual="tf32 channels-last",
    cases="s3d",
    precisions=("fp32",),  # bf16 may be emulated
    epochs=1,
    videos=2,
)


def make_data(folder: Path, scale: Scale) -> None:
    """data/noise, and data/footage with RGB of drawn videos of eight classes, a third for testing."""
    make_noise(folder / "data/noise", scale.noise, 32)
    write_footage(folder / "drawn", scale.videos, 96, 32, 0, available_cores())
    words = f"footage --videos {folder}/drawn --out {folder}/data/footage --streams rgb"
    prepare.main(words.split())


def conformance(scale: Scale) -> Iterator[Row]:
    """Are networks, losses and steps the original's (fp32 without TF32, 1e-3)?"""
    sys.path.insert(0, str(CONFORMANCE))
    import check  # which makes all its tensors on the device from here on, and compares them on the CPU

    allow_tf32(False)
    torch.set_default_device(DEVICE)
    from_numpy, close = torch.from_numpy, check.close
    torch.from_numpy = lambda array: from_numpy(array).to(DEVICE)
    check.close = lambda got, *others: close(got.cpu() if isinstance(got, Tensor) else got, *others)
    torch.nn.parallel.DistributedDataParallel = lambda model: model
    keys, cases = check.load_keys(CONFORMANCE), json.loads((CONFORMANCE / "cases.json").read_text())
    for name in scale.cases.split():
        if name in cases:
            report = queue.SimpleQueue()
            network = keys[f"pretrain_{cases[name]['kind']}"]
            check.trace(0, cases[name], name, CONFORMANCE, network, check.free_port(), report)
            _, worst, problem = report.get()
            if problem:
                raise AssertionError(problem.strip().splitlines()[-1])
        else:
            run = check.run_classifier if name.startswith("cls") else check.run_backbone
            worst = run(name, CONFORMANCE, keys, cases["_static_seed"])
        yield {"case": name, "largest difference": worst}


def losses(scale: Scale) -> Iterator[Row]:
    """Are the losses of seeded steps those of a CPU (fp32 without TF32)?"""
    allow_tf32(False)
    batch = min(scale.batch, 8)
    places = {"device": "", "CPU": "--gpu -1", "layout": "--channels_last"}
    for method in scale.methods[:2]:
        command = f"{METHODS[method]} --net {scale.net} {SMALL} --batch_size {batch} --moco-k {2 * batch}"
        command += (
            " --epochs 1 --bn_splits 1"  # in groups, batch norm would depend on how the device shuffles
        )
        found = {
            place: np.array(list(train(f"{method}_{place}", f"{command} {words}").values()))
            for place, words in places.items()
        }
        off, layout = (np.abs(found["device"] / found[other] - 1) for other in ("CPU", "layout"))
        for steps in sorted({1, min(10, len(off)), len(off)}):
            row = {"method": method, "steps": steps, "loss off by at most": off[:steps].max()}
            yield row | {"and by its other layout": layout[:steps].max()}


def steps(scale: Scale) -> Iterator[Row]:
    """How fast is a step, how near the matrix rate, in what memory, how large may a batch be?"""
    for variant in scale.variants:
        for method in scale.methods:
            yield step_row(method, variant, scale.batch, scale)
    for method in scale.methods:
        for batch in scale.larger:
            try:
                yield step_row(method, scale.usual, batch, scale)
            except SystemExit:  # which training makes of too little memory
                yield {"method": method, "step": scale.usual, "batch": batch, "result": "does not fit"}
                break


def step_row(method: str, variant: str, batch: int, scale: Scale) -> Row:
    """Speed and memory of one variant."""
    allow_tf32(variant != "fp32")
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    command = step_command(method, variant, batch, scale)
    seconds, operations = in_training(command, partial(seconds_and_operations, scale.repeat))
    row = {"method": method, "step": variant, "batch": batch, "ms": 1e3 * seconds}
    row |= {"clips/s": 2 * batch / seconds, "peak MB": peak_megabytes()}
    if "--compile" in command:  # its operations cannot be counted
        return row
    rate = operations / seconds
    return row | {"TFLOP/s": rate / 1e12, "of the matrix rate": rate / matrix_rate(variant, scale.matrix)}


def seconds_and_operations(repeat: int, *training) -> tuple[float, int]:
    """Median seconds of a step, and the floating point operations of one."""
    step = our_step(*training)
    runs = [measured(step) for _ in range(repeat + 2)][2:]
    with FlopCounterMode(display=False) as counter:
        step()
    return statistics.median(run.seconds for run in runs), counter.get_total_flops()


def matrix_rate(variant: str, size: int) -> float:
    """Operations per second of products of square matrices of ``size`` rows, in a variant's arithmetic."""
    matrix = torch.ones(size, size, dtype=DTYPES.get(variant.split()[0], torch.float32), device=DEVICE)
    runs = [measured(partial(torch.mm, matrix, matrix)) for _ in range(10)]
    return 2 * size**3 / min(run.seconds for run in runs)


def step_command(method: str, variant: str, batch: int, scale: Scale) -> str:
    return f"{METHODS[method]} --net {scale.net} {scale.clip} --batch_size {batch} -j 0 {VARIANTS[variant]}"


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def waits(scale: Scale) -> Iterator[Row]:
    """Does a step wait for the GPU, and is the GPU busy?"""
    for method in scale.methods[:2]:
        command = step_command(method, scale.usual, scale.batch, scale)
        yield {"method": method, "step": scale.usual} | in_training(command, profiled_step)


def profiled_step(*training) -> Row:
    """Share of a step's time that the GPU computes, and how often Python waits for it."""
    step = our_step(*training)
    measured(step)
    seconds = measured(step).seconds
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        with record_function("the step"):
            step()
        torch.cuda.synchronize()
    on_cpu = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    (whole,) = (event.time_range for event in on_cpu if event.name == "the step")
    within = [event for event in on_cpu if whole.start <= event.time_range.start <= whole.end]
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    waits = sum(bool(re.fullmatch(r"cuda\w*Synchronize|cudaMemcpy", event.name)) for event in within)
    return {"GPU busy": busy / seconds, "waits": waits}


def train(name: str, command: str) -> dict[int, float]:
    """Losses by step of a run of this name."""
    gc.collect()  # a run before holds its folder until then
    main, *words = command.split()
    import_module(main).main([*words, "--name_prefix", f"{name}_"])
    (scalars,) = Path("log-pretrain").glob(f"{name}_*/scalars.jsonl")
    records = map(json.loads, scalars.read_text().splitlines())
    return {record["iteration"]: record["loss"] for record in records if "loss" in record}


def learning(scale: Scale) -> Iterator[Row]:
    """Does bf16 learn as fp32 does?"""
    batch, epochs = min(32, 4 * scale.videos), scale.epochs
    clips = f"--net {scale.net} {SMALL} --ds 2"
    training = f"--batch_size {batch} --moco-k {2 * batch} --moco-m 0.99 --lr 4e-4 --epochs {epochs}"
    training += f" --schedule {epochs * 5 // 6} --save_freq {epochs}"
    for precision in scale.precisions:
        command = f"main_nce --dataset footage-2clip {clips} {training} --precision {precision}"
        found = list(train(precision, command).values())
        (checkpoint,) = Path("log-pretrain").glob(f"{precision}_*/model/epoch{epochs - 1}.pth.tar")
        main_classifier.main(f"--dataset footage {clips} --test {checkpoint} --retrieval".split())
        recall = json.loads(Path("results.jsonl").read_text().splitlines()[-1])["numbers"]["R@1"]
        last = statistics.fmean(found[-10:])
        yield {"precision": precision, "steps": len(found), "last losses": last, "R@1": recall}


def data(scale: Scale) -> Iterator[Row]:
    """Do the cores keep up with the GPU?"""
    yield in_training(step_command("infonce", scale.usual, scale.batch, scale), loader_and_step)


def loader_and_step(args, world, run, state, loader, step) -> Row:
    """Samples per second of a loader alone, of steps alone, and of both together."""
    cores = available_cores()
    videos = loader.dataset.videos
    videos = videos.subset(np.arange(6 * cores * args.batch_size) % len(videos))
    dataset = ClipDataset(videos, args.seq_len, args.ds, args.img_dim, args.seed)
    loader = make_loader(dataset, args.batch_size, cores, world)
    train = partial(train_step, args, world, state, step)
    batch = next(iter(loader))
    train(batch)
    alone, _ = consume(loader, lambda batch: None)
    steps = args.batch_size / measured(partial(train, batch)).seconds
    both, waiting = consume(loader, train)
    row = {"workers": cores, "loader, samples/s": alone, "step": steps, "both": both, "data wait": waiting}
    return row | {"cores that the step needs": cores * steps / alone}


def consume(loader: DataLoader, work: Callable[[Batch], object]) -> tuple[float, float]:
    """Samples per second, once each process has given a batch, and the share of the time spent waiting."""
    batches = iter(loader)
    for _ in range(loader.num_workers):
        next(batches)
    start = time.perf_counter()
    working = [measured(partial(work, batch)).seconds for batch in batches]
    seconds = time.perf_counter() - start
    return len(working) * loader.batch_sampler.batch_size / seconds, 1 - sum(working) / seconds


def memory(scale: Scale) -> Iterator[Row]:
    """Is too large a batch told in one line, with the one that fits?"""
    limit = 4e9
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(said):
        train("memory", "main_nce --dataset footage-2clip --batch_size 32 --moco-k 64 -j 2 --epochs 1")
    lines = said.getvalue().splitlines() or ["nothing: the batch fits"]
    yield {"GB": limit / 1e9, "traceback": any("Traceback" in line for line in lines), "said": lines[-1]}


def resume(scale: Scale) -> Iterator[Row]:
    """Does a resumed run go on exactly?"""
    batch = min(32, 4 * scale.videos)
    command = f"main_nce --net {scale.net} --dataset footage-2clip {SMALL}"
    command += f" --batch_size {batch} --moco-k {2 * batch} --epochs"
    first, again = train("first", f"{command} 2"), train("again", f"{command} 2")
    train("parts", f"{command} 1")
    parts = train("parts", f"{command} 2 --resume auto")
    off = [max(abs(other[i] - loss) for i, loss in first.items()) for other in (again, parts)]
    yield {"steps": len(first), "losses off when repeated": off[0], "when resumed": off[1]}


def evaluation(scale: Scale) -> Iterator[Row]:
    """Does evaluation give a CPU's features?"""
    args = main_classifier.make_parser().parse_args(SMALL.split())
    videos = open_videos("noise", "train", args.seq_len, args.ds, "data")
    network, param = select_backbone(scale.net)
    found = {}
    for device in (DEVICE, torch.device("cpu")):
        start = time.perf_counter()
        found[device], _ = features_of(network, param["feature_size"], videos, args, World(0, 1, device))
        row = {"device": str(device), "videos": len(videos), "s": time.perf_counter() - start}
        off = (found[device] - found[DEVICE]).abs().max() / found[DEVICE].abs().max()
        yield row | {"features off by": off.item()}


def processes(scale: Scale) -> Iterator[Row]:
    """What do several GPUs win, by NCCL?"""
    count = torch.cuda.device_count()
    if count < 2:
        yield {"result": f"needs two GPUs, {count} are visible"}
        return
    work = partial(measure, our_step, scale.repeat)
    seconds = []
    for size in (1, count):
        command = step_command("infonce", scale.usual, scale.batch // size, scale)
        runs = in_processes(work, command, size)
        seconds.append(statistics.median(run.seconds for run in runs))
    yield {"GPUs": count, "times one, same batch in all": seconds[0] / seconds[1]}


def compiled(scale: Scale) -> Iterator[Row]:
    """What does --compile win?"""
    for method in scale.methods[:2]:
        yield step_row(method, "bf16 channels-last compiled", scale.batch, scale)


SHARES = {  # of the time; most important first
    conformance: 8,
    losses: 10,
    steps: 28,
    waits: 5,
    learning: 20,
    data: 8,
    memory: 3,
    resume: 5,
    evaluation: 3,
    processes: 5,
    compiled: 12,
}
PARTS = {part.__name__: part for part in SHARES}
NEED_GPU = {"waits", "memory", "compiled"}


def answer(name: str) -> Iterator[Row]:
    """Rows of a part, the last of which may say why there are no more."""
    try:
        if DEVICE.type == "cpu" and name in NEED_GPU:
            yield {"result": "needs a GPU"}
        else:
            yield from PARTS[name](FULL if DEVICE.type == "cuda" else TINY)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        yield {"result": f"failed: {type(error).__name__}: {error}"}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    logging.disable(logging.INFO)
    torch.manual_seed(0)
    for row in answer(sys.argv[1]):
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()

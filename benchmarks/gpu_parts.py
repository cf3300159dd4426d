"""The parts of ``benchmarks.gpu``: each a function that yields rows, in a process of its own."""

import contextlib
import gc
import io
import json
import queue
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import main_classifier
import main_nce
from backbone.select_backbone import select_backbone
from benchmarks.evaluate import make_noise
from benchmarks.evaluate import make_parser as evaluation_parser
from benchmarks.step import VARIANTS, in_processes, make_batch, make_model, our_step
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.preparation import prepare
from dataset.preparation.synthetic import write_footage
from dataset.registry import open_videos
from eval.predict import features_of, read_videos
from model.split_batch_norm import split_batch_norm
from utils.cores import available_cores
from utils.engine import Batch
from utils.launch import World

CONFORMANCE = Path(__file__).parent.parent / "tests/conformance"
CPU = torch.device("cpu")
NEEDS_GPU = {"result": "needs a GPU"}
KINDS = {  # of operators, by what their names hold; the first that fits
    "convolutions": "conv",
    "batch norm": "batch_norm|native_norm",
    "pooling": "pool",
    "matrix products": "mm|matmul|linear",
    "optimiser, momentum": "adam|foreach|lerp",
    "copies, casts": "copy|_to|cat|clone|contiguous|index|fill|zero",
    "rest": "",
}
WAITS = r"cuda\w*Synchronize|cudaMemcpy"

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large the parts are; the first seven are what ``benchmarks.step`` takes from its options.

    steps: of seeded losses. matrix: rows of the matrices that give the matrix rate. videos: of each class of
    footage. large: the footage that the loader reads, ``batches`` for each of its processes.
    """

    net: str = "s3d"
    seq_len: int = 32
    img_dim: int = 128
    global_batch: int = 32
    moco_k: int = 2048
    threads: int = 1
    repeat: int = 5
    methods: tuple[str, ...] = ("infonce", "coclr", "ubernce")
    variants: str = "bf16 channels-last, tf32, bf16, tf32 channels-last, fp32, fp16 channels-last, fp16"
    usual: str = "bf16 channels-last"
    cases: str = "s3d s3dg r50 cls_ft cls_last infonce_train_w1 coclr_reverse_eval_w1"
    steps: int = 30
    matrix: int = 8192
    precisions: tuple[str, ...] = ("fp32", "bf16")
    epochs: int = 20
    videos: int = 80
    large: str = "large"
    batches: int = 4


TINY = Scale(
    seq_len=8,
    img_dim=32,
    global_batch=4,
    moco_k=64,
    repeat=1,
    methods=("coclr",),
    variants="fp32 channels-last",
    usual="fp32 channels-last",
    cases="s3d",
    steps=1,
    matrix=512,
    precisions=("fp32",),
    epochs=1,
    videos=2,
    large="footage",
    batches=1,
)


def conformance(scale: Scale, world: World) -> Iterator[Row]:
    """The recordings of the original: what tests/conformance makes and compares is put on the device."""
    sys.path.insert(0, str(CONFORMANCE))
    import check

    use_tf32(False)
    from_numpy, close = torch.from_numpy, check.close
    torch.set_default_device(world.device)
    torch.from_numpy = lambda array: from_numpy(array).to(world.device)
    check.close = lambda got, *others: close(got.cpu() if isinstance(got, Tensor) else got, *others)
    torch.nn.parallel.DistributedDataParallel = lambda model: model
    keys, cases = check.load_keys(CONFORMANCE), json.loads((CONFORMANCE / "cases.json").read_text())
    for name in scale.cases.split():
        if name in cases:
            report: queue.SimpleQueue = queue.SimpleQueue()
            network = keys[f"pretrain_{cases[name]['kind']}"]
            check.trace(0, cases[name], name, CONFORMANCE, network, check.free_port(), report)
            _, worst, problem = report.get()
            if problem:
                raise AssertionError(problem.strip().splitlines()[-1])
        else:
            run = check.run_classifier if name.startswith("cls") else check.run_backbone
            worst = run(name, CONFORMANCE, keys, cases["_static_seed"])
        yield {"case": name, "largest difference": worst}


def losses(scale: Scale, world: World) -> Iterator[Row]:
    """Losses of the device beside a CPU's, and those of a CPU in another layout: what rounding alone does."""
    use_tf32(False)
    scale = replace(scale, seq_len=8, img_dim=32, global_batch=min(8, scale.global_batch), moco_k=64)
    places = {"device": (world.device, "fp32"), "CPU": (CPU, "fp32"), "layout": (CPU, "fp32 channels-last")}
    for method in scale.methods[:2]:
        found = {}
        for place, (device, variant) in places.items():
            here = World(0, 1, device)
            model = split_batch_norm(
                make_model(method, scale), 1
            )  # groups would depend on the device's draws
            run = our_step(method, model, VARIANTS[variant], here)
            batches = [make_batch(scale, method, here, seed) for seed in range(4)]
            found[place] = np.array([run(batches[i % 4]).item() for i in range(scale.steps)])
        off, rounding = (np.abs(found[place] / found["CPU"] - 1) for place in ("device", "layout"))
        for steps in sorted({1, min(10, scale.steps), scale.steps}):
            row = {"method": method, "steps": steps, "loss off by at most": off[:steps].max()}
            yield row | {"a CPU's other layout": rounding[:steps].max()}


def steps(scale: Scale, world: World) -> Iterator[Row]:
    """Steps of each method at the usual batch, then at the largest power of two that fits."""
    for name in scale.variants.split(", "):
        for method in scale.methods:
            yield measure_step(method, name, scale, world)
    if world.device.type == "cpu":
        yield NEEDS_GPU | {"what": "TF32, fp16, the largest batch"}
        return
    for method in scale.methods:
        for name in (scale.usual, "tf32"):
            row: Row = {"method": method, "step": name, "result": "no larger batch fits"}
            size = scale.global_batch
            with contextlib.suppress(torch.OutOfMemoryError):
                while size < scale.moco_k:
                    size *= 2
                    row = measure_step(method, name, replace(scale, global_batch=size, repeat=2), world)
            yield row


def compiled(scale: Scale, world: World) -> Iterator[Row]:
    """Compiled steps, which take minutes to begin."""
    if world.device.type == "cpu":
        yield NEEDS_GPU
        return
    for method in scale.methods[:2]:
        yield measure_step(method, "bf16 channels-last compiled", scale, world)


def measure_step(method: str, name: str, scale: Scale, world: World) -> Row:
    """Speed, memory and arithmetic of one variant."""
    gc.collect()
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = start_step(method, name, scale, world)
    start = time.perf_counter()
    run().item()
    row: Row = {"method": method, "step": name, "batch": scale.global_batch}
    row["first, s"] = time.perf_counter() - start
    seconds = seconds_of(run, world, scale.repeat)
    row |= {"ms": 1e3 * seconds, "clips/s": 2 * scale.global_batch / seconds}
    row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else "needs a GPU"
    if VARIANTS[name].compile:  # its operations cannot be counted
        return row
    with FlopCounterMode(display=False) as counter:
        run()
    rate = counter.get_total_flops() / seconds
    return row | {"TFLOP/s": rate / 1e12, "of the matrix rate": rate / matrix_rate(name, scale, world)}


def start_step(method: str, name: str, scale: Scale, world: World) -> Callable[[], Tensor]:
    """A training step in this variant, always on one batch, of which the loss is returned."""
    use_tf32(VARIANTS[name].tf32)
    run = our_step(method, split_batch_norm(make_model(method, scale), 2), VARIANTS[name], world)
    batch = make_batch(scale, method, world)
    return lambda: run(batch)


def matrix_rate(name: str, scale: Scale, world: World) -> float:
    """FLOP/s of a product of large square matrices in the arithmetic of a variant."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(VARIANTS[name].precision, torch.float32)
    matrix = torch.ones(scale.matrix, scale.matrix, dtype=dtype, device=world.device)
    return 2 * scale.matrix**3 / seconds_of(lambda: torch.mm(matrix, matrix), world, 10)


def seconds_of(work: Callable[[], object], world: World, times: int) -> float:
    """Seconds of each of ``times`` runs after a first one, without waiting for the device in between."""
    work()
    wait_for(world.device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait_for(world.device)
    return (time.perf_counter() - start) / times


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def use_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def kernels(scale: Scale, world: World) -> Iterator[Row]:
    """Shares of a step's time by kind of operator, and how often and where it waits for the device."""
    on_gpu = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu]
    for method in scale.methods[:2]:
        run = start_step(method, scale.usual, scale, world)
        seconds = seconds_of(run, world, scale.repeat)
        with profile(activities=activities) as profiler:
            with record_function("the step"):
                run()
            wait_for(world.device)
        microseconds = dict.fromkeys(KINDS, 0.0)
        for event in profiler.key_averages():
            if (
                event.device_type == DeviceType.CPU and event.key != "the step"
            ):  # operators, not their kernels
                kind = next(kind for kind, names in KINDS.items() if re.search(names, event.key))
                microseconds[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total = sum(microseconds.values())
        row: Row = {"method": method, "step": scale.usual} | {k: v / total for k, v in microseconds.items()}
        if on_gpu:
            yield row | {
                "GPU busy": total / 1e6 / seconds,
                "waits": waits(profiler),
                "where": waiting_lines(run),
            }
        else:
            yield row | dict.fromkeys(("GPU busy", "waits", "where"), "needs a GPU")


def waits(profiler: profile) -> int:
    """How often the profiled step waited for the GPU."""
    on_cpu = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    (step,) = (event.time_range for event in on_cpu if event.name == "the step")
    within = [event.name for event in on_cpu if step.start <= event.time_range.start <= step.end]
    return sum(bool(re.fullmatch(WAITS, name)) for name in within)


def waiting_lines(run: Callable[[], object]) -> str:
    """The lines of Python at which torch says that it waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    lines = {f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)}
    return " ".join(sorted(lines)) or "nowhere"


def draw(name: str, scale: Scale) -> None:
    """data/NAME with RGB of drawn videos of eight classes, a third for testing."""
    if Path("data", name, "rgb.lmdb").exists():
        return
    videos, size, frames = {"footage": (scale.videos, 96, 32), "large": (2, 256, 64)}[name]
    folder = Path(f"{name}-videos")
    jobs = min(available_cores(), videos)
    if not folder.exists():
        write_footage(folder, videos, size, frames, 0, jobs)
    prepare.main(f"{name} --videos {folder} --out data/{name} --streams rgb -j {jobs}".split())


def pretrain(name: str, words: str) -> dict[int, float]:
    """Losses by step of a run of main_nce.py on the footage."""
    main_nce.main(["--dataset", "footage-2clip", "--name_prefix", f"{name}_", *words.split()])
    gc.collect()  # the run's folder is held until then
    (scalars,) = Path("log-pretrain").glob(f"{name}_*/scalars.jsonl")
    records = map(json.loads, scalars.read_text().splitlines())
    return {record["iteration"]: record["loss"] for record in records}


def learning(scale: Scale, world: World) -> Iterator[Row]:
    """InfoNCE of the embedded footage in each precision, set up as scripts/quickstart.sh does."""
    draw("footage", scale)
    clips = f"--seq_len 8 --ds 2 --img_dim 32 -j {available_cores()}"
    batch, epochs = min(32, 4 * scale.videos), scale.epochs
    training = f"--batch_size {batch} --moco-k {2 * batch} --moco-m 0.99 --lr 4e-4 --epochs {epochs}"
    for precision in scale.precisions:
        words = (
            f"{clips} {training} --schedule {epochs * 5 // 6} --save_freq {epochs} --precision {precision}"
        )
        found = pretrain(precision, words)
        (checkpoint,) = Path("log-pretrain").glob(f"{precision}_*/model/epoch{epochs - 1}.pth.tar")
        main_classifier.main(f"--dataset footage {clips} --test {checkpoint} --retrieval".split())
        recall = json.loads(Path("results.jsonl").read_text().splitlines()[-1])["numbers"]["R@1"]
        last = statistics.fmean(list(found.values())[-10:])
        yield {"precision": precision, "steps": len(found), "last losses": last, "R@1": recall}


def data(scale: Scale, world: World) -> Iterator[Row]:
    """How fast the loader is alone, and beside a training that consumes what it gives."""
    draw(scale.large, scale)
    workers = available_cores()
    videos = open_videos(f"{scale.large}-2clip", "train", scale.seq_len, 1, "data")
    videos = videos.subset(np.arange(scale.batches * workers * scale.global_batch) % len(videos))
    dataset = ClipDataset(videos, scale.seq_len, 1, scale.img_dim, seed=0)
    loader = make_loader(dataset, scale.global_batch, workers, 0, 1, world.device)
    step = scale.global_batch / seconds_of(
        start_step("infonce", scale.usual, scale, world), world, scale.repeat
    )
    model = split_batch_norm(make_model("infonce", scale), 2)
    alone, _ = consume(loader, lambda batch: None, world)
    both, waited = consume(loader, our_step("infonce", model, VARIANTS[scale.usual], world), world)
    row = {"workers": workers, "loader, samples/s": alone, "step": step, "both": both, "data wait": waited}
    yield row | {"cores that the step needs": workers * step / alone}


def consume(loader: DataLoader, work: Callable[[Batch], object], world: World) -> tuple[float, float]:
    """Samples per second, after the first batch of each process, and the share of that time spent waiting."""
    loader.batch_sampler.start_at(0)
    first = min(loader.num_workers, len(loader) // 2)
    waited = 0.0
    ready = time.perf_counter()
    for number, batch in enumerate(loader):
        if number == first:
            waited, start = 0.0, ready
        waited += time.perf_counter() - ready
        work(batch)
        if number % 5 == 4 or number == len(loader) - 1:  # as often as training reads its meters
            wait_for(world.device)
        ready = time.perf_counter()
    samples = loader.batch_sampler.global_batch * (len(loader) - first)
    return samples / (ready - start), waited / (ready - start)


def memory(scale: Scale, world: World) -> Iterator[Row]:
    """What main_nce.py says where its batch does not fit into the little memory that it is left."""
    if world.device.type == "cpu":
        yield NEEDS_GPU
        return
    draw("footage", scale)
    limit = 4e9
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(said):
        pretrain("memory", "--batch_size 32 --moco-k 64 -j 2 --epochs 1")
    lines = said.getvalue().splitlines() or ["nothing: the batch fits"]
    yield {"GB": limit / 1e9, "traceback": any("Traceback" in line for line in lines), "said": lines[-1]}


def resume(scale: Scale, world: World) -> Iterator[Row]:
    """Two epochs, the same again, and one epoch that --resume auto goes on from."""
    draw("footage", scale)
    batch = min(32, 4 * scale.videos)
    words = f"--seq_len 8 --img_dim 32 -j 2 --batch_size {batch} --moco-k {2 * batch} --epochs"
    first = pretrain("first", f"{words} 2")
    again = pretrain("again", f"{words} 2") if world.device.type == "cuda" else first
    pretrain("parts", f"{words} 1")
    parts = pretrain("parts", f"{words} 2 --resume auto")
    off = [max(abs(other[i] - loss) for i, loss in first.items()) for other in (again, parts)]
    yield {"steps": len(first), "losses off when repeated": off[0], "when resumed": off[1]}


def evaluation(scale: Scale, world: World) -> Iterator[Row]:
    """Features of all windows of drawn videos by the device and by a CPU."""
    make_noise(Path(), 2 * scale.repeat)
    args = evaluation_parser().parse_args(["--dataset", "noise", "--data_root", "."])
    (videos,) = read_videos(args, "test")
    network, param = select_backbone(scale.net)
    found = {}
    for device in dict.fromkeys((world.device, CPU)):
        start = time.perf_counter()
        found[device], _ = features_of(network, param["feature_size"], videos, args, World(0, 1, device))
        row = {"device": str(device), "videos": len(videos), "s": time.perf_counter() - start}
        off = (found[device] - found[world.device]).abs().max() / found[world.device].abs().max()
        yield row | {"features off by": off.item()}


def processes(scale: Scale, world: World) -> Iterator[Row]:
    """One process beside one for each GPU, by NCCL."""
    count = torch.cuda.device_count()
    if count < 2:
        yield {"result": f"needs two GPUs, {count} are visible"}
        return
    one, many = (in_processes("infonce", scale.usual, scale, size)["seconds"] for size in (1, count))
    yield {"GPUs": count, "times one, same batch in all": statistics.median(one) / statistics.median(many)}

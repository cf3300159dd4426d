"""Loading: samples per second of one worker, against a plain pipeline and against the pure JPEG decoding it needs.

    python -m benchmarks.loader [--video FILE...]

The videos, drawn ones if none are given, become databases in a temporary folder (short side 256, JPEG quality 80; flow
by DIS). Compared are, for the same draws, two views of a video in RGB and in RGB and flow:
  plain   what the original does: unpack the record, Pillow-decode both clips whole, then frame by frame crop, resize,
          colour jitter, grey, blur, flip, to float tensor, normalise
  decode  nothing but decoding the JPEGs that the drawn views use
  ours    an item of ClipDataset (the colour work is left to the training device: see utils/augment.py)
  encoded an item for --decode gpu, of which the worker decodes nothing
  device  what is left of it for the GPU: decoding, crops and resizing of a batch of all samples
and then DataLoaders of ours with a growing number of workers. Everything runs on one thread per process. Medians and
ranges are of ``--repeats`` rounds in turn; a DataLoader's round is an epoch.
"""
import importlib.util
import io
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import msgpack
import numpy as np
import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter

from dataset import clip_dataset, crop
from dataset.clip_dataset import ClipDataset, join_jpegs, make_loader
from dataset.clips import train_clip
from dataset.flow import compute_flow, encode_flow
from dataset.frames import resize
from dataset.registry import Videos
from dataset.store import VideoStore, pack_frames, write_store
from dataset.synthetic import CLASSES, render
from dataset.views import draw_augmentation, draw_crop, draw_pretrain_views
from utils.augment import MEAN, STD
from utils.errors import UserError, one_line_errors
from utils.options import Parser, positive_int

SEQ_LEN, SIZE = 32, 128
JITTER = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def read_frames(path: str) -> list[np.ndarray]:
    """Up to 120 frames of a video file, BGR."""
    capture, frames = cv2.VideoCapture(path), []
    while len(frames) < 120 and (read := capture.read())[0]:
        frames.append(read[1])
    if len(frames) <= SEQ_LEN + 1:
        raise UserError(f"--video {path}: {len(frames)} frames can be read, more than {SEQ_LEN + 1} are needed")
    return frames


def make_stores(paths: list[str], folder: Path) -> dict[str, VideoStore]:
    """RGB and flow databases of the video files, as dataset.prepare makes them but with equal frame counts."""
    drawn = (render(np.random.default_rng(i), CLASSES[i], 454, 120)[:, :256] for i in range(4))
    records: dict[str, dict[str, tuple[bytes, int]]] = {"rgb": {}, "flow": {}}
    for number, video in enumerate(map(read_frames, paths) if paths else drawn):
        frames = [resize(frame, 256) for frame in video]
        grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
        flow = [encode_flow(compute_flow(a, b, "dis"))[..., ::-1] for a, b in itertools.pairwise(grey)]
        for stream, pictures in (("rgb", frames[:-1]), ("flow", flow)):
            jpegs = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes() for p in pictures]
            records[stream][f"video/{number}"] = pack_frames(jpegs), len(jpegs)
    for stream, record in records.items():
        write_store(folder / f"{stream}.lmdb", list(record), record.__getitem__)
    return {stream: VideoStore(folder / f"{stream}.lmdb") for stream in records}


def make_dataset(stores: dict[str, VideoStore], encoded: bool = False) -> ClipDataset:
    store = next(iter(stores.values()))
    index = np.arange(len(store))
    videos = Videos(stores, store.names, dict.fromkeys(stores, index), store.frame_counts(), index, index, ["video"])
    return ClipDataset(videos, SEQ_LEN, 1, SIZE, seed=0, encoded=encoded)


def plain_sample(dataset: ClipDataset, records: dict[str, list[bytes]], epoch: int, index: int) -> torch.Tensor:
    """Two views, float32 [2, streams, 3, T, S, S], by the plain pipeline; ``records``: packed video of each stream."""
    rng = np.random.default_rng((dataset.seed, epoch, index))
    views = draw_pretrain_views(rng)
    clips = [train_clip(rng, int(dataset.videos.frames[index]), SEQ_LEN, 1) for _ in range(2)]
    decoded = []
    for record in records.values():
        jpegs = msgpack.unpackb(record[index], raw=True)
        decoded.append([[Image.open(io.BytesIO(jpegs[i])).convert("RGB") for i in clip] for clip in clips])
    result = []
    for view in views:
        width, height = decoded[0][0][0].size
        top, left, h, w = draw_crop(rng, height, width)
        draws = draw_augmentation(rng, view.strength, SEQ_LEN)
        for streams in decoded:
            frames = [plain_frame(frame.crop((left, top, left + w, top + h)), draws, channel)
                      for frame, channel in zip(streams[view.clip], draws["grey_channel"], strict=True)]
            result.append(torch.stack(frames, 1))
    return torch.stack(result).view(2, len(records), 3, SEQ_LEN, SIZE, SIZE)


def plain_frame(frame: Image.Image, draws: dict[str, np.ndarray], channel: int) -> torch.Tensor:
    frame = frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if (draws["jitter_factors"] != (1, 1, 1, 0)).any():
        for operation in draws["jitter_order"]:
            frame = JITTER[operation](frame, float(draws["jitter_factors"][operation]))
    if channel >= 0:
        frame = Image.merge("RGB", [frame.split()[channel]] * 3)
    if draws["blur_sigma"] > 0:
        frame = frame.filter(ImageFilter.GaussianBlur(float(draws["blur_sigma"])))
    if draws["flip"]:
        frame = TF.hflip(frame)
    return TF.normalize(TF.to_tensor(frame), MEAN, STD)


def frames_needed(dataset: ClipDataset, keys: list[tuple[int, int]]) -> list[bytes]:
    """The JPEGs that ``dataset`` decodes for the samples of ``keys``."""
    seen = []
    clip_dataset.decode = lambda jpeg: seen.append(jpeg) or crop.decode(jpeg)
    try:
        for key in keys:
            dataset[key]
    finally:
        clip_dataset.decode = crop.decode
    return seen


def compare(name: str, stores: dict[str, VideoStore], samples: int, repeats: int) -> None:
    """Time them side by side, ``repeats`` times, and print medians and ranges in ms per sample."""
    dataset, encoded = make_dataset(stores), make_dataset(stores, encoded=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys = [(i // len(dataset), i % len(dataset)) for i in range(samples)]
    records = {}
    for stream, store in stores.items():
        every = [store.read_frames(position, range(store.num_frames(position))) for position in range(len(store))]
        records[stream] = [pack_frames(frames) for frames in every]
    jpegs = frames_needed(dataset, keys)
    batch = join_jpegs([encoded[key] for key in keys])
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: [plain_sample(dataset, records, *key) for key in keys],
        "decode": lambda: [crop.decode(jpeg).shape for jpeg in jpegs],
        "ours": lambda: [dataset[key]["clips"].shape for key in keys],
        "encoded": lambda: [encoded[key]["frames"].shape for key in keys],
        f"device ({device})": lambda: encoded.with_clips(batch, device)["clips"].float().mean().item(),
    }
    times = measure(work, repeats, samples)
    print(f"{name}: {len(jpegs) / samples:.1f} frames of {np.mean([len(j) for j in jpegs]) / 1e3:.1f} kB per sample")
    for kind, values in times.items():
        print(f"  {kind:14s}{spread(values)} ms per sample, {1e3 / statistics.median(values):.1f}/s")
    plain, decode, ours = (statistics.median(times[kind]) for kind in ("plain", "decode", "ours"))
    print(f"  ours is {plain / ours:.2f} x the plain pipeline and takes {ours / decode:.2f} x the pure decoding")


def measure(work: dict[str, Callable[[], object]], repeats: int, per: int) -> dict[str, list[float]]:
    """Milliseconds per unit of each kind of ``work``, which does ``per`` units; after a round that warms up."""
    times: dict[str, list[float]] = {kind: [] for kind in work}
    for _ in range(repeats + 1):
        for kind, run in work.items():
            began = clock()
            run()
            times[kind].append((clock() - began) / per * 1e3)
    return {kind: values[1:] for kind, values in times.items()}


def clock() -> float:
    return time.process_time() if "--processor_time" in sys.argv else time.perf_counter()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def decoders(stores: dict[str, VideoStore], repeats: int) -> None:
    """Time the JPEG decoders at hand on a video's frames, thrown away one by one or kept until all are decoded."""
    candidates: dict[str, Callable[[bytes], object]] = {
        "Pillow": lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        "OpenCV": crop.decode,
    }
    if hasattr(torchvision.io, "decode_jpeg"):  # deprecated since 0.29
        warnings.simplefilter("ignore", DeprecationWarning)
        candidates["torchvision"] = lambda jpeg: torchvision.io.decode_jpeg(
            torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy()), torchvision.io.ImageReadMode.RGB)
    if importlib.util.find_spec("simplejpeg"):
        candidates["simplejpeg"] = importlib.import_module("simplejpeg").decode_jpeg
    for stream, store in stores.items():
        jpegs = store.read_frames(0, range(min(48, store.num_frames(0))))
        work = {f"{name}{', kept' * keep}": partial(decode_all, decode, jpegs, keep)
                for name, decode in candidates.items() for keep in (False, True)}
        for name, values in measure(work, repeats, len(jpegs)).items():
            print(f"decoding {stream}, {name}: {spread(values)} ms per frame")


def decode_all(decode: Callable[[bytes], object], jpegs: list[bytes], keep: bool) -> None:
    kept = []
    for jpeg in jpegs:
        frame = decode(jpeg)
        if keep:
            kept.append(frame)


def scaling(stores: dict[str, VideoStore], workers: int, epochs: int) -> None:
    """Print the rate of DataLoaders with 1..workers workers, and the memory that a worker has for itself."""
    batch_size = len(next(iter(stores.values())))
    for count in range(1, workers + 1):
        loader = make_loader(make_dataset(stores), batch_size, count, 0, 1, torch.device("cpu"))
        rates, memory = [], []
        for epoch in range(epochs + 1):  # the first one starts the workers
            began = time.perf_counter()
            loader.batch_sampler.start_at(epoch)
            for batch in loader:
                assert batch["clips"].is_shared()
            rates.append(batch_size * len(loader) / (time.perf_counter() - began))
            memory.append(max(_own_memory(worker.pid) for worker in loader._iterator._workers))
        print(f"{count} worker(s): {spread(rates[1:])} samples/s; MB of its own per worker, epoch by epoch: {memory}")


def _own_memory(pid: int) -> int:
    """Memory of a process in MB without what it shares with its parent and without mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return int(dict(line.split(":", 1) for line in lines)["Private_Dirty"].split()[0]) // 1024


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--video", nargs="+", default=[], metavar="FILE", help="video files; drawn ones if none")
    parser.add_argument("--samples", type=positive_int, default=24, help="samples per measurement")
    parser.add_argument("--repeats", type=positive_int, default=5, help="measurements, of which the median is given")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="up to how many")
    parser.add_argument("--processor_time", action="store_true", help="not time on the clock, but for the DataLoaders'")
    args = parser.parse_args(argv)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, OpenCV "
          f"{cv2.__version__}, Pillow {Image.__version__}, Python {platform.python_version()}: python -m "
          f"benchmarks.loader {' '.join(sys.argv[1:] if argv is None else argv)}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        stores = make_stores(args.video, Path(folder))
        decoders(stores, args.repeats)
        compare("RGB, two views", {"rgb": stores["rgb"]}, args.samples, args.repeats)
        compare("RGB and flow, two views", stores, args.samples, args.repeats)
        scaling({"rgb": stores["rgb"]}, args.workers, args.repeats)


if __name__ == "__main__":
    main()

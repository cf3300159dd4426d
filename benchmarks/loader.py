"""Loading: samples per second of one worker, against a plain pipeline and against the pure JPEG decoding it needs.

    python -m benchmarks.loader [--video FILE...]

The videos, drawn ones if none are given, become databases in a temporary folder (short side 256, JPEG quality 80; flow
by DIS). Compared are, for the same draws, two views of a video in RGB and in RGB and flow:
  plain   what the original does: unpack the record, Pillow-decode both clips whole, then frame by frame crop, resize,
          colour jitter, grey, blur, flip, to float tensor, normalise
  decode  nothing but decoding the JPEGs that the drawn views use
  ours    an item of ClipDataset (the colour work is left to the training device: see utils/augment.py)
and then DataLoaders of ours with a growing number of workers. Everything runs on one thread per process. Medians and
ranges are of ``--repeats`` rounds in turn; a DataLoader's round is an epoch.
"""

import argparse
import io
import itertools
import os
import statistics
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

from benchmarks.common import in_turns, print_setting, spread
from dataset.augmentation import MEAN, STD, draw_augmentation, draw_crop, draw_pretrain_views
from dataset.clip_dataset import ClipDataset
from dataset.clips import train_clip
from dataset.jpeg import decode, encode
from dataset.loader import make_loader
from dataset.preparation.flow import compute_flow, encode_flow
from dataset.preparation.frames import resize
from dataset.preparation.synthetic import CLASSES, render
from dataset.registry import Videos
from dataset.store import VideoStore, pack_frames, write_store
from utils.errors import UserError, one_line_errors
from utils.launch import set_up_cpu
from utils.options import Parser, positive_int

SEQ_LEN, SIZE = 32, 128
JITTER = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def read_frames(path: str) -> list[np.ndarray]:
    """Up to 120 frames of a video file, BGR."""
    capture, frames = cv2.VideoCapture(path), []
    while len(frames) < 120 and (read := capture.read())[0]:
        frames.append(read[1])
    if len(frames) <= SEQ_LEN + 1:
        raise UserError(
            f"--video {path}: {len(frames)} frames can be read, more than {SEQ_LEN + 1} are needed"
        )
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
            jpegs = [encode(picture, 80) for picture in pictures]
            records[stream][f"video/{number}"] = pack_frames(jpegs), len(jpegs)
    for stream, record in records.items():
        write_store(folder / f"{stream}.lmdb", list(record), record.__getitem__)
    return {stream: VideoStore(folder / f"{stream}.lmdb") for stream in records}


def make_dataset(stores: dict[str, VideoStore], copies: int = 1) -> ClipDataset:
    store = next(iter(stores.values()))
    index = np.tile(np.arange(len(store)), copies)
    videos = Videos(
        stores,
        [store.names[i] for i in index],
        dict.fromkeys(stores, index),
        store.frame_counts()[index],
        index,
        index,
        ["video"],
    )
    return ClipDataset(videos, SEQ_LEN, 1, SIZE, seed=0)


def drawn_jpegs(dataset: ClipDataset, epoch: int, index: int) -> list[bytes]:
    """The JPEGs that an item of the dataset decodes."""
    rng = np.random.default_rng((dataset.seed, epoch, index))
    used = {view.clip for view in draw_pretrain_views(rng)}
    clips = [train_clip(rng, int(dataset.videos.frames[index]), SEQ_LEN, 1) for _ in range(1 + max(used))]
    needed = np.unique([clips[clip] for clip in used]).tolist()
    return [jpeg for store in dataset.videos.stores.values() for jpeg in store.read_frames(index, needed)]


def plain_sample(
    dataset: ClipDataset, records: dict[str, list[bytes]], epoch: int, index: int
) -> torch.Tensor:
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
            frames = [
                plain_frame(frame.crop((left, top, left + w, top + h)), draws, channel)
                for frame, channel in zip(streams[view.clip], draws["grey_channel"], strict=True)
            ]
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


def compare(name: str, stores: dict[str, VideoStore], args: argparse.Namespace) -> None:
    """Time them side by side and print medians and ranges in ms per sample."""
    dataset = make_dataset(stores)
    samples = args.samples
    keys = [(i // len(dataset), i % len(dataset)) for i in range(samples)]
    records = {
        stream: [pack_frames(store.read_frames(i, range(store.num_frames(i)))) for i in range(len(store))]
        for stream, store in stores.items()
    }
    jpegs = [jpeg for key in keys for jpeg in drawn_jpegs(dataset, *key)]
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: [plain_sample(dataset, records, *key) for key in keys],
        "decode": lambda: decode_all(decode, jpegs),
        "ours": lambda: [dataset[key]["clips"].shape for key in keys],
    }
    times = measure(work, samples, args)
    print(
        f"{name}: {len(jpegs) / samples:.1f} frames of {np.mean([len(j) for j in jpegs]) / 1e3:.1f} kB per sample"
    )
    for kind, values in times.items():
        print(f"  {kind:14s}{spread(values)} ms per sample, {1e3 / statistics.median(values):.1f}/s")
    plain, decoding, ours = (statistics.median(times[kind]) for kind in ("plain", "decode", "ours"))
    print(
        f"  ours is {plain / ours:.2f} x the plain pipeline and takes {ours / decoding:.2f} x the pure decoding"
    )


def measure(
    work: dict[str, Callable[[], object]], per: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds per unit of each kind of ``work``, which does ``per`` units; after a round that warms up."""
    runs = in_turns(work, args.repeats + 1)
    return {
        kind: [(processor if args.processor_time else wall) / per * 1e3 for _, wall, processor in rounds[1:]]
        for kind, rounds in runs.items()
    }


def decoders(stores: dict[str, VideoStore], args: argparse.Namespace) -> None:
    """Time the JPEG decoders at hand on a video's frames."""
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's, since 0.29
    candidates: dict[str, Callable[[bytes], np.ndarray | torch.Tensor]] = {
        "Pillow": lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        "OpenCV": decode,
        "torchvision": lambda jpeg: torchvision.io.decode_jpeg(
            torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
        ),
    }
    for stream, store in stores.items():
        jpegs = store.read_frames(0, range(min(48, store.num_frames(0))))
        work = {name: partial(decode_all, decoder, jpegs) for name, decoder in candidates.items()}
        for name, values in measure(work, len(jpegs), args).items():
            print(f"decoding {stream}, {name}: {spread(values)} ms per frame")


def decode_all(decoder: Callable[[bytes], np.ndarray | torch.Tensor], jpegs: list[bytes]) -> None:
    for jpeg in jpegs:
        decoder(jpeg)


def scaling(stores: dict[str, VideoStore], workers: int, epochs: int) -> None:
    """Print the rate of DataLoaders with 1..workers workers, and the memory that a worker has for itself."""
    batch_size = 4
    for count in range(1, workers + 1):
        loader = make_loader(make_dataset(stores, copies=16), batch_size, count, 0, 1, torch.device("cpu"))
        rates, memory = [], []
        for epoch in range(epochs + 1):  # the first one starts the workers
            began = time.perf_counter()
            loader.batch_sampler.start_at(epoch)
            for batch in loader:
                assert batch["clips"].is_shared()
            rates.append(batch_size * len(loader) / (time.perf_counter() - began))
            memory.append(max(_own_memory(worker.pid) for worker in loader._iterator._workers))
        print(
            f"{count} worker(s): {spread(rates[1:])} samples/s; MB of its own per worker, epoch by epoch: {memory}"
        )


def _own_memory(pid: int) -> int:
    """Memory of a process in MB without what it shares with its parent and without mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return int(dict(line.split(":", 1) for line in lines)["Private_Dirty"].split()[0]) // 1024


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument(
        "--video", nargs="+", default=[], metavar="FILE", help="video files; drawn ones if none"
    )
    parser.add_argument("--samples", type=positive_int, default=24, help="samples per measurement")
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="measurements, of which the median is given"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="up to how many")
    parser.add_argument(
        "--processor_time", action="store_true", help="not time on the clock, but for the DataLoaders'"
    )
    args = parser.parse_args(argv)
    print_setting(argv)
    set_up_cpu()  # malloc as in training
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        stores = make_stores(args.video, Path(folder))
        decoders(stores, args)
        compare("RGB, two views", {"rgb": stores["rgb"]}, args)
        compare("RGB and flow, two views", stores, args)
        scaling({"rgb": stores["rgb"]}, args.workers, args.repeats)


if __name__ == "__main__":
    main()

"""Loading: milliseconds per sample of one process, against a plain pipeline and the pure decoding it needs.

    python -m benchmarks.loader [--video FILE...]

The videos, drawn ones if none are given, become databases (JPEG quality 80; flow by DIS) in a temporary
folder. Compared are two views of the same clips of a video, in RGB, and in RGB and flow:
  plain     as the original: the record unpacked, both clips decoded by Pillow, then torchvision's transforms
  decoding  nothing but decoding the JPEGs that the views use
  database  an item of ClipDataset (the colour work is left to the training device)
  files     the same item from the video files, RGB alone
  whole     the same, but each file is decoded from its first to its last frame, as many readers do
and then DataLoaders of a growing number of processes. Everything runs on one thread per process. Medians and
ranges are of ``--repeats`` rounds in turn; a DataLoader's round is an epoch.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import msgpack
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.common import in_turns, print_setting, spread
from dataset.augmentation import MEAN, STD, View, draw_pretrain_views
from dataset.clip_dataset import ClipDataset
from dataset.clips import train_clip
from dataset.jpeg import decode
from dataset.loader import make_loader
from dataset.preparation import prepare
from dataset.preparation.synthetic import CLASSES, render
from dataset.registry import open_videos
from dataset.source import FrameSource
from dataset.video_files import VideoFiles
from utils.cores import available_cores
from utils.errors import one_line_errors
from utils.launch import set_up_cpu
from utils.options import Parser, positive_int

SEQ_LEN, SIZE = 32, 128
CROP = v2.RandomResizedCrop(SIZE, scale=(0.2, 1), interpolation=v2.InterpolationMode.BICUBIC)
LIGHT = [
    v2.RandomHorizontalFlip(),
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(MEAN, STD),
]
COLOUR = [
    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
    v2.RandomGrayscale(0.2),
    v2.RandomApply([v2.Lambda(lambda frame: frame.filter(ImageFilter.GaussianBlur(1)))], 0.5),
]
PLAIN = {"light": v2.Compose([CROP, *LIGHT]), "strong": v2.Compose([CROP, *COLOUR, *LIGHT])}  # of whole clips


def draw_video(path: Path, number: int) -> None:
    """A drawn video of 120 frames of 454x256 pixels, H.264."""
    frames = render(np.random.default_rng(number), CLASSES[number], 454, 120)[:, :256]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        file.mux(stream.encode())


def make_data(paths: list[str], folder: Path) -> None:
    """DATA_ROOT/some in ``folder``: the video files and databases of their frames and flow."""
    clips = folder / "some/videos"
    clips.mkdir(parents=True)
    for path in paths:
        (clips / Path(path).name).symlink_to(Path(path).resolve())
    for number in range(0 if paths else 4):
        draw_video(clips / f"{number}.mp4", number)
    words = f"some --videos {clips} --out {folder}/made --flow dis --quality 80 -j 1"
    prepare.main(words.split())
    for path in sorted((folder / "made").glob("*.lmdb")):
        path.rename(folder / "some" / path.name)
        print(f"{path.name}: {(folder / 'some' / path.name).stat().st_size / 1e6:.1f} MB")
    print(f"video files: {sum(path.stat().st_size for path in clips.glob('[!.]*')) / 1e6:.1f} MB")


class WholeFiles(VideoFiles):
    """Video files of which every frame is decoded, whichever are asked for."""

    def frames(self, video: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        whole = list(super().frames(video, range(self.num_frames(video))))
        yield from (whole[i] for i in indices)


def make_dataset(name: str, folder: Path, source: FrameSource | None = None) -> ClipDataset:
    videos = open_videos(name, "train", SEQ_LEN, 1, folder)
    if source:
        videos = replace(videos, stores={"rgb": source})
    return ClipDataset(videos, SEQ_LEN, 1, SIZE, seed=0)


def drawn_clips(dataset: ClipDataset, epoch: int, index: int) -> tuple[Sequence[View], list[np.ndarray]]:
    """The views of an item of the dataset, and the frames of the clip of each."""
    rng = np.random.default_rng((dataset.seed, epoch, index))
    views = draw_pretrain_views(rng)
    clips = [train_clip(rng, int(dataset.videos.frames[index]), SEQ_LEN, 1) for _ in range(2)]
    return views, [clips[view.clip] for view in views]


def used_jpegs(dataset: ClipDataset, epoch: int, index: int) -> list[bytes]:
    """The JPEGs that an item of the dataset decodes."""
    needed = np.unique(drawn_clips(dataset, epoch, index)[1]).tolist()
    return [jpeg for store in dataset.videos.stores.values() for jpeg in store.read_frames(index, needed)]


def plain_sample(dataset: ClipDataset, records: list[list[bytes]], epoch: int, index: int) -> Tensor:
    """Two views, float32 [2, streams * T, 3, S, S], by the plain pipeline from ``records[stream][video]``."""
    jpegs = [msgpack.unpackb(stream[index], raw=True) for stream in records]
    result = []
    for view, clip in zip(*drawn_clips(dataset, epoch, index), strict=True):
        frames = [Image.open(io.BytesIO(stream[i])).convert("RGB") for stream in jpegs for i in clip]
        result.append(torch.stack(PLAIN[view.strength](frames)))
    return torch.stack(result)


def compare(dataset: ClipDataset, others: dict[str, ClipDataset], args: argparse.Namespace) -> None:
    """Time them side by side and print medians and ranges in ms per sample."""
    stores = dataset.videos.stores
    keys = [(i // len(dataset), i % len(dataset)) for i in range(args.samples)]
    records = [[store.read_record(i) for i in range(len(store))] for store in stores.values()]
    jpegs = [jpeg for key in keys for jpeg in used_jpegs(dataset, *key)]
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: [plain_sample(dataset, records, *key).shape for key in keys],
        "decoding": lambda: [decode(jpeg).shape for jpeg in jpegs],
        "database": lambda: [dataset[key]["clips"].shape for key in keys],
    }
    for name, other in others.items():
        work[name] = lambda other=other: [other[key]["clips"].shape for key in keys]
    runs = in_turns(work, args.repeats + 1)
    clock = 2 if args.processor_time else 1
    times = {name: [run[clock] / len(keys) * 1e3 for run in rounds[1:]] for name, rounds in runs.items()}
    middle = {name: statistics.median(values) for name, values in times.items()}
    kilobytes = np.mean([len(jpeg) for jpeg in jpegs]) / 1e3
    print(f"{' and '.join(stores)}: {len(jpegs) / len(keys):.1f} frames of {kilobytes:.1f} kB per sample")
    for name, values in times.items():
        print(
            f"  {name:8s} {spread(values)} ms per sample, "
            f"{middle['plain'] / middle[name]:.2f} x as fast as plain, "
            f"{middle[name] / middle['decoding']:.2f} x the decoding"
        )


def scaling(dataset: ClipDataset, workers: int, epochs: int) -> None:
    """Print the rate of DataLoaders with 1..workers workers."""
    batch_size = 4
    dataset.videos = dataset.videos.subset(np.tile(np.arange(len(dataset)), 16))
    for count in range(1, workers + 1):
        loader = make_loader(dataset, batch_size, count, 0, 1, torch.device("cpu"))
        rates = []
        for epoch in range(epochs + 1):  # the first one starts the workers
            began = time.perf_counter()
            loader.batch_sampler.start_at(epoch)
            assert all(batch["clips"].is_shared() for batch in loader)
            rates.append(batch_size * len(loader) / (time.perf_counter() - began))
        print(f"{count} worker(s): {spread(rates[1:])} samples/s")


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
    parser.add_argument("--workers", type=int, default=available_cores(), help="up to how many")
    parser.add_argument(
        "--processor_time", action="store_true", help="not time on the clock, but for the DataLoaders'"
    )
    args = parser.parse_args(argv)
    print_setting(argv)
    set_up_cpu()  # malloc as in training
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(args.video, folder)
        rgb, both = (make_dataset(f"some{ending}", folder) for ending in ("-2clip", "-2stream-2clip"))
        files = {"files": VideoFiles(folder / "some/videos"), "whole": WholeFiles(folder / "some/videos")}
        compare(
            rgb, {kind: make_dataset("some-2clip", folder, source) for kind, source in files.items()}, args
        )
        compare(both, {}, args)
        scaling(rgb, args.workers, args.repeats)


if __name__ == "__main__":
    main()

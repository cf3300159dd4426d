"""Loading: an item of training against a plain pipeline and the pure decoding that it needs.

    python -m benchmarks.loader [--video FILE...]

The videos, drawn ones if none are given, become databases (JPEG quality 80; flow by DIS). Compared, in one
thread, are two views of the same clips, 32x128x128, in RGB, and in RGB and flow:
  plain     as the original: the record unpacked, both clips decoded by Pillow, then torchvision's transforms
  decoding  nothing but decoding the JPEGs that the views use
  database  an item of ClipDataset (the colour work is left to the training device)
  files     the same item from the video files, RGB alone
  whole     the same, but each file is decoded from its first to its last frame, as many readers do
and then loaders of one process and of more.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import msgpack
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.common import compare, setting
from dataset.augmentation import MEAN, STD, View, draw_pretrain_views
from dataset.clip_dataset import ClipDataset
from dataset.clips import train_clip
from dataset.jpeg import decode
from dataset.loader import make_loader
from dataset.preparation import prepare
from dataset.preparation.synthetic import write_footage
from dataset.registry import Videos, open_videos
from dataset.source import FrameSource
from dataset.video_files import VideoFiles
from utils.cores import available_cores
from utils.errors import one_line_errors
from utils.launch import World, set_up_cpu
from utils.options import Parser, positive_int

SEQ_LEN, SIZE, SAMPLES = 32, 128, 24
CROP = v2.RandomResizedCrop(SIZE, scale=(0.2, 1), interpolation=v2.InterpolationMode.BICUBIC)
JITTER = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
GREY = v2.RandomGrayscale(0.2)
BLUR = v2.RandomApply([v2.Lambda(lambda frame: frame.filter(ImageFilter.GaussianBlur(1)))], 0.5)
FLIP = v2.RandomHorizontalFlip()
TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
PLAIN = {  # of whole clips
    "light": v2.Compose([CROP, FLIP, TO_TENSOR]),
    "strong": v2.Compose([CROP, JITTER, GREY, BLUR, FLIP, TO_TENSOR]),
}


class WholeFiles(VideoFiles):
    """Video files of which every frame is decoded, whichever are asked for."""

    def frames(self, video: int, indices: Sequence[int]) -> Iterator[np.ndarray]:
        whole = list(super().frames(video, range(self.frame_counts()[video])))
        yield from (whole[i] for i in indices)


def make_data(paths: list[str], folder: Path) -> None:
    """Videos and data of ``folder``: video files and the databases of their frames and flow."""
    if not paths:
        write_footage(folder / "videos", 2, 256, 64, 0, available_cores())
    for path in paths:
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "videos" / Path(path).name).symlink_to(Path(path).resolve())
    words = f"data --videos {folder}/videos --out {folder}/data --flow dis --quality 80 -j 1"
    prepare.main(words.split())


def make_dataset(name: str, folder: Path, source: FrameSource | None = None) -> ClipDataset:
    """The training part, its RGB from another ``source`` if one is given."""
    videos = open_videos(name, "train", SEQ_LEN, 1, folder)
    if source:
        videos.stores["rgb"] = source
        videos.positions["rgb"] = np.array([source.names.index(name) for name in videos.names])
    return ClipDataset(videos, SEQ_LEN, 1, SIZE, seed=0)


def drawn_clips(dataset: ClipDataset, epoch: int, index: int) -> tuple[Sequence[View], list[np.ndarray]]:
    """The views of an item of the dataset, and the frames of the clip of each."""
    rng = np.random.default_rng((dataset.seed, epoch, index))
    views = draw_pretrain_views(rng)
    clips = [train_clip(rng, int(dataset.videos.frames[index]), SEQ_LEN, 1) for _ in range(2)]
    return views, [clips[view.clip] for view in views]


def read_jpegs(videos: Videos, index: int) -> list[list[bytes]]:
    """The whole record of a video in each stream."""
    records = [store.read_record(videos.positions[stream][index]) for stream, store in videos.stores.items()]
    return [msgpack.unpackb(record, raw=True) for record in records]


def plain_sample(dataset: ClipDataset, epoch: int, index: int) -> Tensor:
    """Two views, float32 [2, streams * T, 3, S, S], by the plain pipeline."""
    jpegs = read_jpegs(dataset.videos, index)
    result = []
    for view, clip in zip(*drawn_clips(dataset, epoch, index), strict=True):
        frames = [Image.open(io.BytesIO(stream[i])).convert("RGB") for stream in jpegs for i in clip]
        result.append(torch.stack(PLAIN[view.strength](frames)))
    return torch.stack(result)


def compare_items(dataset: ClipDataset, others: dict[str, ClipDataset], repeats: int) -> None:
    keys = [(i // len(dataset), i % len(dataset)) for i in range(SAMPLES)]
    jpegs = []
    for epoch, index in keys:
        used = np.unique(drawn_clips(dataset, epoch, index)[1])
        jpegs += [stream[i] for stream in read_jpegs(dataset.videos, index) for i in used]
    work = {
        "plain": lambda: [plain_sample(dataset, *key).shape for key in keys],
        "decoding": lambda: [decode(jpeg).shape for jpeg in jpegs],
    }
    for name, items in {"database": dataset, **others}.items():
        work[name] = lambda items=items: [items[key]["clips"].shape for key in keys]
    streams = " and ".join(dataset.videos.stores)
    kilobytes = np.mean([len(jpeg) for jpeg in jpegs]) / 1e3
    compare(f"{streams}, {len(jpegs) / SAMPLES:.1f} frames of {kilobytes:.1f} kB", work, repeats, SAMPLES)


def compare_loaders(dataset: ClipDataset, repeats: int) -> None:
    """Epochs of loaders of one process up to as many as there are cores."""
    dataset.videos = dataset.videos.subset(np.arange(64) % len(dataset))
    loaders = {}
    for processes in range(1, available_cores() + 1):
        loader = make_loader(dataset, 4, processes, World(0, 1, torch.device("cpu")))
        loaders[f"{processes} processes"] = lambda loader=loader: [None for _ in loader]
    compare("loader", loaders, repeats, len(dataset))


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--video", nargs="+", default=[], metavar="FILE", help="files; drawn ones if none")
    parser.add_argument("--repeats", type=positive_int, default=5, help="rounds, of which medians are given")
    args = parser.parse_args(argv)
    print(setting())
    set_up_cpu()  # malloc as in training
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(args.video, folder)
        rgb = make_dataset("data-2clip", folder)
        files = make_dataset("data-2clip", folder, VideoFiles(folder / "videos"))
        whole = make_dataset("data-2clip", folder, WholeFiles(folder / "videos"))
        compare_items(rgb, {"files": files, "whole": whole}, args.repeats)
        compare_items(make_dataset("data-2stream-2clip", folder), {}, args.repeats)
        compare_loaders(rgb, args.repeats)


if __name__ == "__main__":
    main()

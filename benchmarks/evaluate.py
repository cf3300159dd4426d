"""Retrieval features of a test split: ours against the plain loop, which takes one video at a time.

    python -m benchmarks.evaluate [--dataset NAME --data_root DIR]

The plain loop is what the original does: a video's windows are one batch, and each window decodes all its
frames. Both run with random weights on the same videos and device, ours on all cores with its loader's
processes; features must be equal. Without --dataset, a temporary database of smooth noise (short side 256,
JPEG quality 80) is used.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from backbone.select_backbone import select_backbone
from benchmarks.common import in_turns, print_setting
from dataset.augmentation import MEAN, STD
from dataset.clips import test_windows
from dataset.crop import crop_resize
from dataset.jpeg import encode
from dataset.options import add_clip_options, add_database_options
from dataset.registry import Videos
from dataset.store import pack_frames, write_store
from dataset.window_dataset import crop_boxes
from eval.predict import features_of, read_videos
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.options import Parser, positive_int


def make_noise(folder: Path, videos: int = 24, frames: int = 90) -> None:
    """FOLDER/noise/rgb.lmdb: moving smooth noise of 256 x 340 pixels, all for testing."""

    def record_of(name: str) -> tuple[bytes, int]:
        rng = np.random.default_rng(int(name.removeprefix("A/v")))
        noise = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        image = cv2.resize(noise, (460, 300), interpolation=cv2.INTER_CUBIC)
        shown = [image[t % 40 : t % 40 + 256, t % 100 : t % 100 + 340] for t in range(frames)]
        return pack_frames([encode(frame, 80) for frame in shown]), frames

    (folder / "noise").mkdir()
    names = [f"A/v{i}" for i in range(videos)]
    write_store(folder / "noise/rgb.lmdb", names, record_of)
    (folder / "noise/split.csv").write_text("".join(f"{name},test\n" for name in names))


@torch.no_grad()
def plain(network: nn.Module, videos: Videos, args: argparse.Namespace, device: torch.device) -> Tensor:
    """Features [V, C], one video at a time, every window decoded by itself."""
    ((stream, source),) = videos.stores.items()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1, 1) for v in (MEAN, STD))
    features = []
    for position, count in zip(videos.positions[stream].tolist(), videos.frames.tolist(), strict=True):
        clips = []
        for window in test_windows(count, args.seq_len, args.ds):
            frames = list(source.frames(position, window.tolist()))
            clips.append(crop_resize(frames, crop_boxes(*frames[0].shape[:2], 1)[0], args.img_dim))
        clips = torch.stack(clips).to(device).permute(0, 4, 1, 2, 3).contiguous() / 255  # [W, 3, T, S, S]
        features.append(network((clips - mean) / std).mean(dim=(2, 3, 4)).mean(dim=0))
    return torch.stack(features).cpu()


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--dataset", help="dataset whose test split is used, NAME[-f]; noise if not given")
    add_database_options(parser)
    add_clip_options(parser, workers=2)
    parser.add_argument("--repeat", type=positive_int, default=3, help="runs by turns; the fastest counts")
    parser.set_defaults(
        seq_len=8, img_dim=32, which_split=1, precision="fp32", channels_last=False, compile=False
    )
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    print_setting(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, param = select_backbone("s3d")
    network = network.eval().to(device)
    with tempfile.TemporaryDirectory() as folder:
        if not args.dataset:
            args.dataset, args.data_root = "noise", folder
            make_noise(Path(folder))
        (videos,) = read_videos(args, "test")

        def ours() -> Tensor:
            return features_of(network, param["feature_size"], videos, args, World(0, 1, device))[0]

        runs = in_turns({"plain": lambda: plain(network, videos, args, device), "ours": ours}, args.repeat)
    (slow, *_), (fast, *_) = (rounds[0] for rounds in runs.values())
    difference = ((slow - fast).abs().max() / slow.abs().max()).item()
    if difference > 1e-5:
        raise UserError(f"features differ by {difference:.1e} of the largest; this should not happen")
    seconds = {name: min(wall for _, wall, _ in rounds) for name, rounds in runs.items()}
    print(
        f"{device}, {len(videos)} videos: plain {seconds['plain']:.2f} s, ours {seconds['ours']:.2f} s, "
        f"{seconds['plain'] / seconds['ours']:.2f} times as fast; features equal within {difference:.1e} of "
        "the largest"
    )


if __name__ == "__main__":
    main()

"""Retrieval features: ours against a plain loop, which takes one video at a time.

    python -m benchmarks.evaluate

The plain loop is what the original does: a video's windows are one batch, and each window decodes all its
frames; it has one thread. Both have the same random weights and videos of noise; features must be equal.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.select_backbone import select_backbone
from benchmarks.common import compare, make_noise, setting
from dataset.augmentation import evaluation_input
from dataset.clips import test_windows
from dataset.crop import crop_resize
from dataset.options import add_clip_options
from dataset.registry import Videos, open_videos
from dataset.window_dataset import crop_boxes
from eval.predict import features_of
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.options import Parser, positive_int


@torch.no_grad()
def plain(network: nn.Module, videos: Videos, args: argparse.Namespace) -> Tensor:
    """Features [V, C], one video at a time, every window decoded by itself."""
    features = []
    for video, count in zip(videos.positions["rgb"].tolist(), videos.frames.tolist(), strict=True):
        clips = []
        for window in test_windows(count, args.seq_len, args.ds):
            frames = list(videos.stores["rgb"].frames(video, window.tolist()))
            clips.append(crop_resize(frames, crop_boxes(*frames[0].shape[:2], 1)[0], args.img_dim))
        clips = evaluation_input(torch.stack(clips), torch.zeros(len(clips)).bool(), channels_last=False)
        features.append(network(clips).mean(dim=(0, 2, 3, 4)))
    return torch.stack(features)


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    add_clip_options(parser, workers=2)
    parser.add_argument("--repeat", type=positive_int, default=3, help="runs by turns")
    parser.set_defaults(seq_len=8, img_dim=32, precision="fp32", channels_last=False, compile=False)
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    print(setting())
    torch.set_num_threads(1)
    network, param = select_backbone("s3d")
    world = World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        make_noise(Path(folder, "noise"), 24, 90)
        videos = open_videos("noise", "train", args.seq_len, args.ds, folder)
        work = {
            "plain": partial(plain, network.eval(), videos, args),
            "ours": lambda: features_of(network, param["feature_size"], videos, args, world)[0],
        }
        runs = compare(f"{len(videos)} videos", work, args.repeat, len(videos))
    slow, fast = (own[0].result for own in runs.values())
    difference = ((slow - fast).abs().max() / slow.abs().max()).item()
    print(f"features differ by {difference:.1e} of the largest")
    if difference > 1e-5:
        raise UserError("features differ; this should not happen")


if __name__ == "__main__":
    main()

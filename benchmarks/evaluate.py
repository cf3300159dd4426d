"""Retrieval features of a test split: ours against the plain loop, which takes one video at a time.

    python -m benchmarks.evaluate [--dataset NAME --data_root DIR]

The plain loop is what the original does: a video's windows are one batch, and each window decodes all its frames. Both
run on the same videos, network and device, ours on all cores with its loader's workers; features must be equal.
Without --dataset, a temporary database of smooth noise (short side 256, JPEG quality 80) is used.
"""

import argparse
import os
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
from dataset.jpeg import decode, encode
from dataset.registry import Videos, open_videos
from dataset.store import pack_frames, write_store
from dataset.window_dataset import WindowDataset, crop_boxes
from eval.evaluate import for_inference
from eval.extract import average_over_windows, views_of
from model.weights import load_backbone
from utils.checkpoint import load_checkpoint
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.options import Parser, positive_int


def make_noise(folder: Path, videos: int, frames: int) -> None:
    """FOLDER/noise/rgb.lmdb: moving smooth noise of 256 x 340 pixels, all for testing."""

    def record_of(name: str) -> tuple[bytes, int]:
        rng = np.random.default_rng(int(name.rsplit("v", 1)[1]))
        image = cv2.resize(
            rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), (460, 300), interpolation=cv2.INTER_CUBIC
        )
        shown = [image[t % 40 : t % 40 + 256, t % 100 : t % 100 + 340] for t in range(frames)]
        jpegs = [encode(frame, 80) for frame in shown]
        return pack_frames(jpegs), frames

    (folder / "noise").mkdir()
    names = [f"A/v{i}" for i in range(videos)]
    write_store(folder / "noise/rgb.lmdb", names, record_of)
    (folder / "noise/split.csv").write_text("".join(f"{name},test\n" for name in names))


@torch.no_grad()
def plain(network: nn.Module, videos: Videos, args: argparse.Namespace, device: torch.device) -> Tensor:
    """Features [V, C], one video at a time, every window decoded by itself."""
    ((stream, store),) = videos.stores.items()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1, 1) for v in (MEAN, STD))
    features = []
    for position, count in zip(videos.positions[stream].tolist(), videos.frames.tolist(), strict=True):
        clips = []
        for window in test_windows(count, args.seq_len, args.ds):
            frames = [decode(jpeg) for jpeg in store.read_frames(position, window.tolist())]
            clips.append(crop_resize(frames, crop_boxes(*frames[0].shape[:2], 1)[0], args.img_dim))
        clips = torch.stack(clips).to(device).permute(0, 4, 1, 2, 3).contiguous() / 255  # [W, 3, T, S, S]
        features.append(network((clips - mean) / std).mean(dim=(2, 3, 4)).mean(dim=0))
    return torch.stack(features).cpu()


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--dataset", help="dataset whose test split is used, NAME[-f]")
    parser.add_argument("--data_root", help="folder of the datasets; $COCLR_DATA or ./data if not given")
    parser.add_argument("--net", default="s3d", choices=["s3d", "s3dg", "r50"], help="backbone")
    parser.add_argument("--test", metavar="CKPT", help="its weights; random ones if not given")
    parser.add_argument("--seq_len", type=positive_int, default=8, help="frames per clip")
    parser.add_argument("--ds", type=positive_int, default=1, help="stride between the frames of a clip")
    parser.add_argument("--img_dim", type=positive_int, default=32, help="side of the frames in pixels")
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, help="windows in one forward pass (ours)"
    )
    parser.add_argument("-j", "--workers", type=int, default=2, help="loader processes (ours)")
    parser.add_argument(
        "--threads", type=positive_int, default=1, help="threads of torch; ours uses all cores anyway"
    )
    parser.add_argument("--videos", type=positive_int, default=24, help="videos of noise")
    parser.add_argument(
        "--repeat", type=positive_int, default=3, help="runs of each, by turns; the fastest counts"
    )
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    print_setting(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    torch.manual_seed(0)
    network, param = select_backbone(args.net)
    if args.test:
        load_backbone(network, load_checkpoint(args.test), args.test)
    network = network.eval().to(device)
    layout = argparse.Namespace(channels_last=device.type == "cpu", compile=False)
    world = World(0, 1, device)
    with tempfile.TemporaryDirectory() as folder:
        if not args.dataset:
            make_noise(Path(folder), args.videos, frames=90)
        videos = open_videos(
            args.dataset or "noise", "test", args.seq_len, args.ds, args.data_root if args.dataset else folder
        )
        dataset = WindowDataset(videos, args.seq_len, args.ds, args.img_dim)

        def ours() -> Tensor:
            model = for_inference(network, layout, world)
            means, _ = average_over_windows(
                lambda clips: model(clips).mean(dim=(2, 3, 4)),
                param["feature_size"],
                dataset,
                views_of("center"),
                world,
                args.batch_size,
                args.workers,
                channels_last=layout.channels_last,
            )
            return means["center"]

        def loop() -> Tensor:
            return plain(network.to(memory_format=torch.contiguous_format), videos, args, device)

        runs = in_turns({"plain loop": loop, "ours": ours}, args.repeat)
    slow, fast = (rounds[0][0] for rounds in runs.values())
    difference = ((slow - fast).abs().max() / slow.abs().max()).item()
    if difference > 1e-5:
        raise UserError(f"features differ by {difference:.1e} of the largest; this should not happen")
    windows = sum(len(test_windows(int(n), args.seq_len, args.ds)) for n in videos.frames)
    print(
        f"{device}, plain loop on {args.threads} thread(s), ours on {len(os.sched_getaffinity(0))} core(s) with "
        f"{args.workers} workers; {len(videos)} videos, {windows} windows of {args.seq_len} frames, {args.img_dim} "
        "pixels"
    )
    walls, processor = ([min(run[i] for run in rounds) for rounds in runs.values()] for i in (1, 2))
    for name, wall, cpu in zip(runs, walls, processor, strict=True):
        print(f"{name:10s} {wall:7.2f} s  {len(videos) / wall:7.2f} videos/s  {cpu:7.2f} s of processor time")
    print(
        f"{walls[0] / walls[1]:.2f} times as fast, {processor[0] / processor[1]:.2f} times less processor time, "
        f"features equal within {difference:.1e} of the largest"
    )


if __name__ == "__main__":
    main()

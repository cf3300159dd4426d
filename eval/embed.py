"""Features of a folder of videos, which need no labels or lists, and the videos most like another one.

python -m eval.embed VIDEOS --weights CoCLR-ucf101-rgb [--like QUERY.mp4 --gallery FILE.html]
"""

import json
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbone.select_backbone import feature_shape, select_backbone
from dataset.catalogue import parse_name
from dataset.clips import test_windows
from dataset.options import add_clip_options
from dataset.registry import Videos
from dataset.splits import composed
from dataset.video_files import VideoFiles
from eval.metrics import centred
from eval.pictures import clips_of, gallery
from eval.predict import features_of
from eval.records import check_folder, content_digest, settings_of, write_file
from model.released import RELEASED, fetch
from model.weights import digest, load_backbone, network_of
from utils import launch
from utils.checkpoint import load_checkpoint
from utils.errors import UserError, one_line_errors
from utils.files import write_atomically
from utils.launch import World
from utils.log import log
from utils.options import Parser, add_launch_options, add_speed_options, positive_int

Arrays = dict[str, np.ndarray]


def make_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0], "VIDEOS --weights CKPT")
    parser.add_argument("videos", metavar="VIDEOS", help="folder of video files, of any depth")
    parser.add_argument("--weights", metavar="CKPT", required=True, help="path, URL or released name")
    meaning = "gets names [V] and features [V, C]; made anew where videos, weights or options have changed"
    parser.add_argument("--out", default="features.npz", help=meaning)
    meaning = "also windows [W, C], window_video [W], the row of its video, and window_frame [W], its first"
    parser.add_argument("--windows", action="store_true", help=meaning)
    parser.add_argument("--like", metavar="FILE", help="list the videos that are most like this one")
    parser.add_argument("--neighbours", type=positive_int, default=5, help="how many --like lists")
    parser.add_argument("--gallery", metavar="FILE.html", help="show them, moving")
    parser.add_argument("--offline", action="store_true", help="never download; weights from the cache alone")
    add_clip_options(parser.add_argument_group("data"), workers=8)
    add_speed_options(parser)
    add_launch_options(parser)
    return parser


def open_footage(path: str) -> Videos:
    """All videos of a folder, or one file, in the order of their names."""
    source = VideoFiles(path)
    if not source.names:
        raise UserError(f"no video of {path} can be decoded")
    rows = np.arange(len(source.names))
    frames = source.frame_counts()
    videos = Videos({"rgb": source}, source.names, {"rgb": rows}, frames, 0 * rows, rows, classes=[])
    return videos.subset(np.argsort(source.names))


def refuse_flow(path: Path, checkpoint: dict[str, Any]) -> None:
    """Raise UserError for a network known to be trained on flow: video files have none."""
    options = checkpoint.get("options", {})
    is_of_flow = parse_name(options.get("dataset", "")).streams == ("flow",) or options.get("reverse")
    released = {file for name, file in RELEASED.items() if name.endswith("flow")}
    if is_of_flow or path.name in released:
        raise UserError(
            f"--weights {path} are of optical flow, which video files have not; make a database by 'python "
            "-m dataset.prepare', then main_classifier.py --retrieval, or take weights of RGB"
        )


def embedded(backbone: nn.Module, size: int, videos: Videos, args: Namespace, world: World) -> Arrays:
    """What --out holds: "names" [V] and "features" float32 [V, C] of the videos that can be read.

    With --windows also "windows" float32 [W, C], the row of the video of each in "window_video" [W], and its
    first frame in "window_frame" [W].
    """
    features, readable = features_of(backbone, size, videos, args, world, per_window=args.windows)
    if not args.windows:
        return {"names": np.array(readable.names), "features": features.numpy()}
    starts = [test_windows(frames, args.seq_len, args.ds)[:, 0] for frames in readable.frames.tolist()]
    counts = [len(frames) for frames in starts]
    return {
        "names": np.array(readable.names),
        "features": torch.stack([own.mean(dim=0) for own in features.split(counts)]).numpy(),
        "windows": features.numpy(),
        "window_video": np.repeat(np.arange(len(counts)), counts),
        "window_frame": np.concatenate(starts),
    }


def read_current(path: Path, provenance: str, windows: bool) -> Arrays | None:
    """What ``path`` holds, if it is of this provenance, and with windows if these are asked for."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    is_current = str(arrays.pop("provenance", "")) == provenance
    return arrays if is_current and (not windows or "windows" in arrays) else None


def name_in(folder: str, file: str) -> str | None:
    """The name of a video file of the ``folder``; None for one that lies elsewhere."""
    path, root = Path(file).resolve(), Path(folder).resolve()
    return composed(path.relative_to(root).with_suffix("").as_posix()) if path.is_relative_to(root) else None


def show_like(args: Namespace, arrays: Arrays, videos: Videos, like: Videos, query: np.ndarray) -> None:
    """List the videos most like the ``query`` [C] of ``like``, itself aside; show them in --gallery."""
    names, features = arrays["names"].tolist(), torch.from_numpy(arrays["features"])
    wanted = centred(torch.from_numpy(query)[None], features.mean(dim=0))[0]
    cosines = dict(zip(names, (centred(features) @ wanted).tolist(), strict=True))
    cosines.pop(name_in(args.videos, args.like), None)
    (shown,), clips = clips_of(like).values(), clips_of(videos)
    row = [shown._replace(caption=args.like, border="query")]
    for name in sorted(cosines, key=cosines.get, reverse=True)[: args.neighbours]:
        sys.stdout.write(f"{cosines[name]:.3f}  {name}\n")
        row.append(clips[name]._replace(caption=f"{name} ({cosines[name]:.2f})"))
    if args.gallery:
        write_file(args.gallery, gallery([row]))
        log.info("wrote %s", args.gallery)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.gallery and not args.like:
        raise UserError("--gallery shows what --like FILE finds: give both")
    for option in ("out", "gallery"):
        check_folder(Path(getattr(args, option) or ".").parent, f"--{option}")
    world = launch.start(args)
    if world.size > 1:
        raise UserError(f"{world.size} processes were started; eval.embed is one: start no launcher")
    path = fetch(args.weights, args.offline)
    checkpoint = load_checkpoint(path)
    refuse_flow(path, checkpoint)
    net = network_of(checkpoint) or "s3d"
    feature_shape(net, args.seq_len, args.img_dim)
    backbone, param = select_backbone(net)
    load_backbone(backbone, checkpoint, path)

    def embed(videos: Videos) -> Arrays:
        return embedded(backbone, param["feature_size"], videos, args, world)

    like = open_footage(args.like) if args.like else None  # or refused, before the work
    if like and len(like) != 1:
        raise UserError(f"--like {args.like} holds {len(like)} videos; name one of them")
    videos = open_footage(args.videos)
    about = {"videos": content_digest(videos), "weights": digest(path), **settings_of(args)}
    provenance = json.dumps(about)
    arrays = read_current(Path(args.out), provenance, args.windows)
    if arrays is None:
        arrays = embed(videos)
        with write_atomically(args.out) as file:
            np.savez(file, provenance=np.array(provenance), **arrays)
    log.info("%s: features %s of the videos in %s", args.out, list(arrays["features"].shape), args.videos)
    if like:
        show_like(args, arrays, videos, like, embed(like)["features"][0])


if __name__ == "__main__":
    main()

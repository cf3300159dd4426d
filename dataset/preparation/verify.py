"""Check databases: ``python -m dataset.verify DB`` says what is in them and what is broken (status 1)."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.catalogue import PART_FOLDERS, STREAMS
from dataset.jpeg import decode_whole
from dataset.store import BrokenVideo, VideoStore
from utils.errors import UserError, one_line_errors
from utils.options import Parser, positive_int

Found = dict[str, tuple[int, tuple[int, int] | None] | None]


def verify_store(store: VideoStore, sample: int | None, is_flow: bool, problems: list[str]) -> Found:
    """Check the head of every record, decode frames; append a line to ``problems`` for each that is broken.

    Args:
        sample: decode the first, the middle and the last frame of this many videos; None: every frame of all.
        is_flow: the frames should have the form (128, y, x).

    Returns {name: (frames, (width, height) of a decoded frame or None)}; None for a broken video.
    """
    announced = store.frame_counts()
    found: Found = {}
    chosen = set(range(len(store)))
    if sample is not None:
        chosen = set(np.linspace(0, len(store) - 1, min(sample, len(store)), dtype=int).tolist())
    record_bytes = 0
    sizes: Counter = Counter()  # of the decoded frames
    for name, count in Counter(store.names).items():
        if count > 1:
            problems.append(f"{name}: {count} records have this name")
    for position, name in enumerate(
        tqdm(store.names, unit="video", desc=store.path, leave=False, disable=None)
    ):
        try:
            frames = store.num_frames(position)
            record_bytes += store.record_size(position)
            size = None
            if frames == 0:
                raise BrokenVideo(name, "no frames")
            if position in chosen:
                for index in range(frames) if sample is None else sorted({0, frames // 2, frames - 1}):
                    size = verify_frame(store, position, index, size, is_flow)
                    sizes[size] += 1
        except BrokenVideo as error:
            problems.append(str(error))
            found[name] = None
            continue
        found[name] = frames, size
        if frames != announced[position]:
            problems.append(f"{name}: {frames} frames, but __vlen__ says {announced[position]}")
    readable = [video for video in found.values() if video]
    frames = sum(count for count, _ in readable)
    decoded = ", ".join(f"{count} of {size[0]}x{size[1]}" for size, count in sizes.most_common(5))
    print(
        f"{store.path}: {len(readable)} of {len(store)} videos readable, {frames} frames, "
        f"{record_bytes / 1e6:.1f} MB, {record_bytes / max(frames, 1):.0f} bytes per frame; decoded "
        f"{sizes.total()} frames of {len(chosen)} videos, {decoded or 'none'}"
    )
    return found


def verify_frame(
    store: VideoStore, position: int, index: int, size: tuple[int, int] | None, is_flow: bool
) -> tuple[int, int]:
    """(width, height) of a frame; BrokenVideo if it does not decode, differs in size, or is not flow."""
    name, (jpeg,) = store.names[position], store.read_frames(position, [index])
    try:
        image = decode_whole(jpeg)
    except ValueError as error:
        raise BrokenVideo(name, f"{store.path}: frame {index} is not a whole JPEG ({len(jpeg)} B)") from error
    height, width = image.shape[:2]
    if size not in (None, (width, height)):
        raise BrokenVideo(
            name, f"{store.path}: frame {index} is {width}x{height}, others are {size[0]}x{size[1]}"
        )
    red = float(image[..., 0].mean())
    if is_flow and abs(red - 128) > 4:
        raise BrokenVideo(name, f"{store.path}: frame {index} is not flow: its red is {red:.0f}, not 128")
    return width, height


def compare(rgb: Found, flow: Found, problems: list[str]) -> None:
    """Append where two databases differ: videos of one alone, frame counts (flow has one fewer), sizes."""
    for one, other, label in ((rgb, flow, "flow"), (flow, rgb, "RGB")):
        problems += [f"{name}: not in the {label} database" for name in sorted(one.keys() - other.keys())]
    for name in sorted(name for name in rgb.keys() & flow.keys() if rgb[name] and flow[name]):
        (frames, size), (flow_frames, flow_size) = rgb[name], flow[name]
        if flow_frames != frames - 1:
            problems.append(
                f"{name}: {frames} RGB frames need {frames - 1} flow frames, there are {flow_frames}"
            )
        if size and flow_size and size != flow_size:
            problems.append(
                f"{name}: RGB frames are {size[0]}x{size[1]}, flow frames {flow_size[0]}x{flow_size[1]}"
            )


def pairs(path: Path) -> list[tuple[Path | None, Path | None]]:
    """(RGB, flow) databases that ``path`` names: a database, or a folder, with train/ and val/ or not."""
    if path.is_file() or (path / "data.mdb").is_file():
        is_flow = any(word in path.name for word in ("flow", "tvl1"))
        return [(None, path) if is_flow else (path, None)]
    found = []
    for folder in (path, *(path / part for part in PART_FOLDERS.values())):
        databases = [folder / STREAMS[stream].database for stream in ("rgb", "flow")]
        if any(database.exists() for database in databases):
            rgb, flow = (database if database.exists() else None for database in databases)
            found.append((rgb, flow))
    if not found:
        raise UserError(f"{path} is no database and holds no rgb.lmdb or flow.lmdb")
    return found


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser("Check databases of videos; exit status 1 if something is broken.", "DB [FLOW_DB]")
    parser.add_argument("db", metavar="DB", type=Path, help="a database, or a folder made by dataset.prepare")
    parser.add_argument("flow_db", metavar="FLOW_DB", type=Path, nargs="?", help="its flow database")
    parser.add_argument("--sample", type=positive_int, default=100, help="videos to decode three frames of")
    parser.add_argument("--all", action="store_true", help="decode every frame")
    args = parser.parse_args(argv)
    problems: list[str] = []
    for rgb, flow in [(args.db, args.flow_db)] if args.flow_db else pairs(args.db):
        found = [
            verify_store(VideoStore(path), None if args.all else args.sample, path is flow, problems)
            for path in (rgb, flow)
            if path
        ]
        if len(found) == 2:
            compare(*found, problems)
    print("\n".join(problems) or "nothing broken")
    if problems:
        print(f"{len(problems)} problems")
        sys.exit(1)

"""Check databases: ``python -m dataset.verify DB`` says what is in them and what is broken (status 1)."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.catalogue import PART_FOLDERS, STREAMS
from dataset.jpeg import decode_whole
from dataset.source import BrokenVideo
from dataset.store import VideoStore
from utils.errors import UserError, one_line_errors
from utils.options import Parser, positive_int

Found = dict[str, tuple[int, str | None]]


def verify_store(store: VideoStore, sample: int | None, is_flow: bool, problems: list[str]) -> Found:
    """Check the head of every record, decode frames; append a line to ``problems`` for each that is broken.

    Args:
        sample: decode the first, the middle and the last frame of this many videos; None: every frame of all.
        is_flow: the frames should have the form (128, y, x).

    Returns {name: (frames, "WIDTHxHEIGHT" of those decoded or None)} of the videos that are not broken.
    """
    announced = store.frame_counts()
    found: Found = {}
    number = len(store) if sample is None else min(sample, len(store))
    chosen = set(np.linspace(0, len(store) - 1, number, dtype=int).tolist())
    for name, count in Counter(store.names).items():
        if count > 1:
            problems.append(f"{name}: {count} records have this name")
    record_bytes = 0
    sizes: Counter = Counter()  # of the decoded frames
    videos = tqdm(store.names, unit="video", desc=store.path, leave=False, disable=None)
    for position, name in enumerate(videos):
        try:
            frames = store.num_frames(position)
            record_bytes += store.record_size(position)
            if frames == 0:
                raise BrokenVideo(name, "no frames")
            size = None
            if position in chosen:
                for index in range(frames) if sample is None else sorted({0, frames // 2, frames - 1}):
                    size = verify_frame(store, position, index, size, is_flow)
                    sizes[size] += 1
        except BrokenVideo as error:
            problems.append(str(error))
            continue
        found[name] = frames, size
        if frames != announced[position]:
            problems.append(f"{name}: {frames} frames, but __vlen__ says {announced[position]}")
    decoded = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(5))
    frames = sum(frames for frames, _ in found.values())
    held = f"{len(found)} of {len(store)} videos readable, {frames} frames, {record_bytes / 1e6:.1f} MB"
    print(f"{store.path}: {held}; decoded {sizes.total()} frames of {number} videos, {decoded or 'none'}")
    return found


def verify_frame(store: VideoStore, position: int, index: int, size: str | None, is_flow: bool) -> str:
    """Size of a frame; BrokenVideo if it does not decode, has another size than others, or is not flow."""
    name, (jpeg,) = store.names[position], store.read_frames(position, [index])
    frame = f"{store.path}: frame {index}"
    try:
        image = decode_whole(jpeg)
    except ValueError as error:
        raise BrokenVideo(name, f"{frame} is not a whole JPEG ({len(jpeg)} B)") from error
    own_size = f"{image.shape[1]}x{image.shape[0]}"
    if size not in (None, own_size):
        raise BrokenVideo(name, f"{frame} is {own_size}, others are {size}")
    red = float(image[..., 0].mean())
    if is_flow and abs(red - 128) > 4:
        raise BrokenVideo(name, f"{frame} is not flow: its red is {red:.0f}, not 128")
    return own_size


def compare(stores: dict[str, VideoStore], found: dict[str, Found]) -> list[str]:
    """Where two databases differ: videos of one alone, frame counts (flow has one fewer), sizes."""
    rgb, flow = (set(stores[stream].names) for stream in ("rgb", "flow"))
    problems = [f"{name}: not in the flow database" for name in sorted(rgb - flow)]
    problems += [f"{name}: not in the RGB database" for name in sorted(flow - rgb)]
    for name in sorted(found["rgb"].keys() & found["flow"].keys()):
        (frames, size), (flow_frames, flow_size) = found["rgb"][name], found["flow"][name]
        if flow_frames != frames - 1:
            needed = f"{frames} RGB frames need {frames - 1} flow frames"
            problems.append(f"{name}: {needed}, there are {flow_frames}")
        if size and flow_size and size != flow_size:
            problems.append(f"{name}: RGB frames are {size}, flow frames {flow_size}")
    return problems


def find_databases(path: Path) -> list[dict[str, Path]]:
    """Databases by stream of each folder among PATH, PATH/train and PATH/val that has any, or PATH itself."""
    if path.is_file() or (path / "data.mdb").is_file():
        is_flow = any(word in path.name for word in ("flow", "tvl1"))
        return [{"flow" if is_flow else "rgb": path}]
    found = []
    for folder in (path, *(path / part for part in PART_FOLDERS.values())):
        places = {stream: folder / facts.database for stream, facts in STREAMS.items()}
        found.append({stream: place for stream, place in places.items() if place.exists()})
    if not any(found):
        raise UserError(f"{path} is no database and holds no rgb.lmdb or flow.lmdb")
    return [databases for databases in found if databases]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser("Check databases of videos; exit status 1 if something is broken.", "DB [FLOW_DB]")
    parser.add_argument("db", metavar="DB", type=Path, help="a database, or a folder made by dataset.prepare")
    parser.add_argument("flow_db", metavar="FLOW_DB", type=Path, nargs="?", help="its flow database")
    parser.add_argument("--sample", type=positive_int, default=100, help="videos to decode three frames of")
    parser.add_argument("--all", action="store_true", help="decode every frame")
    args = parser.parse_args(argv)
    problems: list[str] = []
    given = [{"rgb": args.db, "flow": args.flow_db}] if args.flow_db else find_databases(args.db)
    for databases in given:
        stores = {stream: VideoStore(path) for stream, path in databases.items()}
        sample = None if args.all else args.sample
        found = {
            name: verify_store(store, sample, name == "flow", problems) for name, store in stores.items()
        }
        if len(stores) == 2:
            problems += compare(stores, found)
    print("\n".join(problems) or "nothing broken")
    if problems:
        print(f"{len(problems)} problems")
        sys.exit(1)

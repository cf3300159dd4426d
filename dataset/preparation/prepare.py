"""Videos to databases: ``python -m dataset.prepare NAME --videos DIR --out DIR`` makes DIR/{rgb,flow}.lmdb.

The order of the videos in a database follows from their names alone, so it is the same whatever processes worked on it
and however often they were stopped. Several machines that share OUT (torchrun, srun) take every n-th video each, and
rank 0 merges what all have made.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
from tqdm import tqdm

from dataset.preparation.find import Video, absent_videos, class_list, copy_lists, find_lists, find_videos
from dataset.preparation.flow import METHODS
from dataset.preparation.frames import Options
from dataset.preparation.write import prepare_videos, read_journals, read_part
from dataset.splits import ucf101_split
from dataset.store import shuffled, writing
from utils.errors import UserError, one_line_errors
from utils.log import start_logging
from utils.options import Parser, positive_int

log = logging.getLogger("coclr")

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 1800.0


def claim(out: Path, options: Options) -> Path:
    """OUT/unfinished, made if need be; raises UserError if it or the databases there were made in another way."""
    folder = out / "unfinished"
    if not folder.exists() and any((out / f"{stream}.lmdb").exists() for stream in options.streams):
        raise UserError(f"{out} holds databases that were not made by this command; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "options.json"
    if not known.exists():
        mine = folder / f"{uuid.uuid4().hex}.tmp"
        mine.write_text(json.dumps(asdict(options)), encoding="utf-8")
        os.replace(mine, known)
    _compare_options(json.loads(known.read_text(encoding="utf-8")), options, out)
    return folder


def _compare_options(found: dict, options: Options, out: Path) -> None:
    differing = [
        f"--{key} {found.get(key)} there, {value} here"
        for key, value in json.loads(json.dumps(asdict(options))).items()
        if found.get(key) != value
    ]
    if differing:
        raise UserError(
            f"{out} was begun with other options ({'; '.join(differing)}); "
            "give the same ones, choose another --out, or remove the folder"
        )


def prepare_folder(
    source: Path,
    out: Path,
    options: Options,
    args: argparse.Namespace,
    lists: Path | None,
    rank: int,
    size: int,
) -> None:
    """Make the databases of one folder of classes in ``out``, or this process's share of them."""
    began = time.time()
    if (out / "prepared.json").exists():
        report = json.loads((out / "prepared.json").read_text(encoding="utf-8"))
        _compare_options(report["options"], options, out)
        if rank == 0:
            _discard_parts(out)  # of a run killed between its last two steps
        log.info("%s is finished: %d videos, %d left out", out, report["videos"], report["left_out"])
        return
    videos, left_out = find_videos(source)
    for name, reason in left_out.items() if rank == 0 else ():
        log.warning("left out %s: %s", name, reason)
    by_name = {video.name: video for video in videos}
    if args.name == "ucf101":
        ucf101_split(list(by_name), 1)  # its splits follow from the names: refuse others before the work
    done = {
        name: entry
        for name, entry in read_journals(out / "unfinished").items()
        if name in by_name and (size > 1 or "records" in entry)
    }  # what was left out may have been mended since
    order = shuffled(list(by_name))
    share = [by_name[name] for name in order[rank::size] if name not in done and not args.merge]
    log.info("%s: %d videos, %d of them done before", source, len(videos), len(done))
    if not share and rank > 0:
        return
    folder = claim(out, options)
    with contextlib.ExitStack() as databases:
        if rank == 0:
            waiting = deque(order)
            add = {s: databases.enter_context(writing(out / f"{s}.lmdb")) for s in options.streams}
        for entry in _prepare_share(share, folder, options, args.jobs, len(videos)):
            done[entry["video"]] = entry
            if rank == 0:
                merge(waiting, done, add)
        if rank > 0:
            return
        patience = 0 if args.merge or size == 1 else PATIENCE_SECONDS
        for _ in wait_for(by_name, done, folder, patience):
            merge(waiting, done, add)
        left_out |= {name: entry["left_out"] for name, entry in done.items() if "left_out" in entry}
        copy_lists(lists, out)
        part = {"train": ("train",), "val": ("test",)}.get(
            out.name if args.name == "k400" else "", ("train", "test")
        )
        absent = absent_videos(out, set(by_name), part)
        if absent:
            log.warning(
                "the split lists name %d videos that are not there, e.g. %s", len(absent), min(absent)
            )
        left_out |= absent
        classes = class_list(out, [v.name for folder, _ in sources(args) for v in find_videos(folder)[0]])
        _write_text(args.out / "classes.txt", "\n".join(classes) + "\n")
        _write_text(
            out / "left_out.txt", "".join(f"{name}: {why}\n" for name, why in sorted(left_out.items()))
        )
        if not any("records" in entry for entry in done.values()):
            raise UserError(
                f"not one of {len(done)} videos could be prepared; {out / 'left_out.txt'} says why"
            )
    _report(out, done, left_out, options, began)
    _discard_parts(out)


def _discard_parts(out: Path) -> None:
    merged = out / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(
            out / "unfinished", merged
        )  # so that a process orphaned by a kill finds no folder to write to
    shutil.rmtree(merged, ignore_errors=True)


def _prepare_share(
    share: list[Video], folder: Path, options: Options, jobs: int, total: int
) -> Iterator[dict]:
    """Prepare this process's videos with a progress bar, and say after the first ones what all will take."""
    frames, size, seconds, began = 0, 0, 0.0, time.perf_counter()
    sample = min(len(share), max(8, 2 * jobs))
    quiet = None if log.isEnabledFor(logging.INFO) else True  # None: where there is no terminal
    with tqdm(total=len(share), unit="video", smoothing=0.05, disable=quiet) as bar:
        for count, entry in enumerate(prepare_videos(share, folder, options, jobs), 1):
            yield entry
            bar.update()
            if "left_out" in entry:
                log.warning("left out %s: %s", entry["video"], entry["left_out"])
            records = entry.get("records", {})
            frames += max((record[2] for record in records.values()), default=0)
            size += sum(record[1] for record in records.values())
            seconds += entry.get("seconds", 0)
            bar.set_postfix_str(f"{frames / (time.perf_counter() - began):.1f} frames/s", refresh=False)
            if count == sample:
                disk, free = 2 * size / count * total, shutil.disk_usage(folder).free
                minutes = seconds / count * (len(share) - count) / jobs / 60
                log.info(
                    "estimate from %d videos: %.1f minutes left for this process's %d; %.2f GB of disk for all "
                    "%d, half of it only until they are merged; %.2f GB are free",
                    count,
                    minutes,
                    len(share),
                    disk / 1e9,
                    total,
                    free / 1e9,
                )
                if disk - size > free:
                    log.warning(
                        "%s is likely to fill up: make room, or use --short_side or --quality", folder
                    )


def wait_for(
    videos: dict[str, Video], done: dict[str, dict], folder: Path, patience: float
) -> Iterator[None]:
    """Add the journal entries of other processes to ``done`` until it has all ``videos``; yields at each look.

    Raises UserError if videos are missing and nothing was written for ``patience`` seconds.
    """
    written, since = -1, time.monotonic()
    with tqdm(total=len(videos), unit="video", desc="all processes", initial=len(done), disable=None) as bar:
        while True:
            done |= {name: entry for name, entry in read_journals(folder).items() if name in videos} | done
            bar.update(len(done) - bar.n)
            yield
            if len(done) == len(videos):
                return
            if written < 0 and patience:
                log.info("waiting for the %d videos of the other processes", len(videos) - len(done))
            now = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".tmp")
            if now != written:
                written, since = now, time.monotonic()
            if time.monotonic() - since >= patience:
                missing = next(name for name in videos if name not in done)
                raise UserError(
                    f"{len(videos) - len(done)} of {len(videos)} videos are not prepared yet, e.g. "
                    f"{missing}; start the same command again, without --merge"
                )
            time.sleep(POLL_SECONDS)


def merge(waiting: deque[str], done: dict[str, dict], add: dict[str, Callable]) -> None:
    """Put the first of the ``waiting`` videos, as far as they are ``done`` by now, into the databases."""
    while waiting and waiting[0] in done:
        name = waiting.popleft()
        for stream, record in done[name].get("records", {}).items():
            add[stream](name, *read_part(f"{done[name]['part']}.{stream}", *record))


def _report(
    out: Path, entries: dict[str, dict], left_out: dict[str, str], options: Options, began: float
) -> None:
    """Write prepared.json, which says that the databases are finished, and log it."""
    done = [entry["records"] for entry in entries.values() if "records" in entry]
    seconds, in_flow = (
        sum(entry.get(key, 0) for entry in entries.values()) for key in ("seconds", "flow_seconds")
    )
    report: dict = {
        "options": asdict(options),
        "videos": len(done),
        "left_out": len(left_out),
        "opencv": cv2.__version__,
        "streams": {},
        "process_seconds": round(seconds, 3),
        "flow_seconds": round(in_flow, 3),
    }
    for stream in options.streams:
        size, frames = (sum(records[stream][i] for records in done) for i in (1, 2))
        report["streams"][stream] = {
            "frames": frames,
            "bytes": size,
            "bytes_per_frame": round(size / frames, 1),
        }
        log.info(
            "%s: %d frames, %.1f MB, %.0f bytes per frame",
            out / f"{stream}.lmdb",
            frames,
            size / 1e6,
            size / frames,
        )
    _write_text(out / "prepared.json", json.dumps(report, indent=1) + "\n")
    log.info(
        "%d videos, %d left out%s; %.1f process-minutes, %.0f %% of them in the flow method; this run took %.1f "
        "minutes",
        len(done),
        len(left_out),
        f" (see {out / 'left_out.txt'})" if left_out else "",
        seconds / 60,
        100 * in_flow / max(seconds, 1e-9),
        (time.time() - began) / 60,
    )


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def place() -> tuple[int, int]:
    """(rank, number of processes) as torchrun or srun say, else (0, 1)."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"])
    return int(env.get("SLURM_PROCID", 0)), int(env.get("SLURM_NTASKS", 1))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        "Make LMDB databases of RGB frames and optical flow from a folder of videos. Stopped at any point, "
        "the same command goes on where it was. torchrun or srun share the work out among machines."
    )
    parser.add_argument(
        "name", metavar="NAME", help="ucf101, hmdb51, k400 (train and val folders), or a name of yours"
    )
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of class/video.{avi,mp4,mkv,webm} or of class/video/image_00001.jpg (and flow_x_, "
        "flow_y_00001.jpg pairs or 3-channel flow_00001.jpg)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets rgb.lmdb, flow.lmdb, lists"
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder of split lists (UCF101's, HMDB51's, split.csv, train_split01.csv); looked for in "
        "VIDEOS_splits and among the videos if not given",
    )
    parser.add_argument(
        "--streams",
        default="rgb,flow",
        choices=("rgb", "flow", "rgb,flow"),
        metavar="rgb|flow|rgb,flow",
        help="what to make",
    )
    parser.add_argument(
        "--flow", default="tvl1", choices=METHODS, help="flow method; dis is tens of times as fast"
    )
    parser.add_argument("--bound", type=float, default=20.0, help="flow is clipped to this many pixels")
    parser.add_argument(
        "--short_side",
        type=positive_int,
        metavar="PIXELS",
        help="scale frames so that the shorter side is this long; their size is kept if not given",
    )
    parser.add_argument(
        "--fps", type=float, help="leave out frames down to this rate; every frame if not given"
    )
    parser.add_argument(
        "--quality", type=int, default=90, choices=range(1, 101), metavar="1-100", help="of the JPEGs"
    )
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    parser.add_argument("-j", "--jobs", type=positive_int, default=max(1, cores), help="processes")
    parser.add_argument("--merge", action="store_true", help="only merge what several machines have made")
    args = parser.parse_args(argv)
    for option in ("bound", "fps"):
        if getattr(args, option) is not None and not getattr(args, option) > 0:
            parser.error(f"--{option} {getattr(args, option)} should be more than 0")
    return args


def sources(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """(folder of classes, folder of databases): one pair, or two where the videos lie in train/ and val/."""
    folders = [
        (args.videos / part, args.out / part) for part in ("train", "val") if (args.videos / part).is_dir()
    ]
    if args.name == "k400" and not folders:
        raise UserError(f"--videos {args.videos} should hold train/ and val/, each with a folder per class")
    return folders if args.name == "k400" else [(args.videos, args.out)]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rank, size = place()
    start_logging(rank == 0)
    options = Options(
        tuple(args.streams.split(",")), args.flow, args.bound, args.short_side, args.fps, args.quality
    )
    try:
        if args.out.resolve().is_relative_to(args.videos.resolve()):
            raise UserError(f"--out {args.out} lies in --videos {args.videos}; choose a folder outside")
        lists = find_lists(args.videos, args.splits)
        if args.name == "hmdb51" and not lists:
            raise UserError(
                "hmdb51 needs its lists (<class>_test_split1.txt ...): name their folder by --splits"
            )
        for source, out in sources(args):
            prepare_folder(source, out, options, args, lists, rank, size)
    except OSError as error:
        what = error.filename or f"cannot write to {args.out}"
        raise UserError(
            f"{what}: {error.strerror}; what was finished is kept: make room or mend that, and start the "
            "same command again"
        ) from error
    except KeyboardInterrupt:
        raise UserError(
            f"stopped; what was finished is kept in {args.out}: the same command goes on there"
        ) from None

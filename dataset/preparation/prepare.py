"""Videos to databases: ``python -m dataset.prepare NAME --videos DIR --out DIR`` makes DIR/{rgb,flow}.lmdb.

The order of the videos in a database follows from their names alone, so it is the same whatever processes
worked on it and however often they were stopped. Several machines that share OUT (torchrun, srun) take every
n-th video each, and rank 0 merges what all have made. Given again on finished databases, the command adds the
videos that are new.
"""

import argparse
import contextlib
import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from dataset.catalogue import DATASETS, PART_FOLDERS, STREAMS, dataset_facts, lies_in_parts
from dataset.footage import (
    Footage,
    Video,
    class_list,
    copy_lists,
    describe,
    find_lists,
    find_videos,
    in_class_folder,
    keep_to_classes,
    listed_in,
)
from dataset.preparation.flow import METHODS, warm_up
from dataset.preparation.frames import Options
from dataset.preparation.merge import merge, remove_finished, wait_for_others
from dataset.preparation.owner import owned
from dataset.preparation.write import prepare_videos, read_notes
from dataset.splits import read_lines, ucf101_split
from dataset.store import VideoStore, shuffled
from utils.cores import available_cores
from utils.errors import UserError, one_line_errors
from utils.files import write_if_changed
from utils.log import start_logging
from utils.options import Parser, positive_int
from utils.processes import local_processes, process_ranks

log = logging.getLogger("coclr")


@dataclass(frozen=True)
class Plan:
    """What is to be made of some footage: databases in ``out``, by ``options``.

    ``lists`` is the folder of the split lists, of which the ``parts`` concern this footage.
    """

    footage: Footage
    out: Path
    lists: Path | None
    parts: tuple[str, ...]
    options: Options

    @property
    def unfinished(self) -> Path:
        """Folder of the finished videos, until they are merged."""
        return self.out / "unfinished"

    @property
    def merged(self) -> Path:
        """What that folder is called while it is removed."""
        return self.out / "merged"

    def databases(self) -> dict[str, Path]:
        return {stream: self.out / STREAMS[stream].database for stream in self.options.streams}


def prepare(plan: Plan, jobs: int, only_merge: bool, rank: int, size: int) -> None:
    """Make the databases, or this process's share of them, or add to finished ones what is new."""
    names = {video.name for video in plan.footage.videos}
    if finished_videos(plan) == names and not plan.unfinished.exists() and not plan.merged.exists():
        if rank == 0:
            copy_lists(plan.lists, plan.out)
            finish(plan, {})
        return
    with owned(plan.unfinished, rank):
        claim(plan)
        if rank == 0:
            copy_lists(plan.lists, plan.out)  # or refuse them before the work
        done = finished_videos(plan)  # again: another command may have ended a moment ago
        missing = {video.name: video for video in plan.footage.videos if video.name not in done}
        notes = read_notes(plan.unfinished, missing.values())
        if size == 1 and not only_merge:  # what was left out may have been mended since
            notes = {name: note for name, note in notes.items() if "records" in note}
        log.info(
            f"{plan.footage.folder}: {len(names)} videos, {len(done) + len(notes)} of them done before"
            f"{describe(plan.footage.ignored)}"
        )
        todo = missing.keys() - notes.keys()
        if not only_merge:
            share = [missing[name] for name in shuffled(names)[rank::size] if name in todo]
            notes |= prepare_share(share, plan, jobs)
        if rank == 0:
            others = [video for name, video in missing.items() if name not in notes]
            notes |= wait_for_others(others, plan.unfinished, wait=size > 1 and not only_merge)
            finish(plan, notes)
            remove_finished(plan.unfinished, plan.merged)


def finished_videos(plan: Plan) -> set[str]:
    """Names of the videos that the finished databases hold as they are in the footage.

    Raises UserError if the databases were made by other options or of other videos, or are not of this
    command.
    """
    report = read_report(plan.out)
    if not report:
        begun = (plan.unfinished / "options.json").exists()
        if not begun and any(path.exists() for path in plan.databases().values()):
            raise UserError(f"{plan.out} holds databases that were not made by this command; choose another")
        return set()
    compare_options(report["options"], plan)
    sizes = {video.name: video.size for video in plan.footage.videos}
    names = names_in(plan)
    gone = names - sizes.keys()
    if gone:
        raise UserError(
            f"{plan.out} holds {len(gone)} videos that {plan.footage.folder} lacks, e.g. {min(gone)}; it was "
            f"made from {report.get('source', 'another folder')}: choose another --out"
        )
    before = report.get("source_bytes", sizes)
    return {name for name in names if before.get(name) == sizes[name]}


def names_in(plan: Plan) -> set[str]:
    """The videos that all of the databases hold; none where one is missing."""
    paths = plan.databases().values()
    if not all(path.exists() for path in paths):
        return set()
    return set.intersection(*(set(VideoStore(path).names) for path in paths))


def claim(plan: Plan) -> None:
    """Note the options where videos are finished; raises UserError if others were begun there."""
    known = plan.unfinished / "options.json"
    if known.exists():
        compare_options(json.loads(known.read_text(encoding="utf-8")), plan)
    else:
        write_if_changed(known, json.dumps(asdict(plan.options)))


def compare_options(found: dict, plan: Plan) -> None:
    """Raise UserError where the options that were ``found`` differ from those of the plan."""
    if "flow" in found["streams"]:
        found = {"flow_by": "opencv"} | found  # before it was noted
    differing = [
        f"--{key} {found[key]} there, {value} here"
        for key, value in json.loads(json.dumps(asdict(plan.options))).items()
        if key in found and found[key] != value
    ]
    if differing:
        raise UserError(
            f"{plan.out} was begun with other options ({'; '.join(differing)}); "
            "give the same ones, choose another --out, or remove the folder"
        )


def prepare_share(share: list[Video], plan: Plan, jobs: int) -> dict[str, dict]:
    """Prepare this process's videos, with a progress bar; after the first ones it says what all will take."""
    if share and "flow" in plan.options.streams:
        warm_up(plan.options.flow)
    notes: dict[str, dict] = {}
    frames = 0
    size = 0
    seconds = 0.0
    began = time.perf_counter()
    sample = min(len(share), max(8, 2 * jobs))
    quiet = None if log.isEnabledFor(logging.INFO) else True  # None: where there is no terminal
    with (
        tqdm(total=len(share), unit="video", smoothing=0.05, disable=quiet) as bar,
        contextlib.closing(prepare_videos(share, plan.unfinished, plan.options, jobs)) as made,
    ):
        for note in made:
            notes[note["video"]] = note
            bar.update()
            if "left_out" in note:
                log.warning("left out %s: %s", note["video"], note["left_out"])
            records = note.get("records", {}).values()
            frames += max((record["frames"] for record in records), default=0)
            size += sum(record["bytes"] for record in records)
            seconds += note.get("seconds", 0)
            bar.set_postfix_str(f"{frames / (time.perf_counter() - began):.1f} frames/s", refresh=False)
            if len(notes) == sample:
                minutes = seconds / sample * (len(share) - sample) / jobs / 60
                disk = 2 * size / sample * len(plan.footage.videos)
                free = shutil.disk_usage(plan.out).free
                log.info(
                    f"estimate from {sample} videos: {minutes:.1f} minutes left for this process's "
                    f"{len(share)}; {disk / 1e9:.2f} GB of disk for all {len(plan.footage.videos)}, half of "
                    f"it only until they are merged; {free / 1e9:.2f} GB are free"
                )
                if disk - size > free:
                    log.warning("%s is likely to fill up: make room, use --short_side or --quality", plan.out)
    return notes


def finish(plan: Plan, notes: dict[str, dict]) -> None:
    """Bring the databases up to date with the ``notes``, and write what they hold and what was left out."""
    names = {video.name for video in plan.footage.videos}
    new = {name: note for name, note in notes.items() if "records" in note}
    prepared = (names - notes.keys()) | new.keys()
    left_out = plan.footage.left_out | absent_videos(plan, names)
    left_out |= {name: note["left_out"] for name, note in notes.items() if "left_out" in note}
    lines = [f"{name}: {reason}\n" for name, reason in sorted(left_out.items())]
    write_if_changed(plan.out / "left_out.txt", "".join(lines))
    if not prepared:
        raise UserError(f"not one of {len(names)} videos could be prepared, see {plan.out / 'left_out.txt'}")
    report = read_report(plan.out)
    if new or prepared != names_in(plan):
        order = shuffled(prepared)
        report |= {
            "options": asdict(plan.options),
            "opencv": cv2.__version__,
            "streams": {
                stream: merge(order, new, plan.unfinished, path, stream)
                for stream, path in plan.databases().items()
            },
            "process_seconds": round(report.get("process_seconds", 0) + total(notes, "seconds"), 3),
            "flow_seconds": round(report.get("flow_seconds", 0) + total(notes, "flow_seconds"), 3),
        }
    remarks = report.get("remarks", {}) | {name: note.get("remarks") for name, note in new.items()}
    report |= {
        "source": str(plan.footage.folder.resolve()),
        "videos": len(prepared),
        "left_out": len(left_out),
        "ignored": dict(plan.footage.ignored),
        "remarks": {name: text for name, text in sorted(remarks.items()) if text and name in prepared},
        "source_bytes": {video.name: video.size for video in plan.footage.videos if video.name in prepared},
    }
    write_if_changed(plan.out / "prepared.json", json.dumps(report, indent=1) + "\n")
    log_report(plan.out, report, len(new))


def absent_videos(plan: Plan, names: set[str]) -> dict[str, str]:
    """Videos that the split lists name and the footage lacks, with the reason for which they are left out."""
    absent = listed_in(plan.out, names, plan.parts) - names
    if absent:
        log.warning("the split lists name %d videos that are not there, e.g. %s", len(absent), min(absent))
    return dict.fromkeys(absent, "the split lists name it, but there is no such video")


def total(notes: dict[str, dict], key: str) -> float:
    """Sum of a number over the notes that have it."""
    return sum(note.get(key, 0) for note in notes.values())


def log_report(out: Path, report: dict, new: int) -> None:
    """Say what is in the databases."""
    if not new:
        log.info("%s is finished: %d videos, %d left out", out, report["videos"], report["left_out"])
        return
    for stream, made in report["streams"].items():
        log.info(
            f"{out / STREAMS[stream].database}: {made['frames']} frames, {made['bytes'] / 1e6:.1f} MB, "
            f"{made['bytes_per_frame']:.0f} bytes per frame"
        )
    for name, text in list(report["remarks"].items())[:1]:
        number = len(report["remarks"])
        log.info("%s: remarks on %d videos, e.g. %s: %s", out / "prepared.json", number, name, text)
    where = f" (see {out / 'left_out.txt'})" if report["left_out"] else ""
    seconds = report["process_seconds"]
    log.info(
        f"{report['videos']} videos, {new} of them new, {report['left_out']} left out{where}; "
        f"{seconds / 60:.1f} process-minutes, {100 * report['flow_seconds'] / max(seconds, 1e-9):.0f} % of "
        "them in the flow method"
    )


def read_report(out: Path) -> dict:
    """prepared.json, which says that the databases are finished; empty without it."""
    path = out / "prepared.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        "Make LMDB databases of RGB frames and optical flow from a folder of videos. Stopped at any point, "
        "the same command goes on where it was. torchrun or srun share the work out among machines.",
        "NAME --videos DIR --out DIR",
    )
    parser.add_argument("name", metavar="NAME", help="ucf101, hmdb51, k400, or a name of yours")
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of class/video.mp4 (any format) or of class/video/image_00001.jpg (and flow_x_, "
        "flow_y_00001.jpg pairs or 3-channel flow_00001.jpg); without labels folders of any depth",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the databases and lists")
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder of split lists (UCF101's, HMDB51's, split.csv, train_split01.csv); looked for in "
        "VIDEOS_splits and among the videos if not given; none are needed where the videos lie in train/ "
        "and val/",
    )
    parser.add_argument(
        "--streams",
        default="rgb,flow",
        choices=("rgb", "flow", "rgb,flow"),
        metavar="rgb|flow|rgb,flow",
        help="what to make",
    )
    parser.add_argument("--flow", default="tvl1", choices=tuple(METHODS), help="dis is several times as fast")
    parser.add_argument("--bound", type=float, default=20.0, help="flow is clipped to this many pixels")
    parser.add_argument(
        "--short_side",
        type=positive_int,
        metavar="PIXELS",
        help="scale frames so that the shorter side is this long; their size is kept if not given",
    )
    parser.add_argument("--fps", type=float, help="leave out frames down to this rate")
    parser.add_argument(
        "--quality", type=int, default=90, choices=range(1, 101), metavar="1-100", help="of the JPEGs"
    )
    cores = available_cores() // local_processes()
    parser.add_argument("-j", "--jobs", type=positive_int, default=max(1, cores), help="processes")
    parser.add_argument("--merge", action="store_true", help="only merge what several machines have made")
    args = parser.parse_args(argv)
    for option in ("bound", "fps"):
        if getattr(args, option) is not None and not getattr(args, option) > 0:
            parser.error(f"--{option} {getattr(args, option)} should be more than 0")
    return args


def make_plans(args: argparse.Namespace) -> list[Plan]:
    """What the command is to make: one plan, or two where the videos lie in train/ and val/."""
    if args.out.resolve().is_relative_to(args.videos.resolve()):
        raise UserError(f"--out {args.out} lies in --videos {args.videos}; choose a folder outside")
    facts = dataset_facts(args.name)
    lists = find_lists(args.videos, args.splits)
    if facts.split_by == "lists" and not lists:
        raise UserError(f"{args.name} needs its lists (<class>_test_split1.txt ...): give --splits")
    places = {args.videos: (args.out, tuple(PART_FOLDERS))}
    if lies_in_parts(args.name, args.videos):
        places = {
            args.videos / folder: (args.out / folder, (part,))
            for part, folder in PART_FOLDERS.items()
            if (args.videos / folder).is_dir()
        }
        for path in sorted(args.videos.iterdir()):
            if path.is_dir() and path not in places:
                log.warning("%s is not read, but train/ and val/ alone", path)
    if not places:
        raise UserError(f"--videos {args.videos} should hold train/ and val/, each with a folder per class")
    options = Options(
        tuple(args.streams.split(",")), args.flow, args.bound, args.short_side, args.fps, args.quality
    )
    plans = []
    for source, (out, parts) in places.items():
        footage = find_videos(source)
        if args.name in DATASETS or lists:
            keep_to_classes(footage)
        elsewhere = [video.name for video in footage.videos if not in_class_folder(video.name)]
        if elsewhere:
            log.info(
                f"{len(elsewhere)} of {len(footage.videos)} videos lie in no folder of a class "
                f"(class/video), e.g. {elsewhere[0]}: there will be no labels"
            )
        if facts.split_by == "names":  # refuse others before the work
            ucf101_split([video.name for video in footage.videos], 1)
        plans.append(Plan(footage, out, lists, parts, options))
    return plans


def write_classes(plans: list[Plan], out: Path) -> None:
    """Write classes.txt of finished databases: empty where there are no labels; another order stays."""
    prepared = set().union(*map(names_in, plans))
    found = {video.name for plan in plans for video in plan.footage.videos}
    classes = class_list(plans[-1].out, prepared, found)
    path = out / "classes.txt"
    if not path.is_file() or sorted(read_lines(path)) != sorted(classes):
        write_if_changed(path, "".join(f"{label}\n" for label in classes))
    if not classes:
        log.info("no labels: not every video lies in a folder of its class (class/video); all train")


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rank, size, _ = process_ranks()
    start_logging(rank == 0)
    try:
        plans = make_plans(args)
        for plan in plans:
            for name, reason in plan.footage.left_out.items() if rank == 0 else ():
                log.warning("left out %s: %s", name, reason)
            prepare(plan, args.jobs, args.merge, rank, size)
        if rank == 0:
            write_classes(plans, args.out)
    except OSError as error:
        what = error.filename or f"cannot write to {args.out}"
        raise UserError(
            f"{what}: {error.strerror}; what was finished is kept: make room or mend that, and start the "
            "same command again"
        ) from error
    except KeyboardInterrupt:
        raise UserError(f"stopped; {args.out} keeps what was finished: the same command goes on") from None

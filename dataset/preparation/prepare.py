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
from dataclasses import dataclass
from pathlib import Path

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
    listed_in,
)
from dataset.preparation.flow import METHODS, warm_up
from dataset.preparation.frames import Options
from dataset.preparation.merge import merge, wait_for_others
from dataset.preparation.owner import owned
from dataset.preparation.write import REMEDY, prepare_videos, read_notes
from dataset.splits import read_lines, ucf101_split
from dataset.store import VideoStore, shuffled
from utils.cores import available_cores
from utils.errors import UserError, one_line_errors
from utils.files import write_if_changed
from utils.log import log, start_logging
from utils.options import Parser, positive_float, positive_int
from utils.processes import local_processes, process_ranks


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
    def names(self) -> set[str]:
        return {video.name for video in self.footage.videos}

    @property
    def databases(self) -> dict[str, Path]:
        return {stream: self.out / STREAMS[stream].database for stream in self.options.streams}

    @property
    def unfinished(self) -> Path:
        """Folder of the finished videos, until they are merged."""
        return self.out / "unfinished"

    def read_report(self) -> dict:
        """prepared.json, which says that the databases are finished; empty without it."""
        path = self.out / "prepared.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}); choose another --out, or remove this one"
            ) from error

    def prepared_names(self) -> set[str]:
        """The videos that all of the databases hold; none where one is missing."""
        paths = self.databases.values()
        if not all(path.exists() for path in paths):
            return set()
        return set.intersection(*(set(VideoStore(path).names) for path in paths))


def prepare(plan: Plan, jobs: int, rank: int, size: int) -> None:
    """Make the databases, or this process's share of them, or add to finished ones what is new."""
    if finished_videos(plan) == plan.names and not plan.unfinished.exists():
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
        if size == 1:  # what was left out may have been mended since
            notes = {name: note for name, note in notes.items() if "records" in note}
        videos = f"{len(plan.names)} videos, {len(done) + len(notes)} of them done before"
        log.info(f"{plan.footage.folder}: {videos}{describe(plan.footage.ignored)}")
        todo = missing.keys() - notes.keys()
        share = [missing[name] for name in shuffled(plan.names)[rank::size] if name in todo]
        notes |= prepare_share(share, plan, jobs)
        if rank == 0:
            others = [video for name, video in missing.items() if name not in notes]
            if others:
                notes |= wait_for_others(others, plan.unfinished)
            finish(plan, notes)
            shutil.rmtree(plan.unfinished, ignore_errors=True)


def finished_videos(plan: Plan) -> set[str]:
    """Names of the videos that the finished databases hold as they are in the footage.

    Raises UserError if the databases were made by other options or of other videos, or are not of this
    command.
    """
    report = plan.read_report()
    if not report:
        begun = (plan.unfinished / "options.json").exists()
        if not begun and any(path.exists() for path in plan.databases.values()):
            raise UserError(f"{plan.out} holds databases that were not made by this command; choose another")
        return set()
    compare_options(report["options"], plan)
    videos = {video.name: video for video in plan.footage.videos}
    names = plan.prepared_names()
    gone = names - videos.keys()
    if gone:
        here = f"{len(gone)} videos that {plan.footage.folder} lacks, e.g. {min(gone)}"
        raise UserError(f"{plan.out} holds {here}; it was made from {report['source']}: choose another --out")
    return {name for name in names if videos[name].has_size(report["source_bytes"].get(name))}


def claim(plan: Plan) -> None:
    """Note the options where videos are finished; raises UserError if others were begun there."""
    known = plan.unfinished / "options.json"
    if known.exists():
        compare_options(json.loads(known.read_text(encoding="utf-8")), plan)
    else:
        write_if_changed(known, json.dumps(plan.options.noted()))


def compare_options(found: dict, plan: Plan) -> None:
    """Raise UserError where the options that were ``found`` differ from those of the plan."""
    differing = [
        f"--{key} {found.get(key)} there, {value} here"
        for key, value in plan.options.noted().items()
        if found.get(key) != value
    ]
    if differing:
        there = f"{plan.out} was begun with other options ({'; '.join(differing)})"
        raise UserError(f"{there}; give the same ones, choose another --out, or remove the folder")


def prepare_share(share: list[Video], plan: Plan, jobs: int) -> dict[str, dict]:
    """Notes of this process's videos; after the first ones it says how much disk all will take."""
    if share and "flow" in plan.options.streams:
        warm_up(plan.options.flow)
    notes: dict[str, dict] = {}
    size = 0
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
            elif note.get("remarks"):
                log.warning("%s: %s", note["video"], note["remarks"])
            size += sum(record["bytes"] for record in note.get("records", {}).values())
            if len(notes) == sample:
                disk, free = 2 * size / sample * len(plan.names), shutil.disk_usage(plan.out).free
                needed = f"{disk / 1e9:.2f} GB of disk for all, half of it until they are merged"
                log.info(f"estimate from {sample} videos: {needed}; {free / 1e9:.2f} GB are free")
    return notes


def finish(plan: Plan, notes: dict[str, dict]) -> None:
    """Bring the databases up to date with the ``notes``, and write what they hold and what was left out."""
    new = {name: note for name, note in notes.items() if "records" in note}
    prepared = (plan.names - notes.keys()) | new.keys()
    absent = listed_in(plan.out, plan.names, plan.parts) - plan.names
    if absent:
        log.warning("the split lists name %d videos that are not there, e.g. %s", len(absent), min(absent))
    unseen = dict.fromkeys(absent, "the split lists name it, but there is no such video")
    left_out = plan.footage.left_out | unseen
    left_out |= {name: note["left_out"] for name, note in notes.items() if "left_out" in note}
    lines = [f"{name}: {reason}\n" for name, reason in sorted(left_out.items())]
    write_if_changed(plan.out / "left_out.txt", "".join(lines))
    if not prepared:
        raise UserError(f"not one of {len(plan.names)} videos could be prepared, see {plan.out}/left_out.txt")
    if new or prepared != plan.prepared_names():
        for stream, path in plan.databases.items():
            merge(shuffled(prepared), new, plan.unfinished, path, stream)
    remarks = plan.read_report().get("remarks", {}) | {
        name: note.get("remarks") for name, note in new.items()
    }
    report = {
        "options": plan.options.noted(),
        "source": str(plan.footage.folder.resolve()),
        "videos": len(prepared),
        "left_out": len(left_out),
        "remarks": {name: remark for name, remark in remarks.items() if remark and name in prepared},
        "ignored": dict(plan.footage.ignored),
        "source_bytes": {video.name: video.size for video in plan.footage.videos if video.name in prepared},
    }
    write_if_changed(plan.out / "prepared.json", json.dumps(report, indent=1) + "\n")
    log.info("%s is finished: %d videos, %d left out", plan.out, len(prepared), len(left_out))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("Make databases of RGB frames and flow from videos.", "NAME --videos DIR --out DIR")
    parser.add_argument("name", metavar="NAME", help="ucf101, hmdb51, k400, or a name of yours")
    videos = "folder of class/video.mp4, or of class/video/image_00001.jpg (see README.md)"
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help=videos)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the databases")
    splits = "folder of split lists; VIDEOS_splits or --videos if not given"
    parser.add_argument("--splits", type=Path, metavar="DIR", help=splits)
    streams = ("rgb,flow", "rgb", "flow")
    parser.add_argument("--streams", default=streams[0], choices=streams, help="what to make")
    parser.add_argument("--flow", default="tvl1", choices=tuple(METHODS), help="dis is several times as fast")
    parser.add_argument("--bound", type=positive_float, default=20.0, help="pixels to which flow is clipped")
    parser.add_argument("--short_side", type=positive_int, help="scale the shorter side to so many pixels")
    parser.add_argument("--fps", type=positive_float, help="leave out frames down to this rate")
    quality = {"choices": range(1, 101), "metavar": "1-100"}
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs", **quality)
    cores = available_cores() // local_processes()
    parser.add_argument("-j", "--jobs", type=positive_int, default=max(1, cores), help="processes")
    return parser.parse_args(argv)


def make_plans(args: argparse.Namespace) -> list[Plan]:
    """What the command is to make: one plan, or two where the videos lie in train/ and val/."""
    if args.out.resolve().is_relative_to(args.videos.resolve()):
        raise UserError(f"--out {args.out} lies in --videos {args.videos}; choose a folder outside")
    facts = dataset_facts(args.name)
    lists = find_lists(args.videos, args.splits)
    if facts.split_by == "lists" and not lists:
        raise UserError(f"{args.name} needs its lists (<class>_test_split1.txt ...): give --splits")
    places = [(args.videos, args.out, tuple(PART_FOLDERS))]
    if lies_in_parts(args.name, args.videos):
        parts = {part: folder for part, folder in PART_FOLDERS.items() if (args.videos / folder).is_dir()}
        places = [(args.videos / folder, args.out / folder, (part,)) for part, folder in parts.items()]
        for path in sorted(args.videos.iterdir()):
            if path.is_dir() and path.name not in parts.values():
                log.warning("%s is not read, but train/ and val/ alone", path)
    if not places:
        raise UserError(f"--videos {args.videos} should hold train/ and val/, each with a folder per class")
    options = Options(
        tuple(args.streams.split(",")), args.flow, args.bound, args.short_side, args.fps, args.quality
    )
    plans = []
    for source, out, parts in places:
        footage = find_videos(source, in_classes=args.name in DATASETS or lists is not None)
        elsewhere = [video.name for video in footage.videos if not in_class_folder(video.name)]
        if elsewhere:
            some = f"{len(elsewhere)} of {len(footage.videos)} videos"
            log.info(f"{some} lie in no folder of a class, e.g. {elsewhere[0]}: there will be no labels")
        if facts.split_by == "names":  # refuse others before the work
            ucf101_split([video.name for video in footage.videos], 1)
        plans.append(Plan(footage, out, lists, parts, options))
    return plans


def write_classes(plans: list[Plan], out: Path) -> None:
    """Write classes.txt of finished databases: empty where there are no labels; another order stays."""
    prepared = set().union(*(plan.prepared_names() for plan in plans))
    found = set().union(*(plan.names for plan in plans))
    classes = class_list(plans[-1].out, prepared, found)
    path = out / "classes.txt"
    if not path.is_file() or sorted(read_lines(path)) != sorted(classes):
        write_if_changed(path, "".join(f"{label}\n" for label in classes))


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
            prepare(plan, args.jobs, rank, size)
        if rank == 0:
            write_classes(plans, args.out)
    except OSError as error:
        what = error.filename or f"cannot write to {args.out}"
        raise UserError(f"{what}: {error.strerror}; {REMEDY}") from error
    except KeyboardInterrupt:
        raise UserError(f"stopped; {args.out} keeps what was finished: the same command goes on") from None

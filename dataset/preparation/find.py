"""Raw footage: which videos a folder holds, and the lists that split them."""

import csv
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dataset.splits import by_class, class_order, read_lines, read_lists
from utils.errors import UserError

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm")
LISTS = ("classInd.txt", "trainlist*.txt", "testlist*.txt", "*_test_split[0-9].txt", "split.csv")
ORIGINAL_CSV = re.compile(r"^(?P<part>train|val|test)_split(?P<number>\d*)\.csv$")


@dataclass(frozen=True)
class Video:
    """One video: ``name`` "class/video"; ``path`` a video file or a folder of frames."""

    name: str
    path: str


def find_videos(folder: Path) -> tuple[list[Video], dict[str, str]]:
    """Videos in ``folder``/class/, in class order, and names left out with the reason.

    Raises UserError if the folder cannot be read or holds no video.
    """
    videos: dict[str, Video] = {}
    left_out: dict[str, str] = {}
    try:
        class_folders = [entry.name for entry in _entries(folder) if entry.is_dir()]
    except OSError as error:
        raise UserError(f"cannot read --videos {folder}: {error.strerror}") from error
    for label in class_folders:
        try:
            entries = _entries(folder / label)
        except OSError as error:
            left_out[label] = f"cannot read the folder: {error.strerror}"
            continue
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if entry.is_dir():
                stem = entry.name
            elif suffix.lower() not in SUFFIXES:
                continue
            name = f"{label}/{stem}"
            if name in videos:
                left_out[f"{label}/{entry.name}"] = (
                    f"another video has this name: {videos[name].path} is taken"
                )
            elif name.encode(errors="ignore").decode().splitlines() != [
                name
            ]:  # lines, or not UTF-8 on the disk
                left_out[ascii(name)] = "the name has characters that a list of names cannot hold; rename it"
            else:
                videos[name] = Video(name, entry.path)
    if not videos:
        raise UserError(
            f"no class/video.{{{','.join(s[1:] for s in SUFFIXES)}}} and no class/video/image_00001.jpg in "
            f"{folder}; --videos is the folder that holds one folder per class"
        )
    return [videos[name] for name in sorted(videos, key=by_class)], left_out


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
        )


def find_lists(videos: Path, given: Path | None) -> Path | None:
    """Folder of the split lists: the one ``given``, else VIDEOS_splits beside the videos, else among them; or None."""
    if given and not _list_files(given):
        raise UserError(f"--splits {given} holds no split lists ({', '.join(LISTS)}, train_split01.csv)")
    candidates = [given] if given else [videos.with_name(videos.name + "_splits"), videos]
    return next((folder for folder in candidates if _list_files(folder)), None)


def _list_files(folder: Path) -> list[Path]:
    paths = {path for pattern in LISTS for path in folder.glob(pattern)}
    return sorted(paths | {path for path in folder.glob("*.csv") if ORIGINAL_CSV.match(path.name)})


def copy_lists(lists: Path | None, out: Path) -> None:
    """Put the split lists into ``out``; the original's CSV (rows "path/class/video/,frames") become UCF-style lists."""
    for path in _list_files(lists) if lists and lists.resolve() != out.resolve() else ():
        match = ORIGINAL_CSV.match(path.name)
        if not match:
            shutil.copyfile(path, out / path.name)
            continue
        names = [
            "/".join(re.split(r"[/\\]+", row[0].rstrip("/\\"))[-2:]) for row in csv.reader(read_lines(path))
        ]
        part = "train" if match["part"] == "train" else "test"
        text = "".join(f"{name}\n" for name in names)
        (out / f"{part}list{int(match['number'] or 1):02d}.txt").write_text(text, encoding="utf-8")


def absent_videos(out: Path, names: set[str], parts: tuple[str, ...] = ("train", "test")) -> dict[str, str]:
    """Videos that the lists in ``out`` name for these parts and the footage lacks, each with the reason."""
    absent = {}
    for split in (1, 2, 3):
        for _, lists in read_lists(out, split):
            listed = {name for part in parts for name in lists[part]}
            absent |= dict.fromkeys(listed - names, "the split lists name it, but there is no such video")
    return absent


def class_list(out: Path, names: list[str]) -> list[str]:
    """Classes in order: those of ``classInd.txt`` ("1 Archery") if it has them all, else the ones of the names."""
    found, path = class_order(names), out / "classInd.txt"
    listed = [line.split(maxsplit=1)[-1].strip() for line in read_lines(path)] if path.is_file() else []
    return listed if set(found) <= set(listed) else found

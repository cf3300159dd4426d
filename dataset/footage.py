"""Raw footage: which videos a folder holds, and the lists that split them."""

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dataset.splits import (
    VIDEO_SUFFIXES,
    by_class,
    class_order,
    composed,
    find_split_lists,
    read_lines,
    read_lists,
)
from utils.errors import UserError
from utils.files import write_if_changed
from utils.log import log

# Files beside videos that are none; whatever else FFmpeg cannot read is named in left_out.txt.
NO_VIDEOS = frozenset(
    ".7z .aac .ass .bmp .bz2 .cfg .csv .db .doc .docx .flac .gz .h5 .htm .html .ico .idx .ini .ipynb "
    ".jpeg .jpg .js .json .jsonl .lmdb .lock .log .m4a .mat .md .md5 .mp3 .npy .npz .parquet .pdf .pkl "
    ".png .pt .pth .py .rar .sh .sha256 .srt .sub .svg .tar .tgz .tif .tiff .torrent .tsv .txt .url .vtt "
    ".wav .webp .wma .xls .xlsx .xml .xz .yaml .yml .zip".split()
)
CLASS_LIST = "classInd.txt"
IMAGE = re.compile(
    r"^(image|img|frame|(?P<flow>flow_x|flow_y|flow))_?(?P<number>\d+)\.(jpg|jpeg)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        name: its relative path without the suffix, "class/video".
        path: a video file or a folder of frames.
        size: bytes of the file, or of all images of the folder.
        images: their number, 0 for a file.
    """

    name: str
    path: str
    size: int = 0
    images: int = 0

    def has_size(self, noted: int | None) -> bool:
        """Whether it is of the size that was ``noted``: earlier versions noted the number of images."""
        return noted == self.size or 0 < self.images == noted


@dataclass
class Footage:
    """What a folder holds: its videos, names left out with the reason, numbers of other files by suffix."""

    folder: Path
    videos: list[Video] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    ignored: Counter = field(default_factory=Counter)


def find_videos(folder: Path, in_classes: bool = False) -> Footage:
    """The videos in ``folder`` and the folders below it, in class order.

    Left out are links that lead nowhere or round in a circle, what may not be read and, where labels are
    needed (``in_classes``), what is not class/video. Raises UserError if the folder itself cannot be read or
    there is no video.
    """
    videos: dict[str, Video] = {}
    footage = Footage(folder)

    def add(name: str, path: str, size: int, images: int = 0) -> None:
        name = composed(name)
        if name in videos:
            reason = f"another video has this name: {videos[name].path} is taken"
            footage.left_out[os.path.relpath(path, folder)] = reason
        elif in_classes and not in_class_folder(name):
            footage.left_out[name] = "not in a folder of its class (class/video)"
        elif name.encode(errors="ignore").decode().splitlines() != [name]:  # lines, or not UTF-8 on the disk
            footage.left_out[ascii(name)] = "a list of names cannot hold these characters; rename it"
        else:
            videos[name] = Video(name, path, size, images)

    def look_into(path: str, name: str, above: set[tuple[int, int]]) -> bool:
        """Add what is in a folder, itself too if it holds extracted frames; whether that is anything."""
        others: Counter = Counter()
        images, size = 0, 0
        found = False
        for entry in _entries(path):
            below = f"{name}/{entry.name}" if name else entry.name
            stem, suffix = os.path.splitext(below)
            if entry.name.startswith("."):
                others["hidden"] += 1
                continue
            try:
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    identity = status.st_dev, status.st_ino
                    if identity in above:
                        raise OSError(0, "a link to a folder that it lies in")
                    found |= look_into(entry.path, below, above | {identity})
                    continue
            except OSError as error:
                footage.left_out[ascii(below)[1:-1]] = f"cannot read {entry.path}: {error.strerror}"
                continue
            if suffix.lower() in NO_VIDEOS:
                if IMAGE.match(entry.name):
                    images, size = images + 1, size + status.st_size
                others[suffix.lower()] += 1
            else:
                add(stem, entry.path, status.st_size)
                found = True
        if images and not found and name:
            add(name, path, size, images)
            return True
        footage.ignored += others
        return found

    try:
        top = folder.stat()
        look_into(os.fspath(folder), "", {(top.st_dev, top.st_ino)})
    except OSError as error:
        raise UserError(f"cannot read --videos {folder}: {error.strerror}") from error
    if not videos:
        left_out = "".join(f"; {name}: {reason}" for name, reason in list(footage.left_out.items())[:1])
        absent = f"no video file and no folder of frames (image_00001.jpg, ...) in {folder}"
        raise UserError(f"{absent}{describe(footage.ignored)}{left_out}")
    footage.videos = sorted(videos.values(), key=lambda video: by_class(video.name))
    return footage


def _entries(path: str) -> list[os.DirEntry]:
    """What is in a folder in the order of names; usual suffixes of videos first, to have the name."""

    def order(entry: os.DirEntry) -> tuple[bool, str]:
        return os.path.splitext(entry.name)[1].lower() not in VIDEO_SUFFIXES, entry.name

    with os.scandir(path) as entries:
        return sorted(entries, key=order)


def describe(ignored: Counter) -> str:
    """ "; ignored as no videos: 3 .txt, 1 .json", or nothing."""
    files = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common())
    return f"; ignored as no videos: {files}" if files else ""


def in_class_folder(name: str) -> bool:
    """Whether the name of a video is class/video."""
    return name.count("/") == 1


def find_lists(videos: Path, given: Path | None) -> Path | None:
    """Folder of the split lists: ``given``, else VIDEOS_splits beside the videos, or among them; or None."""
    candidates = [given] if given else [videos.with_name(videos.name + "_splits"), videos]
    folder = next((folder for folder in candidates if find_split_lists(folder)), None)
    if given and not folder:
        raise UserError(f"--splits {given} holds no split lists (trainlist01.txt, ...), see README.md")
    for path in sorted(given.iterdir()) if given else ():
        known = {CLASS_LIST, *(found.path.name for found in find_split_lists(given))}
        if path.suffix in (".txt", ".csv") and path.name not in known:
            log.warning("%s is not read: by its name it is no split list", path)
    return folder


def copy_lists(lists: Path | None, out: Path) -> None:
    """Put the split lists into ``out``; raises UserError if other lists lie there."""
    if not lists or lists.resolve() == out.resolve():
        return
    texts = {found.path.name: read_lines(found.path) for found in find_split_lists(lists)}
    strangers = [found.path for found in find_split_lists(out) if found.path.name not in texts]
    if strangers:
        raise UserError(f"{strangers[0]} is not among the lists in {lists}; keep only one of the two")
    if (lists / CLASS_LIST).is_file():
        texts[CLASS_LIST] = read_lines(lists / CLASS_LIST)
    for name, lines in texts.items():
        write_if_changed(out / name, "".join(f"{line}\n" for line in lines))


def listed_in(out: Path, names: set[str], parts: tuple[str, ...] = ("train", "test")) -> set[str]:
    """Videos of these parts by all the lists in ``out``, spelled as in ``names`` if among these."""
    listed: set[str] = set()
    for split in {found.split for found in find_split_lists(out)}:
        by_part, _ = read_lists(out, split, names)
        listed.update(*(by_part[part] for part in parts))
    return listed


def class_list(out: Path, prepared: set[str], found: set[str]) -> list[str]:
    """Classes in order: those of ``classInd.txt`` ("1 Archery") in ``out`` if it has all, else the folders.

    Only a folder with ``prepared`` videos, or with listed ones among the ``found``, is a class. Empty, that
    is no labels, where a prepared video lies elsewhere than in class/video.
    """
    if not all(map(in_class_folder, prepared)):
        return []
    classes = class_order(prepared | (listed_in(out, found) & found))
    path = out / CLASS_LIST
    lines = read_lines(path) if path.is_file() else []
    official = [composed(line.split(maxsplit=1)[-1].strip()) for line in lines]
    return official if set(classes) <= set(official) else classes

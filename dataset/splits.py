"""Classes, sources and train/test splits, from the names in a database or from list files beside it."""

import csv
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.catalogue import dataset_facts
from utils.errors import UserError

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .h264 .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts "
    ".mxf .ogv .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)
ANY_SUFFIX = re.compile(r"\.\w{1,5}(\s+\d+)?$")  # "video.avi", "video.avi 3"
VIDEO_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})(\s+\d+)?$", re.IGNORECASE)
UCF_NAME = re.compile(r"(^|/)(?P<source>v_[^/]+_g(?P<group>\d+))_c\d+$")  # Class/v_<Class>_gGG_cCC


def class_of(name: str) -> str:
    """Class part of a "class/video" name."""
    return name.split("/", 1)[0]


def by_class(name: str) -> tuple[str, str, str]:
    """Sort key of "class/video" names: classes whatever their case (Hammering, HammerThrow), then names."""
    return class_of(name).lower(), class_of(name), name


def class_order(names: Iterable[str]) -> list[str]:
    """Classes of "class/video" names in their order, see ``by_class``."""
    return sorted({class_of(name) for name in names}, key=by_class)


def read_classes(folder: Path, names: Sequence[str]) -> list[str]:
    """Class list: ``classes.txt`` in ``folder`` where there is one, else the classes of the names.

    An empty file says that the videos have no labels: [].
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return class_order(names)
    spelled = {composed(label).strip(): label for label in class_order(names)}
    classes = [spelled.get(composed(line).strip(), line.strip()) for line in read_lines(path)]
    unknown = sorted(set(spelled.values()) - set(classes))
    if unknown and classes:
        raise UserError(f"{path} lacks the class {unknown[0]!r} of the database; add it or remove the file")
    return classes


def source_ids(names: Sequence[str]) -> list[int]:
    """Id of the recording each video was cut from, its rank among them: a group of UCF101, else the video."""
    matches = [UCF_NAME.search(name) for name in names]
    sources = [match["source"] if match else name for match, name in zip(matches, names, strict=True)]
    return np.unique(sources, return_inverse=True)[1].tolist()


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a UTF-8 text file."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; it should be a UTF-8 text file") from error


def composed(name: str) -> str:
    """A name in one Unicode form (NFC): file systems and lists may spell an accented letter in two ways."""
    return unicodedata.normalize("NFC", name)


def ucf101_split(names: Sequence[str], split: int) -> dict[str, list[str]]:
    """UCF101's official split 1-3 by its rule: the test groups are 7 (split - 1) + 1 ... 7 split."""
    if split > 3:
        raise UserError(f"UCF101 has the splits 1, 2 and 3, not {split}; check --which_split")
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        match = UCF_NAME.search(name)
        if not match:
            raise UserError(f"{name!r} is not a UCF101 name (Class/v_Class_gGG_cCC); is this UCF101?")
        parts["test" if (int(match["group"]) - 1) // 7 == split - 1 else "train"].append(name)
    return parts


def _read_ucf_list(path: Path, part: str) -> dict[str, list[str]]:
    """Lines "class/video.avi" or "class/video.avi 3"."""
    return {part: read_lines(path)}


def _read_hmdb51_list(path: Path, label: str) -> dict[str, list[str]]:
    """Lines "video.avi 1" of training, 2 of test and 0 of unused videos of one class."""
    parts: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for line in read_lines(path):
        name, _, flag = line.strip().rpartition(" ")
        if flag not in parts:
            raise UserError(f"{path}: {line!r} should be 'name.avi 0|1|2'")
        parts[flag].append(f"{label}/{name}")
    return {"train": parts["1"], "test": parts["2"]}


def _read_split_csv(path: Path, _: str) -> dict[str, list[str]]:
    """Rows "class/video,train" or "class/video,test"."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for row in csv.reader(read_lines(path)):
        if len(row) != 2 or row[1].strip() not in parts:
            raise UserError(f"{path}: {','.join(row)!r} should be 'class/video,train' or 'class/video,test'")
        parts[row[1].strip()].append(row[0])
    return parts


def _read_original_csv(path: Path, part: str) -> dict[str, list[str]]:
    """Rows "path/class/video/,frames" with either kind of slash."""
    rows = csv.reader(read_lines(path))
    return {part: ["/".join(re.split(r"[/\\]+", row[0].rstrip("/\\"))[-2:]) for row in rows]}


LISTS = {  # by what they are: the names of the files, what reads one; the first that a folder has counts
    "trainlist/testlist": (r"(?P<part>train|test)list(?P<split>\d*)\.txt", _read_ucf_list),
    "HMDB51 lists": (r"(?P<part>.+)_test_split(?P<split>\d+)\.txt", _read_hmdb51_list),
    "split.csv": (r"split(?P<part>)(?P<split>)\.csv", _read_split_csv),
    "the original's lists": (r"(?P<part>train|val|test)_split(?P<split>\d*)\.csv", _read_original_csv),
}


class SplitList(NamedTuple):
    """A file that lists videos of a ``split``: ``part``: "train", "test", the class of HMDB51's, or empty."""

    path: Path
    kind: str
    part: str
    split: int

    def read(self) -> dict[str, list[str]]:
        """The lines of each part that name a video."""
        return LISTS[self.kind][1](self.path, self.part)


def find_split_lists(folder: Path) -> list[SplitList]:
    """The split lists in ``folder``, those without a number of split 1; no other file is read as one.

    Raises UserError where two files are the same list.
    """
    found: dict[tuple, SplitList] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for kind, (pattern, _) in LISTS.items():
            match = re.fullmatch(pattern, path.name)
            if match:
                part = "test" if match["part"] == "val" else match["part"]
                this = SplitList(path, kind, part, int(match["split"] or 1))
                first = found.setdefault(this[1:], this)
                if first != this:
                    raise UserError(f"{first.path} and {path} are the same list; keep one of them")
    return list(found.values())


def read_lists(folder: Path, split: int, names: Iterable[str]) -> tuple[dict[str, list[str]], str] | None:
    """(videos of each part, what lists these are) by the lists of ``split`` in ``folder``; None without.

    Raises UserError for one that cannot be read, or that stands alone.
    """
    lists = [found for found in find_split_lists(folder) if found.split == split]
    if not lists:
        return None
    kind = min((found.kind for found in lists), key=list(LISTS).index)
    lists = [found for found in lists if found.kind == kind]
    if len(lists) == 1 and lists[0].part in ("train", "test"):
        raise UserError(f"{lists[0].path} needs a list of the other part of split {split} beside it")
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for found in lists:
        for part, read in found.read().items():
            lines[part] += read
    return {part: listed_videos(lines[part], names) for part in lines}, kind


def listed_videos(lines: Iterable[str], names: Iterable[str]) -> list[str]:
    """The videos that lines of lists stand for: "class/video.avi 3" is "class/video"; other dots stay.

    Spelled as in ``names`` where they are among these; a list may name others.
    """
    known = {composed(name): name for name in names}
    found = []
    for line in lines:
        text = composed(line.strip())
        spellings = text, ANY_SUFFIX.sub("", text)
        found.append(next((known[name] for name in spellings if name in known), VIDEO_SUFFIX.sub("", text)))
    return found


def even_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Deterministic split without lists: of each class, in name order, every fourth video is for testing."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for _, members in itertools.groupby(sorted(names), class_of):
        for i, name in enumerate(members):
            parts["test" if i % 4 == 3 else "train"].append(name)
    return parts


def find_split(base: str, folder: Path, names: Sequence[str], split: int) -> tuple[dict[str, list[str]], str]:
    """Names of the train and test videos of dataset ``base``, and where the split comes from, in words.

    List files may name videos that the database lacks (downloads lose some) and the other way round.
    """
    facts = dataset_facts(base)
    if facts.split_by == "names":
        return ucf101_split(names, split), f"official UCF101 split {split}, from the names"
    found = read_lists(folder, split, names)
    if found:
        return found[0], f"{found[1]} in {folder}, split {split}"
    if facts.split_by == "lists":
        raise UserError(f"no HMDB51 lists (<class>_test_split{split}.txt) in {folder}; put them there")
    if split != 1:
        raise UserError(f"no lists for split {split} in {folder}; only split 1 can be even, without")
    origin = f"no lists in {folder}: an even split, every fourth video of a class for testing"
    return even_split(names), origin

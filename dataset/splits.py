"""Classes, sources and train/test splits, from the names in a database or from list files beside it."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError

UCF_NAME = re.compile(r"(^|/)(?P<source>v_[^/]+_g(?P<group>\d+))_c\d+$")  # Class/v_<Class>_gGG_cCC


def class_of(name: str) -> str:
    """Class part of a "class/video" name."""
    return name.split("/", 1)[0]


def by_class(name: str) -> tuple[str, str, str]:
    """Sort key of "class/video" names: classes in case-insensitive order (Hammering before HammerThrow), then names."""
    return class_of(name).lower(), class_of(name), name


def class_order(names: Iterable[str]) -> list[str]:
    """Classes of "class/video" names in their order, see ``by_class``."""
    return sorted({class_of(name) for name in names}, key=by_class)


def read_classes(folder: Path, names: Sequence[str]) -> list[str]:
    """Class list: ``classes.txt`` in ``folder`` where there is one, else the classes of the names."""
    path = folder / "classes.txt"
    if not path.is_file():
        return class_order(names)
    classes = [line.strip() for line in read_lines(path)]
    unknown = sorted({class_of(name) for name in names} - set(classes))
    if unknown:
        raise UserError(
            f"{path} lacks the class {unknown[0]!r} of the database beside it; add it or remove the file"
        )
    return classes


def source_ids(names: Sequence[str]) -> list[int]:
    """Id of the recording each video was cut from: equal for the clips of one UCF101 group, else one per video."""
    matches = [UCF_NAME.search(name) for name in names]
    sources = [match["source"] if match else name for match, name in zip(matches, names, strict=True)]
    return np.unique(sources, return_inverse=True)[1].tolist()


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a UTF-8 text file."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; it should be a UTF-8 text file") from error


def without_suffix(path: str) -> str:
    """ "class/video.avi" or "class/video.avi 3" -> "class/video"; other dots and numbers stay."""
    return re.sub(r"\.(avi|mp4|mkv|webm)(\s+\d+)?$", "", path.strip(), flags=re.IGNORECASE)


def ucf101_split(names: Sequence[str], split: int) -> dict[str, list[str]]:
    """UCF101's official split 1-3 by its rule: the test groups are 7 (split - 1) + 1 ... 7 split."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        match = UCF_NAME.search(name)
        if not match:
            raise UserError(
                f"{name!r} is not a UCF101 name (Class/v_Class_gGG_cCC); is this database really UCF101?"
            )
        parts["test" if (int(match["group"]) - 1) // 7 == split - 1 else "train"].append(name)
    return parts


def read_ucf_lists(folder: Path, split: int) -> dict[str, list[str]] | None:
    """``trainlistNN.txt`` and ``testlistNN.txt`` in ``folder``; None where there are none."""
    paths = {part: folder / f"{part}list{split:02d}.txt" for part in ("train", "test")}
    if not any(path.is_file() for path in paths.values()):
        return None
    return {part: [without_suffix(line) for line in read_lines(path)] for part, path in paths.items()}


def read_hmdb51_lists(folder: Path, split: int) -> dict[str, list[str]] | None:
    """``<class>_test_split<N>.txt`` files in ``folder``: "name.avi 1" is train, 2 test, 0 unused; None without any."""
    ending = f"_test_split{split}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for path in paths:
        for line in read_lines(path):
            name, _, flag = line.strip().rpartition(" ")
            if flag not in ("0", "1", "2"):
                raise UserError(f"{path}: {line!r} should be 'name.avi 0|1|2'")
            if flag != "0":
                parts["train" if flag == "1" else "test"].append(
                    f"{path.name.removesuffix(ending)}/{without_suffix(name)}"
                )
    return parts if paths else None


def read_split_csv(folder: Path, split: int) -> dict[str, list[str]] | None:
    """``split.csv`` in ``folder``, of every ``split``: rows "class/video,train" or "class/video,test"; None without."""
    path = folder / "split.csv"
    if not path.is_file():
        return None
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for row in csv.reader(read_lines(path)):
        if len(row) != 2 or row[1].strip() not in parts:
            raise UserError(f"{path}: {','.join(row)!r} should be 'class/video,train' or 'class/video,test'")
        parts[row[1].strip()].append(without_suffix(row[0]))
    return parts


def read_lists(folder: Path, split: int) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """(What they are, names of each part) of the lists in ``folder``, the first of which count."""
    for what, read in (
        ("trainlist/testlist", read_ucf_lists),
        ("HMDB51 lists", read_hmdb51_lists),
        ("split.csv", read_split_csv),
    ):
        parts = read(folder, split)
        if parts is not None:
            yield what, parts


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
    if base == "ucf101":
        return ucf101_split(names, split), f"official UCF101 split {split}, from the names"
    for what, parts in read_lists(folder, split):
        return parts, f"{what} in {folder}, split {split}"
    if base == "hmdb51":
        raise UserError(
            f"no HMDB51 lists (<class>_test_split{split}.txt) in {folder}; put the official ones there"
        )
    if split != 1:
        raise UserError(
            f"no lists for split {split} in {folder}; only split 1 can do without (an even split)"
        )
    return even_split(
        names
    ), f"no lists in {folder}: an even split, every fourth video of a class for testing"

"""Datasets by name: the sources that their frames come from, where these lie, and the videos of each part."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.catalogue import DATASETS, PART_FOLDERS, STREAMS, DatasetName, lies_in_parts, parse_name
from dataset.clips import long_enough
from dataset.crop import Box, read_clips
from dataset.footage import class_list, find_lists, find_videos, in_class_folder
from dataset.source import FrameSource
from dataset.splits import class_of, find_split, find_split_lists, read_classes, source_ids
from dataset.store import VideoStore
from dataset.video_files import VideoFiles
from utils.errors import UserError
from utils.log import log


@dataclass(frozen=True)
class Videos:
    """The usable videos of one part of a dataset; arrays are aligned.

    ``positions[stream]`` are record numbers in ``stores[stream]``; ``frames`` the number of frames that all
    streams have; ``sources`` the id of the recording each video was cut from. ``classes`` is empty where the
    videos have no labels. ``too_short`` counts the videos of the part that were left out because they are too
    short or unreadable.
    """

    stores: dict[str, FrameSource]
    names: list[str]
    positions: dict[str, np.ndarray]
    frames: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    classes: list[str]
    too_short: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: np.ndarray) -> "Videos":
        """The videos of these indices, in their order."""
        return replace(
            self,
            names=[self.names[i] for i in rows],
            positions={stream: positions[rows] for stream, positions in self.positions.items()},
            frames=self.frames[rows],
            labels=self.labels[rows],
            sources=self.sources[rows],
        )

    def size(self, video: int) -> tuple[int, int]:
        """(height, width) in pixels of a video's frames in its first stream; raises BrokenVideo."""
        stream, store = next(iter(self.stores.items()))
        return store.size(int(self.positions[stream][video]))

    def read_clips(self, video: int, clips: np.ndarray, boxes: Sequence[Box], side: int) -> Tensor:
        """Clips of one video, uint8 [V, streams, T, side, side, 3]: ``boxes[v]`` of the frames ``clips[v]``.

        clips: int [V, T], ascending in t. boxes: in pixels of a frame of ``size(video)``. Raises BrokenVideo.
        """
        size = self.size(video)
        out = torch.empty(len(clips), len(self.stores), clips.shape[1], side, side, 3, dtype=torch.uint8)
        for number, (stream, store) in enumerate(self.stores.items()):
            read_clips(store, int(self.positions[stream][video]), clips, boxes, size, out[:, number])
        return out


@dataclass(frozen=True)
class SourceFacts:
    """A kind of sources.

    label: what messages call it. open: makes it of a path. places: where it lies in the folder of a dataset,
    by the streams that it can have. is_footage: it is a folder in which train/, val/ and lists lie, not a
    file beside these.
    """

    label: str
    open: Callable[[Path], FrameSource]
    places: dict[str, str]
    is_footage: bool = False


DATABASES = {stream: facts.database for stream, facts in STREAMS.items()}
SOURCES = {  # by the end of options such as --rgb_lmdb; of a dataset that has several the first counts
    "lmdb": SourceFacts("database", VideoStore, DATABASES),
    "videos": SourceFacts("folder of videos", VideoFiles, {"rgb": "videos"}, is_footage=True),
}


def source_options() -> dict[str, str]:
    """Help by name of the options that say where a stream lies: "rgb_lmdb", ..."""
    return {
        f"{stream}_{kind}": f"{STREAMS[stream].label} {facts.label}, if it is not at DATA_ROOT/NAME/{place}"
        for kind, facts in SOURCES.items()
        for stream, place in facts.places.items()
    }


def data_folder(data_root: Path | str | None = None) -> Path:
    """Where datasets lie: ``data_root``, else $COCLR_DATA, else ./data."""
    return Path(data_root or os.environ.get("COCLR_DATA", "data"))


def locate(
    dataset: DatasetName, data_root: Path, part: str, given: Mapping[str, str | None]
) -> dict[str, tuple[str, Path]]:
    """(key of ``SOURCES``, path) of each stream: by an option ``given``, else the first in ROOT/NAME."""
    found = {}
    for stream in dataset.streams:
        kinds = [kind for kind, facts in SOURCES.items() if stream in facts.places]
        places = {kind: Path(given[f"{stream}_{kind}"]) for kind in kinds if given.get(f"{stream}_{kind}")}
        if len(places) > 1:
            options = " and ".join(f"--{stream}_{kind}" for kind in places)
            raise UserError(f"{options} exclude one another: the frames come from one of them")
        for kind in () if places else kinds:
            folder = data_root / dataset.base
            above = folder if SOURCES[kind].is_footage else _folder_of(part, dataset, folder)
            places[kind] = above / SOURCES[kind].places[stream]
        kind = next((kind for kind, path in places.items() if path.exists()), None)
        if kind is None:
            absent = " and no ".join(f"{SOURCES[kind].label} at {path}" for kind, path in places.items())
            options = ", ".join(f"--{stream}_{kind}" for kind in kinds)
            remedy = f"set --data_root, $COCLR_DATA or {options}, or make one by 'python -m dataset.prepare'"
            raise UserError(f"no {STREAMS[stream].label} {absent}; {remedy}")
        path = places[kind]
        if SOURCES[kind].is_footage:
            path = _folder_of(part, dataset, path)
        elif given.get(f"{stream}_{kind}"):
            path = _database_of(part, dataset, path, f"--{stream}_{kind}")
        found[stream] = kind, path
    return found


def _database_of(part: str, dataset: DatasetName, path: Path, option: str) -> Path:
    """The database of a part, where ``option`` names that of one; UserError where it cannot be that."""
    folder = path.parent
    if folder.name in PART_FOLDERS.values():
        path = folder.parent / PART_FOLDERS[part] / path.name
        if not path.exists():
            raise UserError(f"{option} names a database in {folder}, but the other part is not at {path}")
    elif dataset.facts.in_parts and part == "test":
        raise UserError(
            f"{option} {path} is one database, and {dataset.base} has one of each part: put them into "
            f"{' and '.join(f'{name}/' for name in PART_FOLDERS.values())}, and name either"
        )
    return path


def _folder_of(part: str, dataset: DatasetName, folder: Path) -> Path:
    return folder / PART_FOLDERS[part] if lies_in_parts(dataset.base, folder) else folder


def open_videos(
    name: str,
    part: str,
    seq_len: int,
    ds: int,
    data_root: Path | str | None = None,
    given: Mapping[str, str | None] | None = None,
    split: int = 1,
) -> Videos:
    """The videos of one ``part`` ("train" or "test") of dataset ``name`` that are long enough for a clip.

    ``given`` says where sources lie, by the names of ``source_options``. Without ``data_root`` datasets lie
    in $COCLR_DATA, else in ./data. Raises UserError for a missing source, or when no video is left.
    """
    dataset = parse_name(name)
    root = data_folder(data_root)
    places = locate(dataset, root, part, given or {})
    stores = {stream: SOURCES[kind].open(path) for stream, (kind, path) in places.items()}
    position = {stream: {video: i for i, video in enumerate(store.names)} for stream, store in stores.items()}
    first = next(iter(stores))
    source = dict(zip(stores[first].names, source_ids(stores[first].names), strict=True))
    names = [video for video in stores[first].names if all(video in p for p in position.values())]
    names, classes, origin = _split(dataset, part, split, names, *places[first], root)
    log.info("%s %s: %d videos (%s)", name, part, len(names), origin)
    positions = {s: np.array([position[s][video] for video in names], dtype=np.int64) for s in stores}
    frames = np.min([stores[s].frame_counts()[positions[s]] for s in stores], axis=0)
    keep = long_enough(frames, seq_len, ds, dataset.facts.whole_clip)
    clip = f"--seq_len {seq_len} --ds {ds}"
    if not keep.any():
        absent = f"none of {len(names)} videos in {places[first][1]} is long enough for {clip}"
        raise UserError(f"{name}: the {part} split is empty ({origin}), {absent}")
    too_short = int((~keep).sum())
    if too_short:
        log.info("%s %s: left out %d videos too short for %s, or unreadable", name, part, too_short, clip)
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([number.get(class_of(video), 0) for video in names], dtype=np.int64)
    sources = np.array([source[video] for video in names])
    videos = Videos(stores, names, positions, frames, labels, sources, classes, too_short)
    return videos.subset(np.flatnonzero(keep))


def _split(
    dataset: DatasetName, part: str, split: int, names: list[str], kind: str, path: Path, data_root: Path
) -> tuple[list[str], list[str], str]:
    """(videos of a part among ``names``, classes, where the split comes from) by lists and classes beside a
    database, or where ``prepare`` looks for those of footage."""
    is_footage = SOURCES[kind].is_footage
    part_folder = path if is_footage else path.parent
    has_part_name = part_folder.name in PART_FOLDERS.values()
    lies_apart = has_part_name or dataset.facts.in_parts
    dataset_folder = part_folder.parent if has_part_name else part_folder
    lists_folder = part_folder
    if is_footage:
        lists_folder = find_lists(dataset_folder, None) or data_root / dataset.base
    if dataset.base in DATASETS or find_split_lists(lists_folder):
        names = [name for name in names if in_class_folder(name)]
    classes_folder = lists_folder if is_footage else dataset_folder
    if (classes_folder / "classes.txt").is_file():
        classes = read_classes(classes_folder, names)
    else:
        everything = set(names)
        if is_footage and lies_apart:  # both parts have one class list
            parts = [find_videos(dataset_folder / folder) for folder in PART_FOLDERS.values()]
            everything = {video.name for footage in parts for video in footage.videos}
        classes = class_list(lists_folder, everything, everything)
    if not classes and part == "test":
        raise UserError(f"{dataset.base} has no test part and no labels: not all videos lie in class folders")
    if lies_apart and split != 1:
        raise UserError(f"{dataset.base} has one split, in train/ and val/, not --which_split {split}")
    if lies_apart or not classes:
        origin = f"all in {part_folder}"
        return names, classes, origin if classes else f"{origin}, without labels"
    parts, origin = find_split(dataset.base, lists_folder, names, split)
    wanted = set(parts[part])
    return [name for name in names if name in wanted], classes, origin

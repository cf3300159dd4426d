"""Datasets by name: the sources that their frames come from, where these lie, and the videos of each part."""

import logging
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
from dataset.preparation.find import class_list, find_lists, find_videos, in_class_folder
from dataset.source import FrameSource
from dataset.splits import class_of, find_split, find_split_lists, read_classes, source_ids
from dataset.store import VideoStore
from dataset.video_files import VideoFiles
from utils.errors import UserError

log = logging.getLogger("coclr")


@dataclass(frozen=True)
class Videos:
    """The usable videos of one part of a dataset; arrays are aligned.

    ``positions[stream]`` are record numbers in ``stores[stream]``; ``frames`` the number of frames that all streams
    have; ``sources`` the id of the recording each video was cut from. ``classes`` is empty where the videos have no
    labels. ``too_short`` counts the videos of the part that were left out because they are too short or unreadable.
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

    label: what messages call it. streams: those that it can have. open: makes it of a path. place: its path in the
    folder of a dataset, by stream. is_footage: it is a folder in which train/, val/ and lists lie, not a file beside
    these.
    """

    label: str
    streams: tuple[str, ...]
    open: Callable[[Path], FrameSource]
    place: Callable[[str], str]
    is_footage: bool = False


SOURCES = {  # by the end of options such as --rgb_lmdb; of a dataset that has several the first counts
    "lmdb": SourceFacts("database", tuple(STREAMS), VideoStore, lambda stream: STREAMS[stream].database),
    "videos": SourceFacts("folder of videos", ("rgb",), VideoFiles, lambda stream: "videos", is_footage=True),
}


def source_options() -> dict[str, str]:
    """Help by name of the options that say where a stream lies: "rgb_lmdb", ..."""
    return {
        f"{stream}_{kind}": (
            f"{STREAMS[stream].label} {facts.label}, if it is not at DATA_ROOT/NAME/{facts.place(stream)}"
        )
        for kind, facts in SOURCES.items()
        for stream in facts.streams
    }


def locate(
    dataset: DatasetName, data_root: Path, part: str, given: Mapping[str, str | None]
) -> dict[str, tuple[str, Path]]:
    """(key of ``SOURCES``, path) of each stream: as an option in ``given`` says, else the first kind in ROOT/NAME."""
    folder = data_root / dataset.base
    found = {}
    for stream in dataset.streams:
        kinds = [kind for kind, facts in SOURCES.items() if stream in facts.streams]
        named = {kind: Path(given[f"{stream}_{kind}"]) for kind in kinds if given.get(f"{stream}_{kind}")}
        if len(named) > 1:
            options = " and ".join(f"--{stream}_{kind}" for kind in named)
            raise UserError(f"{options} exclude one another: the frames come from one of them")
        places = named or {kind: _usual_place(dataset, part, folder, stream, kind) for kind in kinds}
        kind = next((kind for kind, path in places.items() if path.exists()), None)
        if kind is None:
            raise UserError(_absent(dataset, data_root, stream, places, is_known=bool(named or found)))
        path = places[kind]
        found[stream] = kind, _folder_of(part, dataset, path) if SOURCES[kind].is_footage else path
    return found


def _usual_place(dataset: DatasetName, part: str, folder: Path, stream: str, kind: str) -> Path:
    above = folder if SOURCES[kind].is_footage else _folder_of(part, dataset, folder)
    return above / SOURCES[kind].place(stream)


def _folder_of(part: str, dataset: DatasetName, folder: Path) -> Path:
    return folder / PART_FOLDERS[part] if lies_in_parts(dataset.base, folder) else folder


def _absent(
    dataset: DatasetName, data_root: Path, stream: str, places: Mapping[str, Path], is_known: bool
) -> str:
    """What to say of a stream that is at none of its ``places``; of an unknown dataset, which ones there are."""
    folder = data_root / dataset.base
    options = ", ".join(f"--{stream}_{kind}" for kind in places)
    if is_known or folder.is_dir() or dataset.base in DATASETS:
        absent = " and no ".join(f"{SOURCES[kind].label} at {path}" for kind, path in places.items())
        return (
            f"no {STREAMS[stream].label} {absent}; set {options}, --data_root or $COCLR_DATA, or make a database by "
            "'python -m dataset.prepare'"
        )
    prepared = []
    if data_root.is_dir():
        prepared = sorted(path.name for path in data_root.iterdir() if path.is_dir())
    return (
        f"unknown dataset {dataset.base!r}: there is no folder {folder}. Known: {', '.join(DATASETS)}; in {data_root}: "
        f"{', '.join(prepared) or 'nothing'}. Prepare it with 'python -m dataset.prepare' or set --data_root or "
        f"{options}"
    )


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

    ``given`` says where sources lie, by the names of ``source_options``. Without ``data_root`` datasets lie in
    $COCLR_DATA, else in ./data. Raises UserError for a missing source, an unknown dataset, or when no video is left.
    """
    dataset = parse_name(name)
    root = Path(data_root or os.environ.get("COCLR_DATA", "data"))
    places = locate(dataset, root, part, given or {})
    stores = {stream: SOURCES[kind].open(path) for stream, (kind, path) in places.items()}
    position = {stream: {video: i for i, video in enumerate(store.names)} for stream, store in stores.items()}
    names = [
        video for video in next(iter(stores.values())).names if all(video in p for p in position.values())
    ]
    found = _split(dataset, part, split, names, *next(iter(places.values())), root)
    log.info("%s %s: %d videos (%s)", name, part, len(found.names), found.origin)
    if not found.names:
        raise UserError(
            f"{name}: the {part} split is empty, none of its videos is in {found.folder} ({found.origin}); check the "
            "lists and the videos"
        )

    positions = {s: np.array([position[s][video] for video in found.names], dtype=np.int64) for s in stores}
    frames = np.min([stores[s].frame_counts()[positions[s]] for s in stores], axis=0)
    keep = long_enough(frames, seq_len, ds, dataset.facts.whole_clip)
    too_short = int((~keep).sum())
    if too_short:
        log.info(
            "%s %s: left out %d videos too short for %d frames at stride %d, or unreadable",
            name,
            part,
            too_short,
            seq_len,
            ds,
        )
    if not keep.any():
        raise UserError(
            f"no video of {name} ({part}) in {found.folder} is long enough for --seq_len {seq_len} --ds {ds}"
        )
    number = {label: i for i, label in enumerate(found.classes)}
    labels = np.array([number.get(class_of(video), 0) for video in found.names], dtype=np.int64)
    sources = range(len(labels)) if found.lies_apart else source_ids(found.names)
    videos = Videos(
        stores, found.names, positions, frames, labels, np.array(sources), found.classes, too_short
    )
    return videos.subset(np.flatnonzero(keep))


@dataclass(frozen=True)
class _Part:
    """The ``names`` of a part of a dataset and where they were found; ``lies_apart``: in a folder for itself."""

    names: list[str]
    classes: list[str]
    folder: Path
    lies_apart: bool
    origin: str


def _split(
    dataset: DatasetName, part: str, split: int, names: list[str], kind: str, path: Path, data_root: Path
) -> _Part:
    """The videos of a part among ``names`` by lists and classes: beside a database, or where ``prepare`` finds them."""
    is_footage = SOURCES[kind].is_footage
    folder = path if is_footage else path.parent
    lies_apart = folder.name in PART_FOLDERS.values()
    top = folder.parent if lies_apart else folder
    lists = folder
    if is_footage:
        lists = find_lists(top, None) or data_root / dataset.base
    if dataset.base in DATASETS or find_split_lists(lists):
        names = [name for name in names if in_class_folder(name)]
    listing = lists if is_footage else top
    if (listing / "classes.txt").is_file():
        classes = read_classes(listing, names)
    else:
        found = set(names)
        if is_footage and lies_apart:  # both parts have one class list
            found = {video.name for f in PART_FOLDERS.values() for video in find_videos(top / f).videos}
        classes = class_list(lists, found, found)
    if not classes and part == "test":
        raise UserError(
            f"{dataset.base} has no test part: its videos, not all in folders of classes, have no labels"
        )
    if lies_apart or not classes:
        return _Part(names, classes, folder, lies_apart, f"all in {folder}")
    parts, origin = find_split(dataset.base, lists, names, split)
    wanted = set(parts[part])
    return _Part([name for name in names if name in wanted], classes, folder, False, origin)

"""Datasets by name: which streams and how many clips a name stands for, where its databases lie, what is in them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.catalogue import DATASETS, PART_FOLDERS, STREAMS, DatasetName, lies_in_parts, parse_name
from dataset.clips import long_enough
from dataset.crop import Box, read_clips
from dataset.source import FrameSource
from dataset.splits import class_of, find_split, read_classes, source_ids
from dataset.store import VideoStore
from utils.errors import UserError

log = logging.getLogger("coclr")


@dataclass(frozen=True)
class Videos:
    """The usable videos of one part of a dataset; arrays are aligned.

    ``positions[stream]`` are record numbers in ``stores[stream]``; ``frames`` the number of frames that all streams
    have; ``sources`` the id of the recording each video was cut from. ``too_short`` counts the videos of the part that
    were left out because they are too short or unreadable.
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


def locate(dataset: DatasetName, data_root: Path, part: str, given: dict[str, str | None]) -> dict[str, Path]:
    """Path of each stream's database: the ``given`` one, else ROOT/NAME/{rgb,flow}.lmdb (Kinetics: in train/, val/)."""
    folder = data_root / dataset.base
    if (
        dataset.base not in DATASETS
        and not folder.is_dir()
        and not all(given.get(s) for s in dataset.streams)
    ):
        prepared = (
            sorted(path.name for path in data_root.iterdir() if path.is_dir()) if data_root.is_dir() else []
        )
        raise UserError(
            f"unknown dataset {dataset.base!r}: there is no folder {folder}. Known: {', '.join(DATASETS)}; in "
            f"{data_root}: {', '.join(prepared) or 'nothing'}. Prepare it with 'python -m dataset.prepare' or set "
            "--data_root"
        )
    if lies_in_parts(dataset.base, folder):
        folder = folder / PART_FOLDERS[part]
    paths = {}
    for stream in dataset.streams:
        paths[stream] = Path(given.get(stream) or folder / STREAMS[stream].database)
        if not paths[stream].exists():
            raise UserError(
                f"no {stream} database at {paths[stream]}; set --{stream}_lmdb, --data_root or $COCLR_DATA"
            )
    return paths


def open_videos(
    name: str,
    part: str,
    seq_len: int,
    ds: int,
    data_root: Path | str | None = None,
    given: dict[str, str | None] | None = None,
    split: int = 1,
) -> Videos:
    """The videos of one ``part`` ("train" or "test") of dataset ``name`` that are long enough for a clip.

    Without ``data_root`` datasets lie in $COCLR_DATA, else in ./data.

    Raises UserError for a missing database, an unknown dataset, or when no video is left.
    """
    dataset = parse_name(name)
    paths = locate(dataset, Path(data_root or os.environ.get("COCLR_DATA", "data")), part, given or {})
    stores = {stream: VideoStore(path) for stream, path in paths.items()}
    folder = next(iter(paths.values())).parent
    position = {stream: {video: i for i, video in enumerate(store.names)} for stream, store in stores.items()}
    everything = [
        video for video in next(iter(stores.values())).names if all(video in p for p in position.values())
    ]

    separate = (
        folder.name in PART_FOLDERS.values()
    )  # Kinetics: one database per part, every video its own source
    class_folder = folder.parent if separate else folder
    classes = read_classes(class_folder, everything)
    if separate:
        chosen, origin = everything, str(folder)
    else:
        parts, origin = find_split(dataset.base, folder, everything, split)
        wanted = set(parts[part])
        chosen = [video for video in everything if video in wanted]
    log.info("%s %s: %d videos (%s)", name, part, len(chosen), origin)
    if not chosen:
        raise UserError(
            f"{name}: the {part} split is empty, none of its videos is in {folder} ({origin}); check the "
            "lists and the database"
        )

    positions = {s: np.array([position[s][video] for video in chosen], dtype=np.int64) for s in stores}
    frames = np.min([stores[s].frame_counts()[positions[s]] for s in stores], axis=0)
    keep = long_enough(frames, seq_len, ds, dataset.facts.whole_clip)
    if not keep.all():
        log.info(
            "%s %s: left out %d videos too short for %d frames at stride %d, or unreadable",
            name,
            part,
            (~keep).sum(),
            seq_len,
            ds,
        )
    if not keep.any():
        raise UserError(
            f"no video of {name} ({part}) in {folder} is long enough for --seq_len {seq_len} --ds {ds}"
        )
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([number[class_of(video)] for video in chosen], dtype=np.int64)
    sources = np.array(range(len(chosen)) if separate else source_ids(chosen), dtype=np.int64)
    names = [video for video, kept in zip(chosen, keep, strict=True) if kept]
    return Videos(
        stores,
        names,
        {s: p[keep] for s, p in positions.items()},
        frames[keep],
        labels[keep],
        sources[keep],
        classes,
        int((~keep).sum()),
    )

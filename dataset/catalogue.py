"""What is known of datasets and streams, as tables; what a ``--dataset`` name says follows from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class DatasetFacts:
    """How a dataset is to be treated.

    split_by: its official splits follow from the "names" of its videos, it needs its "lists", or it takes any
    "lists or evenly" splits without them. in_parts: training and test videos lie apart, in train/ and val/.
    whole_clip: only videos longer than a whole clip are used, else those longer than half of one.
    keeps_all_checkpoints: pretraining keeps every checkpoint, not the last ones alone.
    """

    split_by: Literal["names", "lists", "lists or evenly"] = "lists or evenly"
    in_parts: bool = False
    whole_clip: bool = False
    keeps_all_checkpoints: bool = False


@dataclass(frozen=True)
class StreamFacts:
    """A kind of frames: what messages call it, the ``ending`` of dataset names that stand for it, how many
    frames it lacks of its video's, and the file name of its database."""

    label: str
    ending: str
    frames_lacking: int
    database: str


@dataclass(frozen=True)
class DatasetName:
    """What a ``--dataset`` value says: ucf101-f-2clip -> base ucf101, streams ("flow",), clips 2."""

    base: str
    streams: tuple[str, ...]
    clips: int

    @property
    def facts(self) -> DatasetFacts:
        return dataset_facts(self.base)


DATASETS = {  # every other name is a folder made by dataset.prepare
    "ucf101": DatasetFacts(split_by="names"),
    "hmdb51": DatasetFacts(split_by="lists"),
    "k400": DatasetFacts(in_parts=True, whole_clip=True, keeps_all_checkpoints=True),
}
STREAMS = {
    "rgb": StreamFacts("RGB", ending="", frames_lacking=0, database="rgb.lmdb"),
    "flow": StreamFacts("flow", ending="-f", frames_lacking=1, database="flow.lmdb"),
}
SEVERAL_STREAMS = {"-2stream": ("rgb", "flow")}  # by ending of the name
PART_FOLDERS = {"train": "train", "test": "val"}  # where the parts of a dataset lie apart


def dataset_facts(base: str) -> DatasetFacts:
    """The facts of a dataset by its name without endings."""
    return DATASETS.get(base, DatasetFacts())


def parse_name(name: str) -> DatasetName:
    """Take a dataset name apart: NAME[-f|-2stream][-2clip]."""
    base, clips = (name.removesuffix("-2clip"), 2) if name.endswith("-2clip") else (name, 1)
    endings = {facts.ending: (stream,) for stream, facts in STREAMS.items()} | SEVERAL_STREAMS
    ending = max((ending for ending in endings if base.endswith(ending)), key=len)
    return DatasetName(base.removesuffix(ending), endings[ending], clips)


def lies_in_parts(base: str, folder: Path) -> bool:
    """Whether videos or databases in ``folder`` lie in train/ and val/: by the table, or both are there."""
    return dataset_facts(base).in_parts or all((folder / part).is_dir() for part in PART_FOLDERS.values())

"""Command-line options of data: which videos, where they lie, what a clip of them is."""

import argparse

from dataset.registry import source_options
from utils.options import Parser, non_negative_int, positive_int


def places_of_data() -> list[str]:
    """Options that say where data lies, which may differ from machine to machine of one run."""
    return ["data_root", *source_options()]


def add_database_options(group: argparse._ActionsContainer) -> None:
    """Where the frames of --dataset lie."""
    group.add_argument("--data_root", help="folder of the datasets; $COCLR_DATA or ./data if not given")
    for name, place in source_options().items():
        group.add_argument(f"--{name}", help=place)


def add_data_options(parser: Parser, dataset: str, clips: int, workers: int) -> None:
    """Which clips the loader gives, with the defaults of one command; ``clips`` per video."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=dataset, help="dataset name, NAME[-f|-2stream][-2clip]")
    add_database_options(group)
    group.add_argument("--num_seq", type=int, default=clips, choices=[clips], help="clips per video")
    if clips == 2:  # pretraining
        meaning = "1: colour jitter and grey on flow, too, as in the paper; 0: on RGB alone"
        group.add_argument("--flow_colour", type=int, default=1, choices=[0, 1], help=meaning)
    add_clip_options(group, workers)


def add_clip_options(group: argparse._ActionsContainer, workers: int) -> None:
    """What a clip is, how many are taken at once and who reads them."""
    group.add_argument("--seq_len", type=positive_int, default=32, help="frames per clip")
    group.add_argument("--ds", type=positive_int, default=1, help="stride between the frames of a clip")
    group.add_argument("--img_dim", type=positive_int, default=128, help="side of the frames in pixels")
    group.add_argument("--batch_size", type=positive_int, default=32, help="videos, or windows, per process")
    loaders = "loader processes per training process, at most one per core"
    group.add_argument("-j", "--workers", type=non_negative_int, default=workers, help=loaders)

"""Command-line options that several commands share. Hyphens and underscores in option names are interchangeable."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

VERSION = "1.0.0"


class _Help(argparse.HelpFormatter):
    """Help whose usage line shows what is needed alone, with defaults where there are any, N and X for numbers."""

    def add_usage(self, usage, actions, groups, prefix=None):
        self._prog += " [options]"
        super().add_usage(usage, [a for a in actions if a.required or not a.option_strings], [], prefix)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        letters = {int: "N", positive_int: "N", whole: "N", float: "X", not_negative: "X"}
        return letters.get(action.type, action.dest.upper())

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default is None or default is False or default in ("", [], argparse.SUPPRESS):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help or ''} (default: {str(shown).replace('%', '%%')})".lstrip()


class Parser(argparse.ArgumentParser):
    """ArgumentParser that takes --moco_k for --moco-k and the reverse, and reports an error as one line, status 2."""

    def __init__(self, description: str):
        module = sys.modules["__main__"].__spec__
        super().__init__(
            prog=f"python -m {module.name}" if module else None,
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.add_argument("--version", action="version", version=f"CoCLR {VERSION}")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        spelling = {option.replace("_", "-"): option for option in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            words.append(
                spelling.get(name.replace("_", "-"), name) + equals + value if word[:2] == "--" else word
            )
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} should be at least 1")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if int(text) == 0 else positive_int(text)


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} should be a number of at least 0")
    return value


def add_database_options(group: argparse._ActionsContainer) -> None:
    """Where the databases of --dataset lie."""
    group.add_argument("--data_root", help="folder of the datasets; $COCLR_DATA or ./data if not given")
    group.add_argument("--rgb_lmdb", help="RGB database, if it is not at DATA_ROOT/NAME/rgb.lmdb")
    group.add_argument("--flow_lmdb", help="flow database, if it is not at DATA_ROOT/NAME/flow.lmdb")
    group.add_argument("--rgb_videos", help="RGB folder of videos, if it is not at DATA_ROOT/NAME/videos")


def training_parser(description: str, models: list[str], num_seq: int, **defaults: Any) -> Parser:
    """The options of all mains, with the ``defaults`` of one."""
    parser = Parser(description)
    parser.add_argument("--model", default=models[0], choices=models, help="what is trained")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="dataset name, NAME[-f|-2stream][-2clip]")
    add_database_options(data)
    data.add_argument("--seq_len", type=positive_int, default=32, help="frames per clip")
    data.add_argument(
        "--num_seq", type=positive_int, default=num_seq, choices=[num_seq], help="clips per video"
    )
    data.add_argument("--ds", type=positive_int, default=1, help="stride between the frames of a clip")
    data.add_argument("--img_dim", type=positive_int, default=128, help="side of the square frames in pixels")
    data.add_argument(
        "-j",
        "--workers",
        type=whole,
        help="loader processes per training process, as many as there are cores at most",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--net", default="s3d", choices=["s3d", "s3dg", "r50"], help="backbone")
    training.add_argument("--batch_size", type=positive_int, default=32, help="videos per process and step")
    training.add_argument("--epochs", type=positive_int, default=10, help="epochs in all")
    training.add_argument("--start_epoch", type=whole, default=0, help="first epoch, counted from 0")
    training.add_argument("--lr", type=not_negative, default=1e-3, help="learning rate of the first epoch")
    training.add_argument("--schedule", type=int, nargs="*", help="epochs that drop the rate to 1/10")
    training.add_argument("--cos", action="store_true", help="cosine learning rate instead of --schedule")
    training.add_argument("--wd", type=not_negative, help="weight decay")
    training.add_argument("--seed", type=whole, default=0, help="seed of everything random")
    training.add_argument(
        "--resume", metavar="CKPT|auto", help="go on from this checkpoint, or from the run's newest"
    )
    training.add_argument(
        "--reset_lr", action="store_true", help="on --resume, take --lr, not the checkpoint's rate"
    )
    training.add_argument("--save_freq", type=positive_int, default=1, help="epochs between checkpoints")
    training.add_argument(
        "--print_freq", type=positive_int, default=5, help="steps between readings of the meters"
    )
    training.add_argument("--prefix", help="results go to log-PREFIX/")
    training.add_argument("--name_prefix", default="", help="start of the run's name")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "fp16"],
        help="arithmetic of the encoders; logits, losses and queue are always fp32",
    )
    speed.add_argument(
        "--channels_last",
        action="store_true",
        help="channels-last memory layout; on a CPU, where it is quicker, always",
    )
    speed.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    launch = parser.add_argument_group("launch (torchrun, torch.distributed.launch and srun set these)")
    launch.add_argument("--gpu", type=int, help="GPU of a single process; -1: run on the CPU")
    launch.add_argument(
        "--world-size", type=positive_int, default=1, help="number of processes, without a launcher"
    )
    launch.add_argument("--rank", type=int, default=-1, help="number of this process, without a launcher")
    launch.add_argument("--dist-url", default="env://", help="where the processes meet")
    launch.add_argument(
        "--dist-backend", choices=["nccl", "gloo"], help="nccl on GPUs, gloo on a CPU, if not given"
    )
    launch.add_argument("--local_rank", type=int, help="number of this process on its machine")
    parser.set_defaults(**defaults)
    return parser


def pretraining_parser(description: str, models: list[str], dataset: str, workers: int) -> Parser:
    """The options that main_nce and main_coclr share."""
    parser = training_parser(
        description,
        models,
        num_seq=2,
        dataset=dataset,
        workers=workers,
        wd=1e-5,
        schedule=[120, 160],
        prefix="pretrain",
    )
    group = parser.add_argument_group("momentum contrast")
    group.add_argument("--moco-dim", type=positive_int, default=128, help="size of the embedding")
    group.add_argument("--moco-k", type=positive_int, default=2048, help="negatives in the queue")
    group.add_argument("--moco-m", type=float, default=0.999, help="momentum of the key encoder")
    group.add_argument("--moco-t", type=float, default=0.07, help="temperature")
    group.add_argument(
        "--bn_splits",
        type=positive_int,
        help="groups in which each process normalises its batch; 2 for one process, 1 for several",
    )
    parser.add_argument("--test", help=argparse.SUPPRESS)  # refused: main_classifier.py evaluates
    return parser

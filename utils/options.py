"""Command-line options that several commands share. Hyphens and underscores in their names are the same."""

import argparse
import math
import sys
from collections.abc import Sequence

VERSION = "1.0.0"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        is_shown = action.default is not False and action.default not in (None, "", [])
        return super()._get_help_string(action) if is_shown else action.help


class Parser(argparse.ArgumentParser):
    """ArgumentParser that takes --moco-k for --moco_k, and reports an error as one line, status 2.

    Args:
        description: what the command does.
        needed: for the usage line, what the command cannot do without, e.g. "NAME --out DIR".
    """

    def __init__(self, description: str, needed: str = ""):
        module = sys.modules["__main__"].__spec__
        super().__init__(
            prog=f"python -m {module.name}" if module else None,
            usage=f"%(prog)s [options] {needed}".rstrip(),
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.add_argument("--version", action="version", version=f"CoCLR {VERSION}")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name.startswith("--") and " " not in name:  # else it is the value of another option
                words[i] = "--" + name[2:].replace("-", "_") + equals + value
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} should be at least 1")
    return value


def non_negative_int(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} should be at least 0")
    return value


def seed(text: str) -> int:
    """A seed of random numbers, below 2^32: the seeds of all steps follow from it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} should be at least 0 and below 2^32")
    return value


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} should be a number of at least 0")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} should be a number above 0")
    return value


def add_training_options(parser: Parser, wd: float, schedule: list[int], prefix: str) -> None:
    """How long and at which rate to train, where results go, how to compute; defaults are of one command."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, default=10, help="epochs in all")
    group.add_argument("--start_epoch", type=non_negative_int, default=0, help="first epoch, counted from 0")
    group.add_argument("--lr", type=non_negative_float, default=1e-3, help="learning rate of the first epoch")
    drops = {"type": int, "nargs": "*", "metavar": "EPOCH", "default": tuple(schedule)}
    group.add_argument("--schedule", **drops, help="epochs that drop the rate to 1/10")
    group.add_argument("--cos", action="store_true", help="cosine learning rate instead of --schedule")
    group.add_argument("--wd", type=non_negative_float, default=wd, help="weight decay")
    group.add_argument("--seed", type=seed, default=0, help="seed of everything random")
    meaning = "go on from this checkpoint, or from the last that the run wrote"
    group.add_argument("--resume", metavar="CKPT|auto", help=meaning)
    group.add_argument("--reset_lr", action="store_true", help="on --resume, take --lr, not its own rate")
    group.add_argument("--save_freq", type=positive_int, default=1, help="epochs between checkpoints")
    group.add_argument("--print_freq", type=positive_int, default=5, help="steps between looks at the meters")
    group.add_argument("--prefix", default=prefix, help="results go to log-PREFIX/")
    group.add_argument("--name_prefix", default="", help="start of the run's name")
    add_speed_options(parser)


def add_speed_options(parser: Parser) -> None:
    """Arithmetic, memory layout and compilation."""
    group = parser.add_argument_group("speed")
    meaning = "arithmetic of the networks; logits, losses and queue are always fp32"
    group.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help=meaning)
    meaning = "channels-last memory layout; on a CPU, where it is quicker, always"
    group.add_argument("--channels_last", action="store_true", help=meaning)
    group.add_argument("--compile", action="store_true", help="torch.compile the networks")


def add_launch_options(parser: Parser) -> None:
    """What a launcher passes, or what is needed without one."""
    group = parser.add_argument_group("launch (torchrun, torch.distributed.launch and srun set these)")
    group.add_argument("--gpu", type=int, help="GPU of a single process; -1: run on the CPU")
    group.add_argument("--world_size", type=positive_int, default=1, help="processes, without a launcher")
    group.add_argument("--rank", type=int, default=-1, help="number of this process, without a launcher")
    group.add_argument("--dist_url", default="env://", help="where the processes meet")
    meaning = "default: nccl on GPUs, gloo on a CPU"
    group.add_argument("--dist_backend", choices=["nccl", "gloo"], help=meaning)
    group.add_argument("--local_rank", type=int, help="number of this process on its machine")

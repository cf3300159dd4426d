"""Which of how many processes this one is, as its launcher says. Needs no torch."""

import os
import re

from utils.errors import UserError

SLURM_FIRST_RESERVED_STEP = 0xFFFFFFF0  # batch scripts and shells are steps from here on


def process_ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) of this process as torchrun or srun say, else (0, 1, 0)."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _read_ranks("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if in_slurm_step():
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
        return _read_ranks("SLURM_PROCID", size, "SLURM_LOCALID")
    return 0, 1, 0


def in_slurm_step() -> bool:
    """Whether srun started this process; a batch script, or a shell in an allocation, is one process."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < SLURM_FIRST_RESERVED_STEP and "SLURM_PROCID" in os.environ


def _read_ranks(rank_name: str, size_name: str, local_name: str) -> tuple[int, int, int]:
    defaults = {rank_name: "0", size_name: "1", local_name: "0"}
    texts = {name: os.environ.get(name, default) for name, default in defaults.items()}
    if not all(text.isdecimal() for text in texts.values()):
        shown = ", ".join(f"{name}={text}" for name, text in texts.items())
        raise UserError(f"{shown} in the environment should be whole numbers; set or unset them together")
    rank, size, local_rank = map(int, texts.values())
    check_rank(rank, size)
    return rank, size, local_rank


def check_rank(rank: int, size: int) -> None:
    """Raise UserError unless there is such a rank among ``size`` processes."""
    if not 0 <= rank < size:
        raise UserError(f"rank {rank} of {size} processes: ranks go from 0 to {size - 1}")


def local_processes() -> int:
    """How many processes of this run its launcher started on this machine."""
    if "RANK" not in os.environ and in_slurm_step():
        per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 4(x2),3
        return int(re.match(r"\d*", per_node)[0] or 1)
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

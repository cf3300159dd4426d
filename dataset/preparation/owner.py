"""A folder that is being prepared belongs to one command, or to all processes of one torchrun or srun."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError
from utils.files import lock
from utils.processes import in_slurm_step


def launch_id() -> str:
    """What the processes of one launch have in common, from the launcher's environment."""
    names: tuple[str, ...] = ()
    if "RANK" in os.environ:
        names = ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    elif in_slurm_step():
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    return " ".join(f"{name}={os.environ.get(name)}" for name in names)


@contextlib.contextmanager
def owned(folder: Path, rank: int) -> Iterator[None]:
    """Own ``folder``, made if missing, as process ``rank`` of this launch; ends with the block or process.

    Each process locks a file of its own there. What processes that were killed left half-written is removed
    by the first of the next owner. Raises UserError while another launch, or another process of this rank, is
    at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launch = hashlib.sha256(launch_id().encode()).hexdigest()[:16]
    mine = folder / f"{launch}-{rank}.owner"
    with lock(folder / ".lock"):  # one after another: of two that come at once, one is refused
        colleagues = 0
        for path in folder.glob("*.owner"):
            try:
                lock(path, wait=False).close()
                path.unlink()  # of a process that has ended
            except BlockingIOError:
                if path == mine or not path.name.startswith(launch):
                    who = path.read_text(encoding="utf-8")
                    message = f"{folder.parent} is being prepared by another command ({who}); wait or stop it"
                    raise UserError(message) from None
                colleagues += 1
        if colleagues == 0:
            for path in (*folder.glob(".*.part"), *folder.parent.glob(".*.part")):
                path.unlink()
        held = lock(mine, wait=False)
        held.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        held.flush()
    with held:
        try:
            yield
        finally:
            mine.unlink(missing_ok=True)

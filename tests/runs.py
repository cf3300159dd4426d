"""Run a main as a user would, in a process of its own."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = ("--seq_len", "8", "--img_dim", "32", "-j", "0", "--print_freq", "3", "--moco-dim", "16")


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "COCLR_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*words: str, cwd: Path, launcher: tuple[str, ...] = (), timeout: int = 120) -> subprocess.CompletedProcess:
    """``python [launcher] ROOT/<first word> ...`` in ``cwd``; output as text."""
    command = [sys.executable, *launcher, str(ROOT / words[0]), *map(str, words[1:])]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout)


def run_ok(*words: str, cwd: Path, launcher: tuple[str, ...] = (), timeout: int = 120) -> str:
    """Like ``run``, and it must succeed; returns what it wrote to stderr."""
    done = run(*words, cwd=cwd, launcher=launcher, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def free_port() -> int:
    """A port that the system chose."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def losses(folder: Path) -> dict[int, float]:
    """Loss by iteration; a repeated iteration must have repeated its loss."""
    found: dict[int, float] = {}
    for line in (folder / "scalars.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            assert found.setdefault(record["iteration"], record["loss"]) == record["loss"]
    return found

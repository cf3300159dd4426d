"""Run commands as a user would, in processes of their own: forked from one that has imported torch."""

import atexit
import itertools
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIPS = ("--net", "s3d_quarter", "--seq_len", "8", "--img_dim", "32")
SMALL = (*CLIPS, "-j", "0", "--print_freq", "3", "--moco-dim", "16")
NCE = (
    "main_nce.py",
    "--dataset",
    "tiny-2clip",
    *SMALL,
    "--print_freq",
    "1",
    "--moco-k",
    "8",
    "--batch_size",
    "4",
    "--schedule",
)
RUN = "infonce_k8_tiny-2clip-32_s3d_quarter_bs4_lr0.001_seq2_len8_ds1"  # the name of the folder of NCE

_forks = multiprocessing.get_context("forkserver")
_MAINS = ["main_nce", "main_coclr", "main_classifier"]
# what they import when they need it first
_LATER = ["torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"]
_forks.set_forkserver_preload([*_MAINS, "runs", *_LATER])
_numbers = itertools.count()


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "COCLR_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def forget_power_cuts() -> None:
    """Do not wait for the disk, which takes most of the time of a checkpoint; killed processes lose
    nothing."""
    os.fsync = lambda descriptor: None


def _become(words: tuple[str, ...], cwd: Path, env: dict[str, str], output: tuple[Path, Path]) -> None:
    """In a fork: be the command, from its environment to its functions at exit."""
    multiprocessing.set_start_method(
        None, force=True
    )  # of loader workers: the system's own, not the fork server
    forget_power_cuts()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Started:
    """``python ROOT/<first word> ...`` or ``python -m ...`` in the background; killed at the block's end."""

    def __init__(self, *words: str, cwd: Path, **env: str):
        self.words, number = words, next(_numbers)
        self.output = tuple(cwd / f".{stream}{number}" for stream in ("stdout", "stderr"))
        self.process = _forks.Process(
            target=_become, args=(tuple(map(str, words)), cwd, environment() | env, self.output)
        )
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait_for_steps(self, folder: Path, steps: int) -> None:
        """Wait until the run has recorded ``steps`` steps in its ``folder``."""
        trace = folder / "scalars.jsonl"
        while not (trace.exists() and trace.read_text().count("\n") >= steps):
            self.process.join(0.1)
            if self.process.exitcode is not None:
                pytest.fail(f"ended early with status {self.process.exitcode}: {self.output[1].read_text()}")

    def finish(self, timeout: int = 120) -> subprocess.CompletedProcess:
        """Wait for the end; output as text."""
        self.process.join(timeout)
        code, (out, err) = self.process.exitcode, (path.read_text() for path in self.output)
        assert code is not None, f"still running after {timeout} s: {err}"
        assert "\r" not in err, "a progress bar in a file"
        return subprocess.CompletedProcess(self.words, code, out, err)


def run(*words: str, cwd: Path, timeout: int = 120, **env: str) -> subprocess.CompletedProcess:
    """Run a command to its end in ``cwd``; output as text."""
    with Started(*words, cwd=cwd, **env) as started:
        return started.finish(timeout)


def run_ok(*words: str, cwd: Path, timeout: int = 120, **env: str) -> str:
    """Like ``run``, and it must succeed; returns what it wrote to stderr."""
    done = run(*words, cwd=cwd, timeout=timeout, **env)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def refused(message: str, *words: str, cwd: Path, **env: str) -> str:
    """Run a command that must end with a line that matches ``message``, status 2, no traceback; the line."""
    done = run(*words, cwd=cwd, **env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(rf"error: .*{message}", last), last
    return last


def start_ranks(*words: str, cwd: Path) -> list[Started]:
    """The two processes of one run, started as a launcher would, without one."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [Started(*words, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]


def run_ranks(*words: str, cwd: Path) -> str:
    """Run two processes to their end, which must succeed; returns what the first wrote to stderr."""
    first, second = start_ranks(*words, cwd=cwd)
    with first, second:
        done = [process.finish() for process in (first, second)]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr[-2000:] + done[1].stderr[-2000:]
    return done[0].stderr


def start_torchrun(*words: str, cwd: Path, before: tuple[str, ...] = (), **env: str) -> subprocess.Popen:
    """``[before] torchrun OPTIONS SCRIPT ...`` in the background, its output in one pipe; a process group."""
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    command = [
        *before,
        sys.executable,
        "-m",
        "torch.distributed.run",
        *words[:script],
        ROOT / words[script],
        *words[script + 1 :],
    ]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def start_with_shared_memory(size: str, *words: str, cwd: Path) -> subprocess.Popen:
    """``python ROOT/<first word> ...`` in the background, with its own /dev/shm of ``size``, stderr piped."""
    mount = 'mount --make-rprivate / && mount -t tmpfs -o "size=$0" none /dev/shm'
    inside = ["unshare", "-m", "bash", "-c"]
    try:
        subprocess.run([*inside, mount, size], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no /dev/shm of its own can be mounted here: {getattr(error, 'stderr', error)}")
    command = [*inside, f'{mount} && exec "$@"', size, sys.executable, ROOT / words[0], *words[1:]]
    return subprocess.Popen(command, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True)


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

"""macOS lacks what Linux has: small jobs in which that is taken away. Windows is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from footage import picture, write_video
from runs import CLIPS, NCE, ROOT, RUN, environment, losses

WITHOUT_LINUX = """
import ctypes, multiprocessing, os, signal
del os.fork, os.sched_getaffinity, os.posix_fadvise, signal.sigwaitinfo
multiprocessing.set_start_method("spawn")
find = ctypes.CDLL.__getattr__

def find_but_mallopt(library, name):
    if name == "mallopt":
        raise AttributeError(name)
    return find(library, name)

ctypes.CDLL.__getattr__ = find_but_mallopt
"""
WINDOWS = """
import sys

class BecomeWindows:
    '''From the first import of the project's own on; torch and others are imported on this system.'''

    def find_spec(self, name, path, target=None):
        if name == "utils":
            sys.platform = "win32"
            sys.modules["fcntl"] = None

sys.meta_path.insert(0, BecomeWindows())
"""


def run_on(system: str, words: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess:
    """``python ROOT/<first word> ...`` or ``python -m ...`` after lines that make this ``system`` another."""
    (cwd / "site").mkdir(exist_ok=True)
    (cwd / "site/sitecustomize.py").write_text(system)
    script = words if words[0] == "-m" else (ROOT / words[0], *words[1:])
    env = environment() | {"PYTHONPATH": f"{cwd / 'site'}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *script], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )


def on_macos(*words: str, cwd: Path) -> None:
    done = run_on(WITHOUT_LINUX, words, cwd)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_preparing_training_and_evaluating_without_what_linux_has(tmp_path):
    for label in "ab":
        for seed in range(4):
            frames = [picture(seed, 2 * t) for t in range(12)]
            write_video(tmp_path / f"videos/{label}/{label}{seed}.avi", frames)
    on_macos(
        *"-m dataset.prepare tiny --videos videos --out data/tiny --streams rgb -j 2".split(), cwd=tmp_path
    )
    on_macos(*NCE, "-j", "1", "--epochs", "1", cwd=tmp_path)
    assert len(losses(tmp_path / "log-pretrain" / RUN)) == 1
    test = ("--dataset", "tiny", *CLIPS, "--test", f"log-pretrain/{RUN}/model/epoch0.pth.tar")
    on_macos("main_classifier.py", *test, "-j", "1", "--retrieval", cwd=tmp_path)
    on_macos(*"-m eval.embed videos --weights".split(), test[-1], *CLIPS[2:], "-j", "1", cwd=tmp_path)
    with np.load(tmp_path / "features.npz") as file:
        assert len(file["names"]) == 8


@pytest.mark.parametrize("command", ["main_nce.py", "-m dataset.prepare", "-m eval.embed"])
def test_windows_is_refused_in_one_line(command, tmp_path):
    done = run_on(WINDOWS, (*command.split(), "--help"), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Windows is not supported: use its Subsystem for Linux")

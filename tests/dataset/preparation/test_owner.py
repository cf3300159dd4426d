import errno
import fcntl
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from dataset.preparation.owner import launch_id, owned
from utils.errors import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
HOLD = """
import sys
from pathlib import Path
from dataset.preparation.owner import owned
with owned(Path(sys.argv[1]), int(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a launcher, and none of another's."""

    def change(variables: dict[str, str]) -> None:
        for name in (*LAUNCHER, "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    change({})
    return change


def hold(folder: Path, rank: int = 0) -> subprocess.Popen:
    """Another process that owns the folder until its input ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(rank)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    return other


def test_processes_of_one_launch_have_one_id(environment):
    alone = launch_id()
    environment(TORCHRUN)
    torchrun = launch_id()
    environment(TORCHRUN | {"RANK": "0"})
    assert launch_id() == torchrun
    environment(TORCHRUN | {"MASTER_PORT": "29501"})
    other_torchrun = launch_id()
    environment(STEP)
    step = launch_id()
    environment(STEP | {"SLURM_PROCID": "0"})
    assert launch_id() == step
    environment(STEP | {"SLURM_STEP_ID": "1"})
    other_step = launch_id()
    assert len({alone, torchrun, other_torchrun, step, other_step}) == 5
    environment({name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"})
    assert launch_id() == alone  # a batch script is one process


def test_a_second_command_is_refused_and_a_killed_one_followed(environment, tmp_path):
    folder = tmp_path / "out/unfinished"
    with hold(folder) as other:
        with pytest.raises(UserError, match=rf"out is being prepared .*\(process {other.pid} on .*\); wait"):
            with owned(folder, 0):
                pass
        environment(TORCHRUN)
        with pytest.raises(UserError, match="another command"):
            with owned(folder, 1):
                pass
        other.kill()
        other.wait()
        with owned(folder, 1):
            assert [path.name.rpartition("-")[2] for path in folder.glob("*.owner")] == ["1.owner"]
    assert not list(folder.glob("*.owner"))


def test_processes_of_one_launch_own_it_together(environment, tmp_path):
    environment(TORCHRUN)
    with hold(tmp_path, rank=0) as other:
        with owned(tmp_path, 1), pytest.raises(UserError, match="another command"):
            with owned(tmp_path, 0):
                pass
        other.stdin.close()
        assert other.wait() == 0
    environment(TORCHRUN | {"MASTER_PORT": "29501"})
    with owned(tmp_path, 0):
        pass


def test_what_killed_processes_left_half_written_is_removed_by_the_first_alone(environment, tmp_path):
    folder = tmp_path / "unfinished"
    folder.mkdir()
    rests = [folder / ".a.rgb.0123.part", tmp_path / ".rgb.lmdb.0123.part"]
    for path in (*rests, folder / "a.rgb"):
        path.touch()
    environment(TORCHRUN)
    with owned(folder, 0):
        assert not any(path.exists() for path in rests)
        for path in rests:
            path.touch()
        with owned(folder, 1):
            assert all(path.exists() for path in rests)
    assert (folder / "a.rgb").exists()


def test_without_locks_it_warns_and_goes_on(environment, tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "coclr"), owned(tmp_path, 0), owned(tmp_path, 0):
        pass
    assert "no locks on this file system" in caplog.text

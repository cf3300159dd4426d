import os
import signal
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import isolation
from dataset.isolation import in_processes
from utils.errors import UserError


def process_of(number: int) -> int:
    return os.getpid()


def crash(path: Path) -> str:
    """The name of a file, which it makes; the process crashes where the file is there no more than once."""
    tries = len(list(path.parent.glob(f"{path.name}.*")))
    Path(f"{path}.{tries}").touch()
    if tries < int(path.name[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def fail(number: int) -> None:
    raise ValueError(f"no {number}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_results_of_as_many_processes_as_are_asked_for(method):
    found = dict(in_processes(process_of, range(20), 2, method))
    assert sorted(found) == list(range(20))
    assert len(set(found.values())) <= 2
    assert os.getpid() not in found.values()
    assert list(in_processes(process_of, [], 2, method)) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_crash_is_forgiven_and_two_are_not(tmp_path, method):
    paths = [tmp_path / name for name in ("0", "1", "2", "0 more")]
    found = {path.name: result for path, result in in_processes(crash, paths, 2, method)}
    assert found == {"0": "0", "1": "1", "2": None, "0 more": "0 more"}
    assert len(list(tmp_path.iterdir())) == 1 + 2 + 2 + 1


def test_when_nothing_but_crashes_comes_it_is_not_the_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "MAX_CRASHES", 2)
    with pytest.raises(UserError, match="the first 3 videos all ended their process"):
        list(in_processes(crash, [tmp_path / f"9 {i}" for i in range(9)], 1))


def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced():
    with closing(in_processes(process_of, range(3), 1)) as made:
        _, first = next(made)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        others = [process for _, process in made]
    assert len(others) == 2
    assert first not in others


def test_a_fork_of_a_process_in_which_opencv_has_threads():
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((4000, 4000), np.float32), None, fx=1.3, fy=1.3)
    assert dict(in_processes(abs, range(8), 4, "fork")) == {number: number for number in range(8)}


def test_errors_are_raised():
    with pytest.raises(ValueError, match="no 0"):
        list(in_processes(fail, [0], 1))

"""Errors as one line: of the user, of a loader's process, of the system."""

import errno
import os
import re

import pytest
import torch

from utils.errors import UserError, one_line_errors, plain_words


@one_line_errors
def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a: b"), 2, "error: a: b\n"),
        (
            UserError("Caught UserError in worker 0.\nOriginal Traceback\nutils.errors.UserError: no disk\n"),
            2,
            "error: no disk\n",
        ),
        (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C\n"),
    ],
)
def test_one_line_and_status(capsys, error, status, line):
    with pytest.raises(SystemExit) as stopped:
        fail_with(error)
    assert stopped.value.code == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower -j.*signal: Killed"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower -j"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It"), "--shm-size"),
        (RuntimeError("Caught RuntimeError\nunable to allocate shared memory(shm)\n"), "--shm-size"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (RuntimeError("unable to open shared memory object </x>: Too many open files (24)"), "ulimit -n"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "--batch_size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            "GPU.*--batch_size",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "GPU.*--batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "--batch_size",
        ),
    ],
)
def test_errors_of_the_system_say_what_to_do(capsys, error, words):
    with pytest.raises(SystemExit, match="2"):
        fail_with(error)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(f"error: .*{words}.*--resume auto", line)


def test_what_was_interrupted_counts_and_other_errors_keep_their_traceback(capsys):
    def interrupted():
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        finally:
            raise RuntimeError("in the middle of a step")

    with pytest.raises(SystemExit, match="2"):
        one_line_errors(interrupted)()
    assert "ulimit" in capsys.readouterr().err
    assert plain_words(ValueError("shared memory")) is None
    with pytest.raises(RuntimeError, match="a mistake"):
        fail_with(RuntimeError("a mistake"))

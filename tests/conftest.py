"""Settings of all tests; the dataset and the undisturbed run that several compare with."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from databases import make_dataset
from hypothesis import settings
from runs import NCE, RUN, forget_power_cuts, run_ok

forget_power_cuts()
torch.set_num_threads(1)  # small tensors: several threads only wait for one another on busy cores
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A working folder whose ./data holds the dataset "tiny": 18 training videos of 3 classes."""
    home = tmp_path_factory.mktemp("home")
    make_dataset(home / "data" / "tiny")
    return home


@pytest.fixture(scope="session")
def first(tiny) -> Path:
    """Folder of a finished run of ``NCE``, one epoch of 4 steps."""
    run_ok(*NCE, "--epochs", "1", cwd=tiny)
    return tiny / "log-pretrain" / RUN


@pytest.fixture(scope="session")
def undisturbed(tiny) -> Path:
    """Folder of a finished run of ``NCE``, three epochs."""
    run_ok(*NCE, "--epochs", "3", "--name_prefix", "whole_", cwd=tiny)
    return tiny / "log-pretrain" / f"whole_{RUN}"


@pytest.fixture
def cwd(tiny, tmp_path) -> Path:
    """A working folder of the test's own with ./data of ``tiny``."""
    (tmp_path / "data").symlink_to(tiny / "data")
    return tmp_path

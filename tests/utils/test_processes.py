"""Ranks from the environment of each launcher."""

import os

import pytest

from utils.errors import UserError
from utils.processes import local_processes, process_ranks

SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables where no launcher has left any."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8"}, (5, 8, 0)),
        ({**SLURM_JOB, "SLURM_STEP_ID": "0"}, (3, 4, 1)),
        ({**SLURM_JOB, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "5"}, (3, 5, 1)),
        ({**SLURM_JOB, "SLURM_STEP_ID": "0", "RANK": "0", "WORLD_SIZE": "2"}, (0, 2, 0)),  # srun torchrun
    ],
)
def test_ranks_of_each_launcher(environment, variables, ranks):
    environment(variables)
    assert process_ranks() == ranks


@pytest.mark.parametrize("step", [None, str(0xFFFFFFFB), str(0xFFFFFFFA)])
def test_plain_python_in_a_slurm_job_is_one_process(environment, step):
    """A batch script has the number of the job's tasks, and a reserved step number, or none."""
    environment(SLURM_JOB if step is None else {**SLURM_JOB, "SLURM_STEP_ID": step})
    assert process_ranks() == (0, 1, 0)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2 processes: ranks go from 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    ],
)
def test_impossible_ranks_are_named(environment, variables, message):
    environment(variables)
    with pytest.raises(UserError, match=message):
        process_ranks()


@pytest.mark.parametrize(
    ("variables", "processes"),
    [
        ({}, 1),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({**SLURM_JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}, 2),
        ({**SLURM_JOB, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}, 1),
    ],
)
def test_processes_on_this_machine(environment, variables, processes):
    environment(variables)
    assert local_processes() == processes

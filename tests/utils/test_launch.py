"""Starts of several processes: where they meet, who belongs to whom, and one line for what goes wrong."""

import argparse
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from runs import NCE, SMALL, Started, free_port, refused, run

from utils import launch
from utils.errors import UserError
from utils.options import Parser, add_launch_options

HALF = (*NCE, "--batch_size", "2", "--epochs", "1")


@pytest.fixture
def environment(monkeypatch):
    """Sets variables where no launcher has left any."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def step_of_slurm(step, nodes="node[07,09]"):
    return {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": step, "SLURM_STEP_NODELIST": nodes}


def test_steps_of_one_slurm_job_meet_at_ports_of_their_own(environment):
    places = []
    for step in ("0", "1", "0"):
        environment(step_of_slurm(step))
        places.append(launch.slurm_meeting_point())
    assert places[0] == places[2] != places[1]
    assert all(20000 <= int(place["MASTER_PORT"]) < 30000 for place in places)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node[07,09]", "node07"), ("a-1,a-2", "a-1"), ("gpu-[3-5],b", "gpu-3"), ("one", "one")],
)
def test_first_host_of_a_slurm_step(environment, nodes, host):
    environment(step_of_slurm("0", nodes))
    assert launch.slurm_meeting_point()["MASTER_ADDR"] == host


def test_meeting_points(environment):
    assert launch.meeting_point("tcp://127.0.0.1:29501") == "127.0.0.1:29501"
    assert launch.meeting_point("tcp://[::1]:29501") == "::1:29501"
    assert launch.meeting_point("file:///shared/place") == "file:///shared/place"
    environment(step_of_slurm("0", "localhost"))
    assert launch.meeting_point("env://").startswith("localhost:2")
    environment({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
    assert launch.meeting_point("env://") == "127.0.0.1:29500"


@pytest.mark.parametrize(
    ("url", "variables", "message"),
    [
        ("env://", {}, "MASTER_ADDR and MASTER_PORT"),
        ("env://", {"MASTER_ADDR": "localhost"}, "no MASTER_PORT"),
        ("env://", {"MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "tcp://localhost:x"),
        ("tcp://127.0.0.1", {}, "should be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:70000", {}, "70000: it should be"),
        ("http://127.0.0.1:29500", {}, "http://127.0.0.1:29500"),
        ("nonsense", {}, "nonsense"),
        ("tcp://nowhere.invalid:29500", {}, "host nowhere.invalid is not known"),
    ],
)
def test_impossible_meeting_points_are_named(environment, url, variables, message):
    environment(variables)
    with pytest.raises(UserError, match=message):
        launch.meeting_point(url)


def test_several_processes_that_cannot_start_are_one_line(cwd):
    two = {"RANK": "0", "WORLD_SIZE": "2"}
    refused("no MASTER_ADDR and MASTER_PORT", *HALF, cwd=cwd, **two)
    refused("--world-size 2 needs --rank 0...1", *HALF, "--world-size", "2", cwd=cwd)
    refused("rank 2 of 2", *HALF, "--world-size", "2", "--rank", "2", cwd=cwd)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused("port of .* is taken", *HALF, cwd=cwd, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **two)


def test_two_runs_that_meet_are_refused_by_what_differs(cwd):
    """As RGB and flow, started as two steps of one job at one port, would have trained as one."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    flow = [word.replace("tiny-2clip", "tiny-f-2clip") for word in HALF]
    with (
        Started(*HALF, cwd=cwd, RANK="0", **place) as first,
        Started(*flow, cwd=cwd, RANK="1", **place) as second,
    ):
        done = first.finish(), second.finish()
    for process in done:
        assert process.returncode == 2, process.stderr
        assert "Traceback" not in process.stderr
        last = process.stderr.strip().splitlines()[-1]
        assert "dataset is tiny-2clip on process 0, tiny-f-2clip on process 1" in last
    assert not (cwd / "log-pretrain").exists()


def test_options_of_a_machine_may_differ():
    store = torch.distributed.HashStore()
    others = {"command": Path(sys.argv[0]).name, "lr": "0.1"}
    own = argparse.Namespace(lr=0.1, data_root="/a", workers=1)
    store.set("options of 1", json.dumps(others))
    launch.compare_options(store, own, 0, 2, may_differ=["data_root"])
    assert json.loads(store.get("options of 0")) == others
    store.set("options of 1", json.dumps(others | {"data_root": "/b"}))
    store.set("read by 1", "")
    with pytest.raises(UserError, match="data_root is /a on process 0, /b on process 1"):
        launch.compare_options(store, own, 0, 2, may_differ=[])


def wait_alone(port, errors):
    """In a process of its own: one of two processes, whose other never comes."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    launch.SECONDS_OF_SILENCE = 0.2
    start_one_of_two(0, port)


def start_one_of_two(rank, port):
    parser = Parser("")
    add_launch_options(parser)
    place = ["--world-size", "2", "--rank", str(rank), "--dist-url", f"tcp://127.0.0.1:{port}"]
    launch.start(parser.parse_args([*place, "--gpu", "-1"]))


def test_waiting_is_said_and_ctrl_c_ends_it(tmp_path):
    errors = tmp_path / "stderr"
    process = multiprocessing.get_context("forkserver").Process(target=wait_alone, args=(free_port(), errors))
    process.start()
    while not errors.exists() or "process 0 of 2 is still waiting" not in errors.read_text():
        process.join(0.1)
        assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == -signal.SIGINT


def threads_of_group():
    names = [
        Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")
    ]
    return [name for name in names if "gloo" in name]


def train_a_little(rank, port, outcome):
    """In a process of its own: status 0 if ``main`` ended as ``outcome`` says and left no thread behind."""

    @launch.closes_process_group
    def main():
        start_one_of_two(rank, port)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3), broadcast_buffers=False)
        model(torch.ones(2, 3)).sum().backward()
        assert threads_of_group()
        if outcome == "error":
            try:
                model(torch.ones(7))
            except RuntimeError as error:
                raise UserError("as a model in the frames of two errors") from error
        if outcome == "lost":
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            model(torch.ones(2, 3)).sum().backward()

    message = ""
    try:
        main()
    except UserError as error:  # held until Python has ended
        message = str(error)
        left = threads_of_group()
    else:
        left = threads_of_group()
    assert left == []
    expected = {
        "finished": "",
        "error": "as a model",
        "lost": "another process of this run ended .*--resume auto",
    }
    assert re.match(expected[outcome], message)


@pytest.mark.parametrize(
    ("words", "environment", "index"),
    [
        ("--world_size 2 --rank 1 --gpu 1", {}, 1),
        ("--gpu 1", {}, 1),
        ("--gpu 0", {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1),  # a launcher knows better
    ],
)
def test_which_gpu_is_taken(monkeypatch, words, environment, index):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(launch, "join", lambda *args: None)
    parser = Parser("")
    add_launch_options(parser)
    assert launch.start(parser.parse_args(words.split())).device.index == index


@pytest.mark.parametrize("outcome", ["finished", "error", "lost"])
def test_no_thread_of_the_process_group_outlives_main(outcome):
    """Python would abort when it ends while one is at work: one of 100 runs did after its last epoch."""
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    ranks = [context.Process(target=train_a_little, args=(rank, port, outcome)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    statuses = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert statuses == ([0, -signal.SIGKILL] if outcome == "lost" else [0, 0])


def test_plain_python_in_a_slurm_job_evaluates_alone(cwd):
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    words = ("main_classifier.py", "--dataset", "tiny", *SMALL, "--test", "random", "--retrieval")
    words = tuple(word for word in words if word not in ("--moco-dim", "16"))
    done = run(*words, cwd=cwd, **job)
    assert done.returncode == 0, done.stderr
    assert "R@1" in done.stderr


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, 6), ({"LOCAL_WORLD_SIZE": "2"}, 3), ({"LOCAL_WORLD_SIZE": "8"}, 1), ({"OMP_NUM_THREADS": "6"}, 5)],
)
def test_processes_share_the_cores(monkeypatch, environment, threads):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)  # as $OMP_NUM_THREADS, read when torch starts, has left it
        launch.set_up_cpu()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

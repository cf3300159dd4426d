"""What goes wrong in long runs: killed ranks, lost disks, diverging losses, two runs of one name."""
import contextlib
import fcntl
import re
import signal
import subprocess
import sys

import pytest
from databases import make_dataset
from runs import ROOT, SMALL, environment, free_port, losses, run, run_ok

from utils.checkpoint import load_checkpoint

NCE = ("main_nce.py", "--dataset", "tiny-2clip", *SMALL, "--print_freq", "1", "--moco-k", "8", "--batch_size", "4")
RUN = "infonce_k8_tiny-2clip-32_s3d_bs4_lr0.001_seq2_len8_ds1"


@pytest.fixture
def cwd(tmp_path):
    make_dataset(tmp_path / "data" / "tiny")
    return tmp_path


def start(*words, cwd, **more):
    """Start a main in the background."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    return subprocess.Popen(command, cwd=cwd, env=environment() | more, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process, trace, steps):
    """Wait until the run has recorded so many steps."""
    while not (trace.exists() and trace.read_text().count("\n") >= steps):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ended early with status {process.wait(timeout=0.1)}: {process.stderr.read()}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_in_the_middle_of_an_epoch(cwd, number):
    process = start(*NCE, "-j", "2", "--epochs", "50", cwd=cwd)
    trace = cwd / f"log-pretrain/{RUN}/scalars.jsonl"
    wait_for_steps(process, trace, 5)
    process.send_signal(number)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "--resume auto" in text
    assert "Traceback" not in text
    saved = load_checkpoint(cwd / f"log-pretrain/{RUN}/model/interrupted.pth.tar")
    assert saved["iteration"] == len(losses(cwd / f"log-pretrain/{RUN}"))
    assert saved["iteration"] == 4 * (saved["epoch"] + 1) + saved["batches"]


@pytest.mark.slow
def test_sigkill_loses_no_more_than_the_work_since_the_last_save(cwd):
    run_ok(*NCE, "--epochs", "4", "--name_prefix", "whole_", cwd=cwd)
    process = start(*NCE, "--epochs", "4", cwd=cwd)
    wait_for_steps(process, cwd / f"log-pretrain/{RUN}/scalars.jsonl", 10)
    process.kill()
    process.communicate()
    run_ok(*NCE, "--epochs", "4", "--resume", "auto", cwd=cwd)
    assert losses(cwd / f"log-pretrain/{RUN}") == losses(cwd / f"log-pretrain/whole_{RUN}")


@pytest.mark.slow
def test_killed_rank_ends_the_other_with_a_clear_message(cwd):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = (*NCE, "--batch_size", "2", "--epochs", "200")
    ranks = [start(*words, cwd=cwd, RANK=str(r), LOCAL_RANK=str(r), **place) for r in range(2)]
    wait_for_steps(ranks[0], cwd / f"log-pretrain/{RUN.replace('bs4', 'bs2')}/scalars.jsonl", 5)
    ranks[1].kill()
    text = ranks[0].communicate(timeout=60)[1]
    ranks[1].communicate()
    assert ranks[0].returncode == 2, text
    assert "another process of this run ended" in text.strip().splitlines()[-1]
    assert "Traceback" not in text


def test_two_runs_of_one_name(cwd):
    folder = cwd / f"log-pretrain/{RUN}"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(*NCE, "--epochs", "1", cwd=cwd)
    assert done.returncode == 2
    assert "another run is writing" in done.stderr.strip().splitlines()[-1]


def test_diverging_loss_stops_and_names_the_videos(cwd):
    done = run(*NCE, "--epochs", "3", "--lr", "1e38", cwd=cwd)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"loss is (nan|inf) at step \d+ \(lr 1e\+38\)", last)
    assert last.count("Class") >= 4
    assert not list(cwd.glob("log-pretrain/*/model/*"))


def test_log_folder_that_cannot_be_made(cwd):
    (cwd / "log-pretrain").write_text("a file where the folder should be")
    done = run(*NCE, "--epochs", "1", cwd=cwd)
    assert done.returncode == 2
    assert "cannot write to log-pretrain" in done.stderr.strip().splitlines()[-1]

"""What goes wrong in long runs: signals, killed ranks, full disks, diverging losses, broken files."""

import contextlib
import fcntl
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from databases import write_database
from PIL import Image
from runs import (
    NCE,
    RUN,
    Started,
    free_port,
    losses,
    refused,
    run_ok,
    run_ranks,
    start_ranks,
    start_torchrun,
    start_with_shared_memory,
)
from tiny_trainer import train_tiny

from utils.checkpoint import load_checkpoint
from utils.log import start_logging

FOLDER = f"log-pretrain/{RUN}"
HALF = (*NCE, "--batch_size", "2")  # for two processes
HALF_RUN = RUN.replace("bs4", "bs2")


def trained(folder):
    """The number of steps in a run's trace, which are all there, repeated or not, and its losses."""
    found = losses(folder)
    assert sorted(found) == list(range(len(found)))
    return found


@pytest.mark.slow
def test_stopped_run_loses_and_repeats_nothing(cwd, undisturbed):
    """Ctrl-C, then SLURM's warning, with two loader workers, then SIGKILL: losses are undisturbed."""
    folder, interrupted = cwd / FOLDER, cwd / FOLDER / "model/interrupted.pth.tar"
    for number in (signal.SIGINT, signal.SIGUSR1):
        before = len(losses(folder)) if folder.exists() else 0
        with Started(*NCE, "-j", "2", "--epochs", "50", "--resume", "auto", cwd=cwd) as process:
            process.wait_for_steps(folder, before + 2)
            process.send_signal(number)
            done = process.finish()
        assert done.returncode == 128 + number, done.stderr
        assert re.search(
            r"saved \S+interrupted.pth.tar; the same command with --resume auto goes on", done.stderr
        )
        assert "Traceback" not in done.stderr
        saved = load_checkpoint(interrupted)
        assert saved["iteration"] == len(trained(folder)) > before
        assert saved["iteration"] == 4 * (saved["epoch"] + 1) + saved["seen"] // 4
    with Started(*NCE, "--epochs", "50", "--resume", "auto", cwd=cwd) as process:
        process.wait_for_steps(folder, saved["iteration"] + 2)
        process.process.kill()
    assert list((folder / "model").glob("*.tar")), "a checkpoint was lost"
    (folder / "model/.epoch0.pth.tar.1.part").write_bytes(b"as a process killed while saving leaves it")
    run_ok(*NCE, "--epochs", str(max(3, saved["epoch"] + 3)), "--resume", "auto", cwd=cwd)
    assert losses(undisturbed).items() <= trained(folder).items()
    assert not list((folder / "model").glob(".*.part"))


@pytest.mark.slow
def test_stopped_where_every_step_ends_an_epoch(cwd):
    words = (*NCE, "--batch_size", "16", "--moco-k", "16", "--resume", "auto", "--epochs")
    folder = cwd / "log-pretrain/infonce_k16_tiny-2clip-32_s3d_quarter_bs16_lr0.001_seq2_len8_ds1"
    with Started(*words, "50", cwd=cwd) as process:
        process.wait_for_steps(folder, 1)
        process.send_signal(signal.SIGTERM)
        assert process.finish().returncode == 128 + signal.SIGTERM
    saved = load_checkpoint(folder / "model/interrupted.pth.tar")
    assert (saved["iteration"], saved["seen"]) == (saved["epoch"] + 2, 16)
    run_ok(*words, str(saved["epoch"] + 4), cwd=cwd)
    assert sorted(losses(folder)) == list(range(saved["epoch"] + 4))
    assert {path.name for path in (folder / "model").glob("epoch*")} == {f"epoch{saved['epoch'] + 3}.pth.tar"}
    assert "nan" not in (folder / "log.txt").read_text()


def test_stopped_while_validating(cwd, monkeypatch):
    """The epoch is saved, the run stops at the next step, and goes on to the losses of an undisturbed one."""
    monkeypatch.chdir(cwd)

    def train(prefix, stop_at=None):
        def after_epoch(epoch):
            if epoch == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        def loss_of(model, colours, iteration):
            return model(colours).square().mean()

        torch.manual_seed(0)
        train_tiny(cwd / "data", 3, 0, loss_of, after_epoch, prefix=prefix, resume="auto")

    train("whole")
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        train("stopped", stop_at=1)
    saved = load_checkpoint("log-stopped/long/model/interrupted.pth.tar")
    assert (saved["epoch"], saved["seen"]) == (1, 2)
    shutil.copytree("log-stopped", "log-resumed")  # this process holds the lock of the other
    train("resumed")
    assert losses(Path("log-resumed/long")) == losses(Path("log-whole/long"))


@pytest.fixture(scope="module")
def two_ranks(tiny):
    """Folder of an undisturbed run of two processes, three epochs."""
    run_ranks(*HALF, "--epochs", "3", "--name_prefix", "whole_", cwd=tiny)
    return tiny / f"log-pretrain/whole_{HALF_RUN}"


@pytest.mark.slow
def test_killed_rank_ends_the_other_with_a_clear_message(cwd):
    first, second = start_ranks(*HALF, "--epochs", "200", cwd=cwd)
    with first, second:
        first.wait_for_steps(cwd / f"log-pretrain/{HALF_RUN}", 2)
        second.process.kill()
        done = first.finish(timeout=60)
    assert done.returncode == 2, done.stderr
    assert "another process of this run ended" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.slow
def test_torchrun_starts_killed_ranks_again(cwd, two_ranks):
    folder = cwd / f"log-pretrain/{HALF_RUN}"
    launcher = start_torchrun(
        "--nproc_per_node=2",
        "--max-restarts=2",
        f"--master_port={free_port()}",
        *HALF,
        "--epochs",
        "3",
        "--resume",
        "auto",
        cwd=cwd,
    )
    try:
        while not list(folder.glob("model/epoch*")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(launcher.communicate(timeout=0.1)[0])
        os.kill(children(launcher.pid)[1], signal.SIGKILL)
        text = launcher.communicate(timeout=120)[0]
    finally:
        os.killpg(launcher.pid, signal.SIGKILL) if launcher.poll() is None else None
    assert launcher.returncode == 0, text
    assert text.count("resumed from") == 1
    assert losses(folder) == losses(two_ranks)


@pytest.mark.slow
def test_killed_loader_process(cwd, undisturbed):
    """As the system does when memory runs out: one line that says how to go on, and so it goes on."""
    folder = cwd / FOLDER
    with Started(*NCE, "-j", "2", "--epochs", "50", cwd=cwd) as process:
        process.wait_for_steps(folder, 6)
        os.kill(children(process.process.pid)[0], signal.SIGKILL)
        done = process.finish()
    one_line_of_trouble(done, "memory ran out: lower -j .*--resume auto")
    epochs = len(losses(folder)) // 4 + 2
    run_ok(*NCE, "--epochs", str(epochs), "--resume", "auto", cwd=cwd)
    assert losses(undisturbed).items() <= trained(folder).items()


def one_line_of_trouble(done, message):
    assert done.returncode == 2, done.stderr
    assert not re.search("Traceback|Exception", done.stderr)
    assert re.search(f"error: .*{message}", done.stderr.strip().splitlines()[-1]), done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["training", "loader"])
def test_too_many_open_files(cwd, whose):
    with Started(*NCE, "-j", "1", "--epochs", "50", cwd=cwd) as process:
        process.wait_for_steps(cwd / FOLDER, 2)
        pid = process.process.pid if whose == "training" else children(process.process.pid)[0]
        files = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, files))
        done = process.finish()
    one_line_of_trouble(done, "too many files are open: .*ulimit -n")


@pytest.mark.slow
def test_shared_memory_too_small_for_what_is_read_ahead(cwd):
    training = start_with_shared_memory("400k", *NCE, "-j", "1", "--epochs", "1", cwd=cwd)
    words = ("main_classifier.py", "--dataset", "tiny", "--seq_len", "8", "--img_dim", "32", "-j", "1")
    evaluation = start_with_shared_memory("100k", *words, "--test", "random", "--retrieval", cwd=cwd)
    for process in (training, evaluation):
        done = ended(process)
        one_line_of_trouble(done, "/dev/shm has 0.[14] MB free, but -j 1 reads up to .*--shm-size=.*-j 0$")
    assert not (cwd / FOLDER / "scalars.jsonl").exists()


def ended(process, timeout=120):
    """A started ``subprocess.Popen`` at its end."""
    try:
        errors = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=errors)


@pytest.mark.slow
def test_shared_memory_that_somebody_else_fills(cwd, undisturbed):
    folder = cwd / FOLDER
    process = start_with_shared_memory("4m", *NCE, "-j", "1", "--epochs", "50", cwd=cwd)
    while not (folder / "scalars.jsonl").exists() or len(losses(folder)) < 6:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(process.communicate(timeout=0.1)[1])
    deadline = time.monotonic() + 60
    with open(f"/proc/{process.pid}/root/dev/shm/large", "wb", buffering=0) as file:
        while process.poll() is None and time.monotonic() < deadline:  # what a batch gives back, too
            with contextlib.suppress(OSError):
                file.write(bytes(4096))
    one_line_of_trouble(ended(process), r"shared memory .* is full: .*--shm-size.*--resume auto")
    run_ok(*NCE, "--epochs", str(len(losses(folder)) // 4 + 2), "--resume", "auto", cwd=cwd)
    assert losses(undisturbed).items() <= trained(folder).items()


@contextlib.contextmanager
def two_machines():
    """Two network namespaces joined by a cable: how to start a program in each, the first's address."""
    names = [f"coclr{os.getpid()}{side}" for side in "ab"]
    wires = [f"c{os.getpid()}{side}" for side in "ab"]
    try:
        commands = [f"ip netns add {name}" for name in names]
        commands += [f"ip link add {wires[0]} type veth peer name {wires[1]}"]
        for i, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
            commands += [
                f"ip link set {wire} netns {name}",
                f"ip -n {name} addr add 10.213.7.{i}/24 dev {wire}",
                f"ip -n {name} link set {wire} up",
                f"ip -n {name} link set lo up",
            ]
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {command}: {getattr(error, 'stderr', error)}")
        yield [("ip", "netns", "exec", name) for name in names], wires, "10.213.7.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_machines_train_as_one_run(cwd, two_ranks):
    with two_machines() as (inside, wires, address):
        agents = [
            start_torchrun(
                "--nnodes=2",
                "--nproc_per_node=1",
                f"--node_rank={i}",
                f"--master_addr={address}",
                "--master_port=29500",
                *HALF,
                "--epochs",
                "2",
                cwd=cwd,
                before=inside[i],
                GLOO_SOCKET_IFNAME=wires[i],
            )
            for i in range(2)
        ]
        try:
            texts = [agent.communicate(timeout=120)[0] for agent in agents]
        finally:
            for agent in agents:
                os.killpg(agent.pid, signal.SIGKILL) if agent.poll() is None else None
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(texts)
    assert "2 processes" in texts[0]
    expected = {i: loss for i, loss in losses(two_ranks).items() if i < 8}
    assert losses(cwd / f"log-pretrain/{HALF_RUN}") == expected


def test_two_runs_of_one_name(cwd):
    folder = cwd / FOLDER
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused("another run is writing", *NCE, "--epochs", "1", cwd=cwd)


@contextlib.contextmanager
def small_disk(path, options):
    """``path`` as a file system of its own; it may hide files of a run that still has them open."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no file systems can be mounted here: {done.stderr if done else 'there is no mount'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
def test_disk_full_while_saving(cwd, first):
    size = (first / "model/epoch0.pth.tar").stat().st_size
    with small_disk(cwd / "log-pretrain", f"size={int(1.6 * size)}"):
        refused(
            r"cannot write log-pretrain/\S+/model/epoch1.pth.tar: .*0 MB of disk.*before are unharmed",
            *NCE,
            "--epochs",
            "3",
            cwd=cwd,
        )
        model = cwd / FOLDER / "model"
        assert load_checkpoint(model / "epoch0.pth.tar")["epoch"] == 0
        assert {path.name for path in model.iterdir()} == {
            "epoch0.pth.tar",
            "model_best_epoch0.pth.tar",
            "newest",
        }
        assert sorted(losses(cwd / FOLDER)) == list(range(8))


@pytest.mark.slow
def test_disk_that_somebody_else_fills(cwd):
    with small_disk(cwd / "log-pretrain", "size=1m"), Started(*NCE, "--epochs", "9", cwd=cwd) as process:
        process.wait_for_steps(cwd / FOLDER, 1)
        with contextlib.suppress(OSError), open(cwd / "log-pretrain/large", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = process.finish()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"error: cannot write (to )?log-pretrain/", done.stderr.strip().splitlines()[-1])


def test_read_only_log_folder(cwd):
    with small_disk(cwd / "log-pretrain", "ro"):
        refused("cannot write to log-pretrain/.*[Rr]ead-only", *NCE, "--epochs", "1", cwd=cwd)


def test_log_folder_that_cannot_be_made(cwd):
    (cwd / "log-pretrain").write_text("a file where the folder should be")
    refused("cannot write to log-pretrain", *NCE, "--epochs", "1", cwd=cwd)


def test_diverging_loss_stops_and_names_the_videos(cwd):
    last = refused(
        r"loss is (nan|inf) at step \d+ \(lr 1e\+38\)", *NCE, "--epochs", "3", "--lr", "1e38", cwd=cwd
    )
    assert last.count("Class") >= 4
    assert not list(cwd.glob("log-pretrain/*/model/*"))


@pytest.mark.slow
def test_database_replaced_during_training(cwd, undisturbed):
    """The old one is read on, by two workers, although another took its name."""
    shutil.copytree(cwd / "data/tiny", cwd / "mine/tiny")
    with Started(*NCE, "-j", "2", "--epochs", "50", "--data_root", "mine", cwd=cwd) as process:
        process.wait_for_steps(cwd / FOLDER, 1)
        write_database(cwd / "other.lmdb", {"A/a": [b"nothing"]})
        os.replace(cwd / "other.lmdb", cwd / "mine/tiny/rgb.lmdb")
        process.wait_for_steps(cwd / FOLDER, 6)
        process.send_signal(signal.SIGTERM)
        done = process.finish()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "left out" not in done.stderr
    found = trained(cwd / FOLDER)
    assert {i: loss for i, loss in losses(undisturbed).items() if i in found}.items() <= found.items()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_database_cut_short_during_training(cwd, workers):
    shutil.copytree(cwd / "data/tiny", cwd / "mine/tiny")
    with Started(*NCE, "-j", workers, "--epochs", "50", "--data_root", "mine", cwd=cwd) as process:
        process.wait_for_steps(cwd / FOLDER, 1)
        os.truncate(cwd / "mine/tiny/rgb.lmdb", 8192)
        done = process.finish()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "mine/tiny/rgb.lmdb" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_database_overwritten_during_training(cwd):
    shutil.copytree(cwd / "data/tiny", cwd / "mine/tiny")
    path = cwd / "mine/tiny/rgb.lmdb"
    with Started(*NCE, "-j", "2", "--epochs", "50", "--data_root", "mine", cwd=cwd) as process:
        process.wait_for_steps(cwd / FOLDER, 1)
        path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
        done = process.finish()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "unreadable" in done.stderr.strip().splitlines()[-1]


def test_every_video_broken_is_one_line(tmp_path):
    write_database(tmp_path / "data/bad/rgb.lmdb", {f"A/{i}": [b"none"] * 20 for i in range(6)})
    for workers in ("0", "1"):
        refused(
            "every one of 5 videos is unreadable, e.g. A/",
            *NCE,
            "--dataset",
            "bad-2clip",
            "-j",
            workers,
            cwd=tmp_path,
        )
        shutil.rmtree(tmp_path / "log-pretrain")


def encoded(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.slow
def test_odd_frames_train(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x112] = 6  # shown turned by 90 degrees
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    large = cv2.imencode(".jpg", np.full((8000, 8000), 90, np.uint8))[1].tobytes()
    frames = {
        "one": encoded(image[:1, :1]),
        "line": encoded(image[:1]),
        "grey": encoded(image, mode="L"),
        "cmyk": encoded(image, mode="CMYK"),
        "progressive": encoded(image, progressive=True),
        "turned": encoded(image, exif=exif),
        "large": large,
    }
    videos = {f"A/{name}": [frame] * 6 for name, frame in frames.items()}
    videos["A/mixed"] = [frame for name, frame in frames.items() if name != "large"]
    write_database(tmp_path / "data/odd/rgb.lmdb", videos)
    (tmp_path / "data/odd/split.csv").write_text("".join(f"{name},train\n" for name in videos))
    text = run_ok(*NCE, "--dataset", "odd-2clip", "--epochs", "1", cwd=tmp_path)
    assert "left out" not in text
    assert "epoch 0 of 0-0" in text


def test_fp16_overflows_are_counted(cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    start_logging(is_main=True)

    def loss_of(model, colours, iteration):
        loss = model(colours).float().square().mean()
        zero = (model.bias - model.bias.detach()).sum()
        return loss + zero.sqrt() if iteration in (3, 7) else loss  # the root's gradient is infinite there

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    before = model.weight.clone()
    train_tiny(cwd / "data", 1, 0, loss_of, model=model, precision="fp16")
    records = [json.loads(line) for line in Path("log-pretrain/long/scalars.jsonl").read_text().splitlines()]
    assert [i for i, record in enumerate(records) if record["skipped"]] == [3, 7]
    assert f"skipped {2 / 9:.4f}" in Path("log-pretrain/long/log.txt").read_text()
    assert model.weight.isfinite().all()
    assert not torch.equal(model.weight, before)

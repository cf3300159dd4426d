"""Two hundred epochs: memory, file handles, threads of the trainer and its workers stay what they were."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from databases import make_dataset
from tiny_trainer import train_tiny

EPOCHS = 200


def usage(pid: int) -> tuple[float, int, int]:
    """(private memory in MB, open files, threads) of a process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    return private / 1024, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def train(folder: Path) -> None:
    """Train, and save the usage of each process in every fifth epoch as usage.npy."""
    multiprocessing.set_start_method(None, force=True)  # as without a fork server
    os.chdir(folder)
    torch.set_num_threads(1)
    found = []

    def after_epoch(epoch):
        if epoch % 5 == 0:
            found.append(
                [usage(pid) for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))]
            )

    def loss_of(model, colours, iteration):
        return model(colours).square().mean()

    train_tiny(folder / "data", EPOCHS, 2, loss_of, after_epoch, save_freq=5)
    np.save("usage.npy", np.array(found))


@pytest.mark.slow
def test_long_run_takes_no_more_and_more(tmp_path):
    make_dataset(tmp_path / "data/tiny", per_class=2, classes=3, frames=8)
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(tmp_path,))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    found = np.load(tmp_path / "usage.npy")  # [times, processes, (memory, files, threads)]
    assert found.shape == (EPOCHS // 5, 3, 3)
    early, late = found[4:12], found[-8:]
    assert (late[..., 1:].max(0) == early[..., 1:].max(0)).all(), "files or threads"
    growth = np.median(late[..., 0], axis=0) - np.median(early[..., 0], axis=0)
    assert (growth < 3).all(), f"private memory grew by {growth} MB"

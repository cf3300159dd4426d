"""One step and one epoch, of a model of one number on samples that are numbers."""

import argparse
import math
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from dataset.loader import ShuffledBatches
from utils.checkpoint import TrainState
from utils.engine import refuse_non_finite, train_epoch, train_step
from utils.errors import UserError
from utils.launch import World
from utils.run import Run

WORLD = World(0, 1, torch.device("cpu"))
OPTIONS = {
    "prefix": "x",
    "resume": None,
    "seed": 3,
    "precision": "fp32",
    "start_epoch": 0,
    "epochs": 4,
    "schedule": [1],
    "cos": False,
    "print_freq": 2,
    "batch_size": 2,
    "save_freq": 1,
}


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, key):
        _, index = key
        return {
            "x": float(index),
            "nested": {"x": 1.0},
            "name": f"video {index}",
            "broken": "A/b: torn" if index == 3 else "",
        }


class Slope(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.other = torch.nn.Parameter(torch.tensor(1.0))


class OneBatch:
    """Batch sampler of sixteen samples in one batch."""

    global_batch = 16

    def start_at(self, epoch, seen):
        pass

    def __len__(self):
        return 1

    def __iter__(self):
        yield list(range(16))


def start(**options):
    args = argparse.Namespace(**OPTIONS | options)
    model = Slope()
    optimizer = torch.optim.SGD(
        [{"params": [model.weight]}, {"params": [model.other], "lr_scale": 0.1}], lr=9.0
    )
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), 0.1, 0, {})
    loader = DataLoader(Numbers(), batch_sampler=ShuffledBatches(9, args.batch_size, 0, 1, args.seed))
    return args, state, loader


def step_of(state, seen=None):
    def step(batch, iteration):
        (seen if seen is not None else []).extend(batch["name"])
        loss = (state.model.weight + state.model.other) * batch["x"].mean()
        return loss, {"loss": loss, "top1": batch["x"].mean() * 0 + iteration}

    return step


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Run(argparse.Namespace(**OPTIONS), "a", WORLD)


def test_step_follows_the_gradient_at_the_rate_of_each_group():
    args, state, _ = start()
    for group, rate in zip(state.optimizer.param_groups, (0.5, 0.05), strict=True):
        group["lr"] = rate
    scalars = train_step(args, WORLD, state, step_of(state), {"x": torch.tensor([1.0, 3.0]), "name": []})
    assert scalars["loss"].item() == 4
    assert "skipped" not in scalars
    assert state.model.weight.item() == pytest.approx(1 - 0.5 * 2)
    assert state.model.other.item() == pytest.approx(1 - 0.05 * 2)


def test_step_without_a_loss_changes_nothing():
    args, state, _ = start()
    scalars = train_step(
        args, WORLD, state, lambda batch, iteration: (None, {"a": batch["x"]}), {"x": torch.ones(1)}
    )
    assert list(scalars) == ["a"]
    assert state.model.weight.item() == 1


def test_what_a_step_draws_follows_from_its_number_and_rank():
    args, state, _ = start()

    def draws(iteration, rank):
        state.iteration = iteration
        world = World(rank, 2, WORLD.device)
        return train_step(args, world, state, lambda batch, iteration: (None, {"a": torch.rand(1)}), {})[
            "a"
        ].item()

    assert draws(5, 0) == draws(5, 0)
    assert len({draws(5, 0), draws(6, 0), draws(5, 1)}) == 3


def test_epoch_reads_every_sample_once_and_records_every_step(run, tmp_path, caplog):
    args, state, loader = start()
    seen = []
    with run.training(0), caplog.at_level("INFO", "coclr"):
        means = train_epoch(args, WORLD, run, state, loader, step_of(state, seen))
    assert len(seen) == len(set(seen)) == 8
    assert (state.iteration, state.seen) == (4, 8)
    assert means["top1"] == pytest.approx(1.5)
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([0.1, 0.01])
    lines = (tmp_path / "log-x/a/scalars.jsonl").read_text().splitlines()
    assert [f'"iteration": {i}' in line for i, line in enumerate(lines)] == [True] * 4
    assert caplog.text.count("A/b: torn") == ("video 3" in seen)


def test_epoch_goes_on_after_what_was_seen_with_another_batch_size(run, caplog):
    args, state, loader = start()
    whole = []
    with run.training(0), caplog.at_level("INFO", "coclr"):
        train_epoch(args, WORLD, run, state, loader, step_of(state, whole))
        args, state, loader = start(batch_size=3)
        state.seen = 4
        rest = []
        train_epoch(args, WORLD, run, state, loader, step_of(state, rest))
    assert rest[:4] == whole[4:]
    assert rest[5:] == whole[:1]  # fills up the last batch
    assert len({*whole, *rest}) == 9
    assert "epoch 0 goes on after the 4 videos that it has seen: 2 of 3 steps are left" in caplog.text


def test_rate_drops_with_the_epoch(run):
    args, state, loader = start()
    state.epoch = 1
    with run.training(0):
        train_epoch(args, WORLD, run, state, loader, step_of(state))
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_a_signal_ends_the_epoch_after_the_step(run, tmp_path):
    args, state, loader = start()

    def step(batch, iteration):
        if iteration == 1:
            signal.raise_signal(signal.SIGUSR1)
        return step_of(state)(batch, iteration)

    with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)), run.training(0):
        train_epoch(args, WORLD, run, state, loader, step)
    saved = torch.load(tmp_path / "log-x/a/model/interrupted.pth.tar")
    assert (saved["epoch"], saved["seen"], saved["iteration"]) == (-1, 4, 2)
    assert saved["meters"]["counts"] == {"loss": 2, "top1": 2}


@pytest.mark.parametrize(
    ("limit", "processes", "words"), [(4, 1, "4 fits"), (1, 1, "lower it"), (4, 2, "lower it")]
)
def test_memory_that_is_too_small_is_told_with_the_batch_that_fits(run, tmp_path, limit, processes, words):
    args, state, _ = start(batch_size=16)
    samples = [Numbers()[0, index] for index in range(16)]
    sizes = []

    def step(batch, iteration):
        sizes.append((len(batch["x"]), len(batch["nested"]["x"]), len(batch["name"])))
        if len(batch["x"]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step_of(state)(batch, iteration)

    loader = DataLoader(samples, batch_sampler=OneBatch())
    world = World(0, processes, WORLD.device)
    with pytest.raises(UserError, match=f"cpu is too small for --batch_size 16: {words};"), run.training(0):
        train_epoch(args, world, run, state, loader, step)
    tried = {(4, 1): [16, 8, 4], (1, 1): [16, 8, 4, 2], (4, 2): [16]}[limit, processes]
    assert sizes == [(size,) * 3 for size in tried]
    assert not list((tmp_path / "log-x/a/model").iterdir())


def test_loss_that_is_not_finite_is_named_with_its_samples():
    steps = [{"loss": 1.0}, {}, {"loss": math.nan}]
    names = [["a", "b"], ["c"], ["d", "e"]]
    refuse_non_finite(steps[:2], names[:2], first=5, lr=0.1, rank=1)
    with pytest.raises(
        UserError, match=r"loss is nan at step 7 \(lr 0.1\), batch of rank 1: d, e; nothing was saved"
    ):
        refuse_non_finite(steps, names, first=5, lr=0.1, rank=1)

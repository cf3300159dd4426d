"""A run's folder, checkpoints, scalars and signals."""

import argparse
import logging
import signal

import pytest
import torch

from utils import run as module
from utils.checkpoint import TrainState, load_checkpoint
from utils.errors import UserError
from utils.launch import World
from utils.run import Run

WORLD = World(0, 1, torch.device("cpu"))


def options(**given):
    defaults = {"prefix": "x", "resume": None, "start_epoch": 0, "epochs": 6, "save_freq": 2, "batch_size": 1}
    return argparse.Namespace(**defaults | given)


def new_state():
    model = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, torch.optim.SGD(model.parameters()), scaler, 0.1, 0, {})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "log-x/a"


def names(folder):
    return {path.name for path in (folder / "model").glob("*.tar")}


def test_a_folder_is_of_one_run_until_it_ends(folder):
    first = Run(options(), "a", WORLD)
    with pytest.raises(UserError, match=r"another run is writing to log-x/a; .*--name_prefix"):
        Run(options(resume="auto"), "a", WORLD)
    Run(options(), "b", WORLD)
    Run(options(), "a", World(1, 2, WORLD.device))  # another process of the same run
    del first
    Run(options(), "a", WORLD)
    assert (folder / "img").is_dir()


def test_epochs_are_saved_and_the_best_is_marked(folder, caplog):
    run, state = Run(options(), "a", WORLD), new_state()
    with run.training(0), caplog.at_level(logging.INFO, "coclr"):
        for score in (0.9, 0.2, 0.3, 0.1, None, 0.5):
            run.end_epoch(state, {"loss": 1.5}, score)
    assert names(folder) == {"epoch5.pth.tar", "model_best_epoch1.pth.tar", "model_best_epoch5.pth.tar"}
    saved = load_checkpoint(folder / "model/epoch5.pth.tar")
    assert (saved["epoch"], saved["best_acc"], saved["seen"]) == (5, 0.5, 0)
    assert (state.epoch, state.seen) == (6, 0)
    assert "epoch 3 of 0-5: loss 1.5000" in caplog.text


def test_which_checkpoint_is_meant(folder, caplog):
    with caplog.at_level(logging.INFO, "coclr"):
        assert Run(options(resume="auto"), "a", WORLD).resume is None
    assert "no checkpoint in log-x/a yet" in caplog.text
    run, state = Run(options(), "a", WORLD), new_state()
    with run.training(0):
        run.end_epoch(state, {}, None)
        run.end_epoch(state, {}, None)
    del run
    with pytest.raises(UserError, match=r"epoch1.pth.tar exists: --resume auto goes on from it"):
        Run(options(), "a", WORLD)
    assert Run(options(resume="auto"), "a", WORLD).resume.name == "epoch1.pth.tar"
    assert str(Run(options(resume="other.tar"), "a", WORLD).resume) == "other.tar"


@pytest.mark.parametrize("other", ["none", "epoch1.pth.tar of 3 bytes"])
def test_processes_that_see_different_checkpoints_are_refused(folder, monkeypatch, other):
    """As in folders of their own, on two machines."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/epoch1.pth.tar").write_bytes(b"12")

    def gather(found, own):
        found[:] = [own, other]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    here = rf"process 0 epoch1.pth.tar of 2 bytes, process 1 {other}; .*shared folder"
    with pytest.raises(UserError, match=here):
        Run(options(resume="auto"), "a", World(0, 2, WORLD.device))
    other = "epoch1.pth.tar of 2 bytes"
    assert Run(options(resume="auto"), "a", World(0, 2, WORLD.device)).resume.name == "epoch1.pth.tar"


def test_nothing_left_to_train_is_refused(folder):
    with pytest.raises(UserError, match="--start_epoch 6 leaves nothing of --epochs 6"):
        Run(options(start_epoch=6), "a", WORLD)
    assert not folder.exists()


def test_other_processes_write_nothing(tmp_path):
    run, state = Run(options(), "a", World(1, 2, WORLD.device)), new_state()
    with run.training(0):
        run.end_epoch(state, {"loss": 1.0}, 1.0)
        run.record(state, [{"loss": 1.0}], {}, 1, 1)
    assert (state.epoch, state.best) == (1, -torch.inf)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", module.STOP_SIGNALS)
def test_signals_are_remembered_and_given_back(number):
    before = signal.getsignal(number)
    run = Run(options(), "a", WORLD)
    with run.training(0):
        assert run.asked_to_stop() == 0
        signal.raise_signal(number)
        assert run.asked_to_stop() == number
    assert signal.getsignal(number) == before


def test_each_broken_video_is_told_once_and_counted(caplog):
    run = Run(options(), "a", WORLD)
    run.warn_of_broken(["", "A/a: frame 2 is torn", "A/a: frame 8 is torn"])
    run.warn_of_broken(["A/a: frame 1 is torn", "", "A/b: empty"])
    assert [record.getMessage() for record in caplog.records] == [
        "left out, another video stands in: A/a: frame 2 is torn (1 so far)",
        "left out, another video stands in: A/b: empty (2 so far)",
    ]


def test_warnings_of_all_processes_go_to_the_log_of_the_run(folder):
    runs = [Run(options(), "a", World(rank, 2, WORLD.device)) for rank in (0, 1)]
    before = len((folder / "log.txt").read_text())
    runs[1].warn_of_broken(["A/a: torn"])
    assert "A/a: torn" in (folder / "log.txt").read_text()[before:]


def test_a_line_in_the_log_twice_a_minute(monkeypatch, caplog):
    run, state = Run(options(), "a", WORLD), new_state()
    state.iteration = 4
    speed = {"lr": 0.1, "clips_per_second": 2.0, "data_wait": 0.25}
    with run.training(0), caplog.at_level(logging.INFO, "coclr"):
        run.record(state, [{"loss": 1.0}], speed, done=1, total=10)
        assert caplog.text == ""
        monkeypatch.setattr(module.time, "monotonic", lambda: run._last_line + 31)
        run.record(state, [{"loss": 1.0}], speed, done=2, total=10)
    assert "epoch 0, step 2/10: loss 1.0000, 2.0 clips/s, data wait 25 %, 00:29 left" in caplog.text

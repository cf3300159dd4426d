import argparse
import copy
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from utils.checkpoint import (
    CheckpointFolder,
    TrainState,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state_per_parameter,
    save_atomically,
)
from utils.errors import UserError


def test_numpy_scalars_of_the_original_load(tmp_path):
    path = tmp_path / "original.pth.tar"
    torch.save(
        {
            "epoch": 7,
            "state_dict": {"module.a": torch.ones(2)},
            "best_acc": np.float64(0.25),
            "ids": [np.int64(3), np.float32(1.5)],
            "iteration": np.int64(9),
        },
        path,
    )
    loaded = load_checkpoint(path)
    assert loaded["best_acc"] == 0.25
    assert loaded["ids"] == [3, 1.5]
    assert list(loaded["state_dict"]) == ["a"]


def test_scalars_pickled_by_old_numpy_load(tmp_path):
    """numpy 1 wrote the module name numpy.core.multiarray."""
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": {}, "best_acc": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_checkpoint(path)["best_acc"] == 0.5


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    target = tmp_path / "made by the payload"
    path = tmp_path / "evil.pth.tar"
    torch.save({"state_dict": {}, "best_acc": Payload(str(target))}, path)
    with pytest.raises(UserError, match="evil"):
        load_checkpoint(path)
    assert not target.exists()


def test_options_that_could_run_code_are_named_in_one_line(tmp_path):
    path = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError) as refused:
        load_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is not a readable checkpoint: it holds argparse.Namespace, which")
    assert message.endswith("alone")
    assert "\n" not in message
    assert "\x1b" not in message


def test_prefixes_of_wrappers_are_removed(tmp_path):
    path = tmp_path / "compiled.pth.tar"
    keys = ("module._orig_mod.encoder_q.0.a", "_orig_mod.module.encoder_q.0.b", "encoder_q._orig_mod.0.c")
    torch.save({"state_dict": dict.fromkeys(keys, torch.ones(1))}, path)
    assert list(load_checkpoint(path)["state_dict"]) == ["encoder_q.0.a", "encoder_q.0.b", "encoder_q.0.c"]


def test_numpy_object_scalar_is_refused(tmp_path):
    path = tmp_path / "object.pth.tar"
    scalar = type(
        "Scalar",
        (),
        {"__reduce__": lambda self: (np.float64(0).__reduce__()[0], (np.dtype("O"), pickle.dumps(1)))},
    )()
    torch.save({"state_dict": {}, "x": scalar}, path)
    with pytest.raises(UserError):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "text", "list", "no state_dict", "words"])
def test_what_is_not_a_checkpoint_is_one_clear_error(tmp_path, damage):
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": {"a": torch.randn(100)}, "epoch": 0}, path)
    whole = path.read_bytes()
    content = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not a checkpoint\n" * 9}
    if damage == "absent":
        path.unlink()
    elif damage == "list":
        torch.save([1], path)
    elif damage == "no state_dict":
        torch.save({"epoch": 1}, path)
    elif damage == "words":
        torch.save({"state_dict": {}, "epoch": "last"}, path)
    else:
        path.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"c\.pth\.tar") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def model_with_frozen_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    return model


def train(model, optimizer, steps):
    draw = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=draw)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("frozen_have_groups", [True, False])
def test_optimizer_state_with_one_group_per_parameter_goes_both_ways(frozen_have_groups):
    ours, original = model_with_frozen_part(), model_with_frozen_part()
    parameters = [p for p in original.parameters() if frozen_have_groups or p.requires_grad]
    theirs = torch.optim.Adam([{"params": [p]} for p in parameters], lr=1e-2)
    optimizer = torch.optim.Adam([p for p in ours.parameters() if p.requires_grad], lr=1e-2, fused=True)
    train(original, theirs, 3)

    ours.load_state_dict(original.state_dict())
    load_optimizer_state(optimizer, ours, copy.deepcopy(theirs.state_dict()), "original")
    train(original, theirs, 2), train(ours, optimizer, 2)
    for a, b in zip(ours.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(a, b)

    saved = optimizer_state_per_parameter(optimizer, ours)
    assert [group["params"] for group in saved["param_groups"]] == [[i] for i in range(6)]
    if frozen_have_groups:
        theirs.load_state_dict(copy.deepcopy(saved))
        train(original, theirs, 2), train(ours, optimizer, 2)
        for a, b in zip(ours.parameters(), original.parameters(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layouts", [("contiguous", "channels_last"), ("channels_last", "contiguous")])
def test_moments_take_the_memory_layout_of_their_parameters(layouts):
    """A fused optimiser pairs them as they lie in memory."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    saving, going_on, plain = (nn.Conv2d(3, 5, 3, bias=False) for _ in range(3))
    for model, layout in ((saving, layouts[0]), (going_on, layouts[1]), (plain, layouts[1])):
        model.load_state_dict(saving.state_dict())
        model.to(memory_format=formats[layout])
    optimizers = [torch.optim.Adam(model.parameters(), fused=True) for model in (saving, going_on)]
    reference = torch.optim.Adam(plain.parameters(), fused=False, foreach=False)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.linspace(-1, 2, 54).view(2, 3, 3, 3)).square().sum().backward()
        optimizer.step()

    step(saving, optimizers[0])
    saved = optimizer_state_per_parameter(optimizers[0], saving)
    for model, optimizer in ((going_on, optimizers[1]), (plain, reference)):
        model.load_state_dict(saving.state_dict())
        load_optimizer_state(optimizer, model, copy.deepcopy(saved), "x.pth.tar")
        step(model, optimizer)
    torch.testing.assert_close(going_on.weight, plain.weight)


def test_optimizer_state_of_another_model_is_refused():
    model = model_with_frozen_part()
    other = nn.Linear(5, 5)
    optimizer = torch.optim.Adam(other.parameters())
    saved = optimizer_state_per_parameter(optimizer, other)
    with pytest.raises(UserError, match="2 parameters"):
        load_optimizer_state(torch.optim.Adam(model.parameters()), model, saved, "x.pth.tar")


def save(folder, epoch, **options):
    folder.save_epoch({"epoch": epoch, "state_dict": {}}, epoch, **options)


def names(folder, stem=""):
    return {path.name for path in folder.glob(f"{stem}*.tar")}


@pytest.mark.parametrize("keep_all", [False, True])
def test_keep_policy(tmp_path, keep_all):
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    folder.save_interrupted({"state_dict": {}})
    assert folder.newest().name == "interrupted.pth.tar"
    for epoch in range(12):
        save(folder, epoch, is_best=epoch != 10, keep_all=keep_all)
    epochs = range(12) if keep_all else [11]
    assert names(tmp_path) == (
        {f"epoch{e}.pth.tar" for e in epochs} | {f"model_best_epoch{e}.pth.tar" for e in (6, 7, 8, 9, 11)}
    )
    assert load_checkpoint(folder.newest())["epoch"] == 11


@pytest.mark.parametrize("keep_all", [False, True])
def test_a_run_that_went_back_goes_on_from_what_it_wrote_last(tmp_path, keep_all):
    folder = CheckpointFolder(tmp_path)
    for epoch in range(8):
        save(folder, epoch, is_best=True, keep_all=keep_all)
    save(folder, 2, is_best=True, keep_all=keep_all)  # the run went on from epoch 1
    assert folder.newest().name == "epoch2.pth.tar"
    assert names(tmp_path, "model_best") == {f"model_best_epoch{e}.pth.tar" for e in (2, 4, 5, 6, 7)}
    save(folder, 3, is_best=True, keep_all=keep_all)
    assert folder.newest().name == "epoch3.pth.tar"
    assert names(tmp_path, "model_best") == {f"model_best_epoch{e}.pth.tar" for e in (2, 3, 5, 6, 7)}
    folder.save_interrupted({"state_dict": {}})
    assert folder.newest().name == "interrupted.pth.tar"


def test_a_new_best_stays_although_the_clock_went_back(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for epoch in range(5, 10):
        save(folder, epoch, is_best=True)
        os.utime(tmp_path / f"model_best_epoch{epoch}.pth.tar", (4e9, 4e9))
    save(folder, 1, is_best=True)
    assert "model_best_epoch1.pth.tar" in names(tmp_path, "model_best")


def test_newest_of_an_earlier_version_and_of_a_copy(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for epoch in (9, 10):
        torch.save({"state_dict": {}}, tmp_path / f"epoch{epoch}.pth.tar")
    assert folder.newest().name == "epoch10.pth.tar"
    (tmp_path / "newest").write_text("epoch3.pth.tar")  # was not copied
    assert folder.newest().name == "epoch10.pth.tar"
    (tmp_path / "interrupted.pth.tar").touch()
    assert folder.newest().name == "interrupted.pth.tar"


def state_of(model, **options):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scaler, base_lr=1e-2, epoch=0, facts={"net": "s3d"}, **options)


def test_train_state_goes_through_a_checkpoint(tmp_path):
    state = state_of(model_with_frozen_part(), seen=12, iteration=7, best=0.5)
    state.epoch = 3
    state.meters.add({"loss": torch.tensor(2.0)})
    state.meters.flush()
    train(state.model, state.optimizer, 2)
    save_atomically(state.checkpoint({"lr": 3.0, "batch_size": 4}), tmp_path / "c.tar")
    saved = load_checkpoint(tmp_path / "c.tar")
    assert (saved["epoch"], saved["options"]["lr"], saved["net"]) == (2, 1e-2, "s3d")
    other = state_of(model_with_frozen_part())
    other.base_lr = 1.0
    other.restore(saved, "c.tar", processes=5, reset_lr=False)
    assert (other.epoch, other.seen, other.iteration, other.best, other.base_lr) == (3, 12, 7, 0.5, 1e-2)
    assert other.meters.means() == {"loss": 2.0}
    for i, entry in state.optimizer.state_dict()["state"].items():
        assert torch.equal(entry["exp_avg"], other.optimizer.state_dict()["state"][i]["exp_avg"])
    other.base_lr = 1.0
    other.restore(saved, "c.tar", processes=5, reset_lr=True)
    assert other.base_lr == 1.0


def test_steps_that_earlier_versions_counted_become_samples():
    state = state_of(model_with_frozen_part())
    state.restore({"epoch": 0, "batches": 3, "options": {"batch_size": 4}}, "x", processes=2, reset_lr=True)
    assert (state.epoch, state.seen) == (1, 24)


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "epoch0.pth.tar"
    save_atomically({"state_dict": {}, "epoch": 0}, path)

    class Full:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*epoch0\.pth\.tar.*No space left"):
        save_atomically({"state_dict": {}, "epoch": 1, "x": Full()}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch0.pth.tar"]
    assert load_checkpoint(path)["epoch"] == 0

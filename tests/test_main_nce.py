"""main_nce.py as a user runs it: launchers, resuming, checkpoints, bad input."""

import math
import os
import shutil
import subprocess
import sys

import lmdb
import msgpack
import numpy as np
import pytest
import torch
from coded import write_coded
from databases import jpeg, write_database
from runs import NCE, ROOT, RUN, SMALL, environment, free_port, losses, refused, run, run_ok, run_ranks

from model.pretrain import InfoNCE
from utils.checkpoint import load_checkpoint


@pytest.mark.slow
def test_1_plus_2_epochs_equal_3_to_the_last_digit(cwd, first, undisturbed):
    parts = cwd / "log-pretrain" / RUN
    shutil.copytree(first, parts)
    run_ok(*NCE, "--epochs", "3", "--resume", f"log-pretrain/{RUN}/model/epoch0.pth.tar", cwd=cwd)
    assert losses(parts) == losses(undisturbed)
    assert sorted(losses(parts)) == list(range(12))
    a, b = (load_checkpoint(folder / "model/epoch2.pth.tar") for folder in (undisturbed, parts))
    assert a["best_acc"] == b["best_acc"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    for i, state in a["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], b["optimizer"]["state"][i]["exp_avg_sq"])
    assert {path.name for path in (parts / "model").glob("epoch*")} == {"epoch2.pth.tar"}
    assert len(list((parts / "img").glob("events.*"))) == 2
    assert not any(key.startswith("module.") for key in a["state_dict"])
    assert {"epoch", "state_dict", "best_acc", "optimizer", "iteration"} <= a.keys()
    assert len(a["optimizer"]["param_groups"]) == 2 * len(a["optimizer"]["state"])  # q's and k's parameters


@pytest.mark.slow
def test_checkpoint_of_the_original_resumes(cwd, first, undisturbed):
    """Without our extra entries, with module. prefixes, numpy scalars, one optimiser group per parameter."""
    own = torch.load(first / "model/epoch0.pth.tar", weights_only=True)
    torch.save(
        {
            "epoch": np.int64(0),
            "best_acc": np.float64(own["best_acc"]),
            "iteration": own["iteration"],
            "state_dict": {f"module.{k}": v for k, v in own["state_dict"].items()},
            "optimizer": own["optimizer"],
        },
        cwd / "original.pth.tar",
    )
    run_ok(*NCE, "--epochs", "2", "--resume", "original.pth.tar", cwd=cwd)
    assert losses(cwd / "log-pretrain" / RUN) == {i: x for i, x in losses(undisturbed).items() if 4 <= i < 8}


@pytest.mark.slow
def test_at_rate_0_only_the_statistics_of_batch_norm_move(cwd, first):
    run_ok(*NCE, "--lr", "0", "--epochs", "1", "--name_prefix", "still_", cwd=cwd)
    (path,) = cwd.glob("log-pretrain/still_*/model/epoch0.pth.tar")
    saved = load_checkpoint(path)
    assert saved["method"] == "no learning"
    start = InfoNCE("s3d_quarter").state_dict()
    names = [name.removeprefix("encoder_q.") for name in start if name.startswith("encoder_q.")]
    q, k = ({name: saved["state_dict"][f"encoder_{side}.{name}"] for name in names} for side in "qk")
    moved = {name for name in names if not torch.equal(q[name], k[name])}
    assert moved
    assert all("running" in name for name in moved)
    trained = f"{first}/model/epoch0.pth.tar"
    run_ok(*NCE, "--lr", "0", "--epochs", "1", "--name_prefix", "on_", "--pretrain", trained, cwd=cwd)
    (path,) = cwd.glob("log-pretrain/on_*/model/epoch0.pth.tar")
    assert load_checkpoint(path)["method"] == "InfoNCE"
    learnt = load_checkpoint(trained)
    assert learnt["method"] == "InfoNCE"
    assert not torch.equal(
        learnt["state_dict"]["encoder_q.0.Conv_1a.conv1.weight"], q["0.Conv_1a.conv1.weight"]
    )


@pytest.mark.slow
def test_an_epoch_goes_on_with_another_number_of_processes(cwd, first):
    """Twelve of sixteen videos are seen: a global batch of eight takes the other four, and says so."""
    saved = torch.load(first / "model/epoch0.pth.tar", weights_only=True)
    torch.save(saved | {"seen": 12, "iteration": 7}, cwd / "middle.tar")
    text = run_ranks(*NCE, "--epochs", "2", "--resume", "middle.tar", cwd=cwd)
    assert text.count("epoch 1 goes on after the 12 videos that it has seen: 1 of 2 steps are left") == 1
    assert list(losses(cwd / "log-pretrain" / RUN)) == [7]


@pytest.mark.slow
def test_two_processes_by_the_older_launcher(cwd):
    words = (
        "main_nce.py",
        "--model",
        "ubernce",
        "--dataset",
        "tiny-f-2clip",
        *SMALL,
        "--moco-k",
        "8",
        "--batch_size",
        "2",
        "--epochs",
        "2",
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.launch",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        ROOT / words[0],
        *words[1:],
    ]
    done = subprocess.run(command, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    folder = cwd / "log-pretrain/ubernce_k8_tiny-f-2clip-32_s3d_quarter_bs2_lr0.001_seq2_len8_ds1"
    trace = losses(folder)
    assert sorted(trace) == list(range(8))
    assert all(math.isfinite(loss) for loss in trace.values())
    state = load_checkpoint(folder / "model/epoch1.pth.tar")["state_dict"]
    assert state["queue_label"].min() >= 0
    assert state["queue_ptr"].tolist() == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--precision", "bf16", "--channels_last"), ("--bn_splits", "4", "--net", "s3dg", "--batch_size", "8")],
)
def test_precision_and_layout_train(cwd, options):
    done = run(*NCE, "--epochs", "1", *options, cwd=cwd)
    last = done.stderr.strip().splitlines()[-1]
    if "bf16" in options and done.returncode == 2 and "use --precision fp32" in last:
        pytest.skip(f"this CPU computes bf16 wrongly: {last}")
    assert done.returncode == 0, done.stderr
    assert "epoch 0 of 0-0: loss" in last
    saved = load_checkpoint(next((cwd / "log-pretrain").glob("*/model/epoch0.pth.tar")))
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    assert all(v.dtype in (torch.float32, torch.int64) for v in saved["state_dict"].values())


def test_broken_videos_are_named_and_training_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    frames = [jpeg(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(20)]
    broken = {"A/broken": [b"no jpeg"] * 20, "A/foreign": [b""] * 20, "A/missing": [b""] * 20}
    videos = {f"A/good{i}": frames for i in range(5)} | broken
    path = tmp_path / "data/bad/rgb.lmdb"
    write_database(path, videos)
    with lmdb.open(str(path), subdir=False, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"%09d" % 6, msgpack.packb({"not": "a list"}))
        txn.delete(b"%09d" % 7)
    (tmp_path / "data/bad/split.csv").write_text("".join(f"{name},train\n" for name in videos))
    text = run_ok(*NCE, "--dataset", "bad-2clip", "--epochs", "2", cwd=tmp_path)
    assert all(name in text for name in broken)
    assert "epoch 1 of 0-1" in text


def test_footage_without_labels_trains_where_none_are_needed(tmp_path):
    (tmp_path / "footage").mkdir()
    for number in range(4):
        write_coded(tmp_path / f"footage/v{number}.mp4", range(20))
    words = (*NCE, "--rgb_videos", tmp_path / "footage", "--epochs", "1")
    assert "without labels" in run_ok(*words, cwd=tmp_path)
    refused("--model ubernce needs labels", *words, "--model", "ubernce", cwd=tmp_path)
    probe = ("main_classifier.py", "--dataset", "tiny", "--rgb_videos", tmp_path / "footage")
    refused("tiny has no test part.*no labels", *probe, cwd=tmp_path)


def save(path, **entries):
    torch.save(entries, path)
    return str(path)


BAD = {
    "unknown net": (("--net", "vgg"), "vgg"),
    "unknown model": (("--model", "simclr"), "simclr"),
    "unknown dataset": (("--dataset", "nowhere-2clip"), "nowhere"),
    "missing database": (("--dataset", "ucf101-2clip"), "data/ucf101/rgb.lmdb.*--rgb_lmdb"),
    "two streams": (("--dataset", "tiny-2stream-2clip"), "tiny-2clip or tiny-f-2clip"),
    "queue": (("--moco-k", "9"), "9.*4"),
    "few videos": (("--batch_size", "32", "--moco-k", "32"), "18 videos.*--batch_size"),
    "splits": (("--bn_splits", "3"), "--bn_splits 3"),
    "absent checkpoint": (("--resume", "nothing.tar"), "nothing.tar"),
    "no checkpoint": (("--pretrain", "text.tar"), "text.tar"),
    "other network": (("--pretrain", "r50.tar"), "r50"),
    "other network resumed": (("--resume", "r50.tar"), "r50"),
    "test": (("--test", "x"), "main_classifier"),
    "no order": (("--rgb_lmdb", "no_order.lmdb"), "no_order.lmdb.*__order__"),
    "fewer than no workers": (("-j", "-1"), "-j/--workers: -1 should be at least"),
    "negative rate": (("--lr", "-0.1"), "--lr: -0.1 should be a number of at least 0"),
    "temperature": (("--moco-t", "0"), "--moco-t 0.0 should be above 0"),
    "momentum": (("--moco-m", "1.5"), "--moco-m 1.5 should be between 0 and 1"),
    "seed": (("--seed", "20240601123456"), "--seed: 20240601123456 should be .* below 2.32"),
    "nothing to do": (("--start_epoch", "1"), "--start_epoch 1 leaves nothing of --epochs 1"),
    "clips too small": (("--seq_len", "4"), "--seq_len 4 --img_dim 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(cwd, case):
    options, message = BAD[case]
    (cwd / "text.tar").write_text("this is text")
    save(cwd / "r50.tar", state_dict={"encoder_q.0.layer4.2.bn1.weight": torch.ones(3)}, epoch=1)
    write_database(cwd / "no_order.lmdb", {"A/a": []}, without=("__order__",))
    refused(message, *NCE, "--epochs", "1", *options, cwd=cwd)
    assert not list(cwd.glob("log-pretrain/*/model/*"))


def test_a_finished_run_is_not_overwritten(cwd, first):
    (cwd / "log-pretrain" / RUN).parent.mkdir()
    shutil.copytree(first, cwd / "log-pretrain" / RUN, copy_function=os.link)
    refused("epoch0.pth.tar exists: --resume auto", *NCE, "--epochs", "1", cwd=cwd)
    for option, value in (("--seed", "1"), ("--moco_m", "0.5"), ("--bn_bias", "1"), ("--flow_colour", "0")):
        message = f"was trained with {option} .*, not {value}.*; give the same, another --name_prefix"
        refused(message, *NCE, "--epochs", "2", "--resume", "auto", option, value, cwd=cwd)

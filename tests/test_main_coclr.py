"""main_coclr.py as a user runs it: start from checkpoints, mining, hiding, resuming, several processes."""

import argparse
import json
import signal

import numpy as np
import pytest
import torch
from runs import SMALL, Started, losses, refused, run_ok, run_ranks

import main_coclr
from model.loss import mil_nce_loss
from model.pretrain import InfoNCE
from utils.checkpoint import load_checkpoint

COCLR = (
    "main_coclr.py",
    "--dataset",
    "tiny-2stream-2clip",
    *SMALL,
    "--moco-k",
    "8",
    "--batch_size",
    "4",
    "--topk",
    "2",
)
RUN = "coclr-top2_k8_tiny-2stream-2clip-32_s3d_quarter_bs4_lr0.001_seq2_len8_ds1"


@pytest.fixture(scope="module")
def started(tiny):
    """A working folder with the dataset "tiny" and an InfoNCE checkpoint per stream, rgb.tar and flow.tar."""
    for seed, stream in enumerate(("rgb", "flow")):
        torch.manual_seed(seed)
        torch.save(
            {"state_dict": InfoNCE("s3d_quarter", 16, 16).state_dict(), "epoch": 0}, tiny / f"{stream}.tar"
        )
    return tiny


@pytest.fixture
def cwd(started, cwd):
    for name in ("rgb.tar", "flow.tar"):
        (cwd / name).symlink_to(started / name)
    return cwd


def encoder(path, name):
    return {
        key[len(name) + 1 :]: value
        for key, value in load_checkpoint(path)["state_dict"].items()
        if key.startswith(f"{name}.")
    }


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_start_from_checkpoints(cwd, reverse):
    """One epoch at learning rate 0: encoders are still those of the checkpoints; what was loaded is said."""
    start = ("flow.tar", "rgb.tar") if reverse else ("rgb.tar", "flow.tar")
    text = run_ok(
        *COCLR,
        "--epochs",
        "1",
        "--lr",
        "0",
        "--moco-m",
        "0.5",
        *["--reverse"] * reverse,
        "--pretrain",
        *start,
        cwd=cwd,
    )
    assert f"encoder_q of {start[0]}, epoch 0" in text
    assert f"encoder_q of {start[1]}, epoch 0" in text
    assert text.count("the first 2 steps fill them") == 1
    (made,) = cwd.glob(f"log-pretrain/coclr-top2{'-R' * reverse}_*/model/epoch0.pth.tar")
    own, other = (encoder(cwd / path, "encoder_q") for path in start)
    for key, value in encoder(made, "sampler").items():
        assert torch.equal(value, other[key]), key
    trained, momentum = encoder(made, "encoder_q"), encoder(made, "encoder_k")
    for key, value in trained.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, own[key]), key
            torch.testing.assert_close(momentum[key], value)


@pytest.mark.slow
def test_stopped_co_training_resumes_exactly(cwd):
    """Stopped in the middle of an epoch, by a signal, then resumed: every loss as in the undisturbed run."""
    options = ("--print_freq", "1", "--pretrain", "rgb.tar", "flow.tar")
    folder, whole = (cwd / f"log-pretrain/{prefix}{RUN}" for prefix in ("", "whole_"))
    run_ok(*COCLR, *options, "--epochs", "2", "--name_prefix", "whole_", cwd=cwd)
    with Started(*COCLR, *options, "--epochs", "50", cwd=cwd) as process:
        process.wait_for_steps(folder, 3)
        process.send_signal(signal.SIGTERM)
        done = process.finish()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "--resume auto goes on from there" in done.stderr
    other = ("--pretrain", "random", "random", "--resume", "auto")
    message = "was trained with --pretrain rgb.tar flow.tar, not random random; give the same"
    refused(message, *COCLR, "--epochs", "2", *other, cwd=cwd)
    run_ok(*COCLR, *options, "--epochs", "2", "--resume", "auto", cwd=cwd)
    assert losses(folder) == losses(whole)
    assert sorted(losses(whole)) == list(range(2, 8)), "two steps fill the queue"
    a, b = (load_checkpoint(path / "model/epoch1.pth.tar") for path in (folder, whole))
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    assert a["best_acc"] == b["best_acc"]


@pytest.mark.slow
def test_two_processes(cwd):
    run_ranks(*COCLR, "--batch_size", "2", "--epochs", "2", "--pretrain", "random", "random", cwd=cwd)
    (folder,) = cwd.glob("log-pretrain/coclr-top2_*_bs2_*")
    assert sorted(losses(folder)) == list(range(2, 8))
    records = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    full = [record for record in records if "loss" in record]
    assert all(
        {"top1", "top5", "self_top1", "self_top5", "mining_precision"} <= record.keys() for record in full
    )
    assert all(0 <= record["mining_precision"] <= 1 for record in full)


class FixedModel(torch.nn.Module):
    """Gives fixed logits, positives and mined sources."""

    def __init__(self, logits, positives, mined):
        super().__init__()
        self.answer, self.mined_source, self.queue_is_full, self.topk = (logits, positives), mined, True, 2

    def forward(self, block1, block2, source):
        return self.answer


@pytest.mark.parametrize("hide_self", [False, True])
def test_step_against_transcription(hide_self):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(4, 9)))
    positives = torch.tensor(rng.random((4, 9)) < 0.3)
    positives[:, 0] = True
    positives[3, 1:] = False
    source_label = torch.tensor([0, 0, 1, 2, 2])
    mined = torch.tensor([[0, 2], [1, 1], [3, 4], [2, 0]])
    label = torch.tensor([0, 1, 2, 0])
    model = FixedModel(logits, positives, mined)
    batch = {"source": label, "label": label}
    clips = torch.zeros(4, 2, 1)
    loss, scalars = main_coclr.co_training_step(model, model, clips, batch, source_label, hide_self)
    counted = positives.clone()
    for row in counted if hide_self else ():
        row[0] = sum(row) == 1
    assert loss.item() == mil_nce_loss(logits, counted).item()
    right = [int(source_label[m] == label[i]) for i, row in enumerate(mined) for m in row]
    assert scalars["mining_precision"].item() == pytest.approx(np.mean(right))
    unlabelled = main_coclr.co_training_step(model, model, clips, batch, None, hide_self)[1]
    assert scalars.keys() - unlabelled.keys() == {"mining_precision"}
    best = logits.argmax(1)
    assert scalars["self_top1"].item() == np.mean([b == 0 for b in best.tolist()])
    assert scalars["top1"].item() == np.mean([bool(positives[i, b]) for i, b in enumerate(best.tolist())])
    model.queue_is_full = False
    assert main_coclr.co_training_step(model, model, clips, batch, source_label, hide_self) == (None, {})


def test_labels_by_source():
    videos = argparse.Namespace(
        sources=np.array([4, 0, 4, 2]), labels=np.array([1, 0, 1, 2]), classes=["A", "B", "C"]
    )
    assert main_coclr.label_of_source(videos).tolist() == [0, -1, 2, -1, 1]
    videos.classes = []
    assert main_coclr.label_of_source(videos) is None


BAD = {
    "no start": ((), "--pretrain OWN OTHER"),
    "absent": (("--pretrain", "rgb.tar", "nothing.tar"), "nothing.tar"),
    "other network": (("--pretrain", "rgb.tar", "flow.tar", "--net", "r50"), "InfoNCE on s3d.*--net"),
    "other size": (("--pretrain", "rgb.tar", "flow.tar", "--moco-dim", "8"), "--moco-dim"),
    "one stream": (("--dataset", "tiny-2clip", "--pretrain", "random", "random"), "tiny-2stream-2clip"),
    "topk": (("--topk", "8", "--pretrain", "random", "random"), "--topk 8"),
    "one checkpoint": (("--pretrain", "rgb.tar"), "--pretrain"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(cwd, case):
    options, message = BAD[case]
    refused(message, *COCLR, "--epochs", "1", *options, cwd=cwd)

"""The probe on features against a transcription in numpy."""

import json

import numpy as np
import pytest
import torch

from eval import feature_linear_probe
from eval.feature_linear_probe import make_parser, probe
from eval.features import Features, save_features


def blobs(n: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    features = (rng.normal(size=(n, 5)) + 0.8 * np.eye(3, 5)[labels]) * (1, 4, 2, 3, 6)
    return Features(
        torch.tensor(features, dtype=torch.float32), torch.tensor(labels), [f"v{i}" for i in range(n)]
    )


def slow_probe(
    train: Features, test: Features, epochs: int, drops: list[int], normalize: bool
) -> list[float]:
    """Test top-1 after each epoch: softmax regression, full batch, SGD, momentum 0.9, lr 1, decay 1e-3."""
    x, y = train.features.double().numpy(), np.eye(3)[train.labels]
    test_x = test.features.double().numpy()
    if normalize:
        x, test_x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, test_x))
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    torch.nn.init.normal_(layer.weight, 0.0, 0.01)
    w, b = layer.weight.detach().double().numpy().copy(), np.zeros(3)
    momentum, accuracies = [0, 0], []
    for epoch in range(epochs):
        logits = x @ w.T + b
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradients = [(p - y).T @ x / len(x) + 1e-3 * w, (p - y).mean(axis=0) + 1e-3 * b]
        momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
        lr = 0.1 ** sum(epoch >= drop for drop in drops)
        w, b = w - lr * momentum[0], b - lr * momentum[1]
        accuracies.append(100 * np.mean((test_x @ w.T + b).argmax(axis=1) == test.labels.numpy()))
    return accuracies


@pytest.mark.parametrize("normalize", [False, True])
def test_against_transcription(normalize):
    train, test = blobs(80, 1), blobs(60, 2)
    args = make_parser().parse_args(
        [
            "--test",
            "x",
            "--epochs",
            "12",
            "--schedule",
            "6",
            "9",
            "--eval_freq",
            "1",
            *["--normalize"] * normalize,
        ]
    )
    numbers = probe(args, train, test)
    slow = slow_probe(train, test, 12, [6, 9], normalize)
    assert numbers["top1"] == pytest.approx(slow[-1])
    assert numbers["best_epoch_top1"] == pytest.approx(max(slow))
    assert numbers["best_epoch"] == slow.index(max(slow))
    assert numbers["top5"] == 100
    assert len(set(slow)) > 3  # not vacuous
    assert max(slow) > slow[-1] or normalize


def test_final_batch_norm_takes_out_the_scale():
    train, test = blobs(80, 1), blobs(60, 2)
    small = [Features(f.features * 1e-14, f.labels, f.names) for f in (train, test)]
    plain, normed = (
        make_parser().parse_args(["--test", "x", "--epochs", "60", *options])
        for options in ([], ["--final_bn"])
    )
    assert probe(normed, *small)["top1"] > probe(plain, *small)["top1"]


def test_command_writes_a_record_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_from = {
        "checkpoint": "a.tar",
        "epoch": 7,
        "split": 1,
        "origin": {"method": "InfoNCE"},
        "settings": {"ds": 1},
    }
    save_features(tmp_path / "feature", "tiny-f", {"train": blobs(80, 1), "test": blobs(60, 2)}, made_from)
    feature_linear_probe.main(
        [
            "--dataset",
            "tiny-f",
            "--test",
            str(tmp_path),
            "--final_bn",
            "--lr",
            "1.0",
            "--wd",
            "1e-3",
            "--epochs",
            "6",
            "--verbose",
        ]
    )
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["what"] == "feature probe"
    assert (record["dataset"], record["stream"], record["epoch"]) == ("tiny", "flow", 7)
    assert record["origin"] == {"method": "InfoNCE"}
    assert {"top1", "top5", "best_epoch_top1", "best_epoch"} == record["numbers"].keys()


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        feature_linear_probe.main(["--dataset", "tiny", "--test", "nowhere"])
    assert capsys.readouterr().err.startswith("error: no features of tiny in nowhere")
    save_features(tmp_path / "feature", "tiny", {"train": blobs(8, 1), "test": blobs(6, 2)}, {"split": 1})
    words = ["--dataset", "tiny", "--test", str(tmp_path), "--final_bn", "--batch_size", "1"]
    with pytest.raises(SystemExit, match="2"):
        feature_linear_probe.main(words)
    assert "--batch_size 1 leaves --final_bn one value" in capsys.readouterr().err
    for option in ("--lr", "--wd"):
        with pytest.raises(SystemExit, match="2"):
            feature_linear_probe.main(["--test", "nowhere", option, "-1"])
        assert f"{option}: -1 should be a number of at least 0" in capsys.readouterr().err

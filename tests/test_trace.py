"""Losses of seeded steps are those that the code before gave: tests/trace.json, of commit 2f79914.

The network is a small one: rounding, which every processor does in its own way, does not grow in it from step
to step.
"""

import json
from pathlib import Path

import pytest
import torch
from databases import make_dataset
from runs import losses

import main_coclr
import main_nce
from backbone.select_backbone import NETWORKS, Network

RECORDED = json.loads((Path(__file__).parent / "trace.json").read_text())
OPTIONS = (
    "--seq_len 8 --img_dim 32 -j 0 --print_freq 1 --moco-dim 16 --moco-k 8 --moco-m 0.9 --batch_size 4 --lr "
    "1e-3 --schedule 2 --epochs 3 --seed 5 --gpu -1"
)


def small_network(first_channel: int) -> torch.nn.Module:
    """[B, 3, 8, 32, 32] -> [B, 24, 4, 8, 8]."""
    return torch.nn.Sequential(
        torch.nn.Conv3d(first_channel, 12, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
        torch.nn.BatchNorm3d(12),
        torch.nn.ReLU(),
        torch.nn.Conv3d(12, 24, 3, 2, 1, bias=False),
        torch.nn.BatchNorm3d(24),
        torch.nn.ReLU(),
    )


def run_all() -> dict[str, list[float]]:
    """Losses by run, of the four runs of one cycle, in the current folder."""
    make_dataset(Path("data/tiny"))
    make_dataset(Path("data/other"), seed=1)
    # flow of no motion is the same for all videos: which of them are nearest would be left to rounding
    Path("data/other/rgb.lmdb").replace("data/tiny/flow.lmdb")

    def last(pattern: str) -> str:
        (path,) = Path("log-pretrain").glob(f"{pattern}/model/epoch2.pth.tar")
        return str(path)

    main_nce.main(["--dataset", "tiny-2clip", *OPTIONS.split()])
    main_nce.main(["--dataset", "tiny-f-2clip", "--model", "ubernce", *OPTIONS.split()])
    starts = [last("infonce_*"), last("ubernce_*")]
    words = ["--dataset", "tiny-2stream-2clip", "--topk", "2", "--hide_self", "0.5", *OPTIONS.split()]
    main_coclr.main([*words, "--pretrain", *starts])
    main_coclr.main([*words, "--reverse", "--bn_splits", "1", "--pretrain", starts[1], last("coclr-top2_*")])
    folders = sorted(Path("log-pretrain").iterdir())
    return {folder.name.split("_")[0]: list(losses(folder).values()) for folder in folders}


def test_losses_are_those_that_were_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(NETWORKS, "s3d", Network(small_network, 24))
    found = run_all()
    assert {name: len(trace) for name, trace in found.items()} == {
        "infonce": 12,
        "ubernce": 12,
        "coclr-top2": 10,  # two steps fill the queue
        "coclr-top2-R": 10,
    }
    for name, trace in RECORDED.items():
        assert found[name] == pytest.approx(trace, abs=1e-3), name

"""The real loop, loader, meters and checkpoints around a model of one layer."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.registry import open_videos
from utils.engine import Trainer, run_folder
from utils.launch import World


def tiny_trainer(
    data_root: Path,
    epochs: int,
    workers: int,
    loss_of: Callable[[nn.Module, Tensor, int], Tensor],
    validate: Callable[[int], dict[str, float]] | None = None,
    **options: object,
) -> Trainer:
    """A trainer in log-PREFIX/long of the current folder.

    loss_of: (layer from 3 to 4 values, mean colours [B, V, 3], iteration) -> loss.
    """
    args = argparse.Namespace(
        **{
            "prefix": "pretrain",
            "resume": None,
            "batch_size": 2,
            "epochs": epochs,
            "start_epoch": 0,
            "lr": 1e-3,
            "schedule": [],
            "cos": False,
            "seed": 0,
            "print_freq": 2,
            "save_freq": 1,
            "precision": "fp32",
            "channels_last": False,
            "reset_lr": False,
            **options,
        }
    )
    world = World(0, 1, torch.device("cpu"))
    videos = open_videos("tiny-2clip", "train", seq_len=8, ds=1, data_root=data_root)
    model = nn.Linear(3, 4)

    def step(model, clips, batch, iteration):
        loss = loss_of(model, clips[:, :, 0].mean((-3, -2, -1)), iteration)
        return loss, {"loss": loss, "top1": loss}

    loader = make_loader(
        ClipDataset(videos, 8, 1, 32, args.seed), args.batch_size, workers, 0, 1, world.device
    )
    return Trainer(
        args,
        world,
        model,
        [{"params": list(model.parameters())}],
        torch.optim.Adam,
        step,
        loader,
        *run_folder(args, "long", world),
        validate=validate,
    )

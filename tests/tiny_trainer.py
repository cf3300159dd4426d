"""The real loop, loader, meters and checkpoints around a model of one layer."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset.augmentation import augment_batch
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.registry import open_videos
from utils.checkpoint import TrainState, load_checkpoint
from utils.engine import train_epoch
from utils.launch import World
from utils.run import Run

OPTIONS = {
    "prefix": "pretrain",
    "resume": None,
    "batch_size": 2,
    "start_epoch": 0,
    "lr": 1e-3,
    "schedule": [],
    "cos": False,
    "seed": 0,
    "print_freq": 2,
    "save_freq": 1,
    "precision": "fp32",
    "reset_lr": False,
}


def train_tiny(
    data_root: Path,
    epochs: int,
    workers: int,
    loss_of: Callable[[nn.Module, Tensor, int], Tensor],
    after_epoch: Callable[[int], None] = lambda epoch: None,
    model: nn.Module | None = None,
    **options: object,
) -> None:
    """Train a layer in log-PREFIX/long of the current folder.

    loss_of: (layer from 3 to 4 values, mean colours [B, V, 3], iteration) -> loss.
    """
    args = argparse.Namespace(**OPTIONS | {"epochs": epochs} | options)
    world = World(0, 1, torch.device("cpu"))
    videos = open_videos("tiny-2clip", "train", seq_len=8, ds=1, data_root=data_root)
    dataset = ClipDataset(videos, 8, 1, 32, args.seed)
    loader = make_loader(dataset, args.batch_size, workers, world)
    model = model or nn.Linear(3, 4)

    def step(batch, iteration):
        colours = augment_batch(batch)[:, :, 0].mean((-3, -2, -1))  # [B, V, 3]
        loss = loss_of(model, colours, iteration)
        return loss, {"loss": loss, "top1": loss}

    scaler = torch.amp.GradScaler("cpu", enabled=args.precision == "fp16")
    state = TrainState(model, torch.optim.Adam(model.parameters()), scaler, args.lr, args.start_epoch, {})
    run = Run(args, "long", world)
    if run.resume:
        saved = load_checkpoint(run.resume)
        model.load_state_dict(saved["state_dict"])
        state.restore(saved, run.resume, world.size, args.reset_lr)
    with run.training(state.iteration):
        while state.epoch < args.epochs:
            means = train_epoch(args, world, run, state, loader, step)
            after_epoch(state.epoch)
            run.end_epoch(state, means, means["top1"])

"""What main_nce and main_coclr share: everything but the model's step and how its encoders start."""

import argparse
import logging
from collections.abc import Callable

import torch
from torch import nn

from backbone.select_backbone import feature_shape
from utils.checkpoint import encoder_state, load_checkpoint, load_state
from utils.engine import Step, Trainer, run_folder
from utils.errors import UserError
from utils.launch import World
from utils.precision import refuse_unsound_precision

log = logging.getLogger("coclr")


def check_options(args: argparse.Namespace, world: World) -> None:
    """Settle --bn_splits and refuse what cannot work together, before anything is read."""
    if args.test:
        raise UserError("--test is not for pretraining; evaluate with main_classifier.py --test CKPT")
    global_batch = args.batch_size * world.size
    if args.moco_k % global_batch:
        raise UserError(
            f"--moco-k {args.moco_k} is not divisible by the global batch of {global_batch} "
            f"(--batch_size {args.batch_size} x {world.size} processes); change one of them"
        )
    if args.bn_splits is None:
        args.bn_splits = 2 if world.size == 1 and args.batch_size % 2 == 0 else 1
    if args.batch_size % args.bn_splits:
        raise UserError(f"--bn_splits {args.bn_splits} does not divide --batch_size {args.batch_size}")
    values = (
        args.batch_size // args.bn_splits * feature_shape(args.net, args.seq_len, args.img_dim)[1:].numel()
    )
    if values == 1:
        raise UserError(
            f"--batch_size {args.batch_size} --bn_splits {args.bn_splits} leaves one value per channel to "
            "normalise; raise --batch_size, --seq_len or --img_dim"
        )


def load_encoder(encoder: nn.Module, path: str) -> int:
    """Load ``encoder_q`` of the pretraining checkpoint at ``path`` into ``encoder``; returns its epoch.

    Raises UserError when the file holds no such encoder, or one of another network.
    """
    checkpoint = load_checkpoint(path)
    load_state(encoder, encoder_state(checkpoint), path, checkpoint["state_dict"])
    return int(checkpoint.get("epoch", -1))


def pretrain(
    args: argparse.Namespace,
    world: World,
    model: nn.Module,
    step: Step,
    loader: torch.utils.data.DataLoader,
    method: str,
    start: Callable[[], None],
) -> None:
    """Train ``model`` up to --epochs, from ``start()`` unless resumed."""
    # as the released runs were named
    name = (
        f"{args.name_prefix}{method}_k{args.moco_k}_{args.dataset}-{args.img_dim}_{args.net}_bs{args.batch_size}"
        f"_lr{args.lr}_seq{args.num_seq}_len{args.seq_len}_ds{args.ds}"
    )
    folder, resume = run_folder(args, name, world)
    if resume is None:
        start()
    if args.compile:
        for name, child in model.named_children():
            log.info("compiling %s", name)
            child.compile()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = Trainer(
        args,
        world,
        model,
        [{"params": trainable}],
        lambda groups: torch.optim.Adam(groups, lr=args.lr, weight_decay=args.wd, fused=True),
        step,
        loader,
        folder,
        resume,
        keep_all=args.dataset.startswith("k400"),
    )
    shape = (args.batch_size, 3, args.seq_len, args.img_dim, args.img_dim)
    refuse_unsound_precision(args.precision, world.device, model.encoder_q, shape)  # with the weights loaded
    log.info(
        "%s: %d videos, %d steps per epoch on %d process%s (%s), batch norm in groups of %d",
        folder,
        len(loader.dataset),
        trainer.batches.batches_per_epoch(),
        world.size,
        "es" * (world.size > 1),
        world.device,
        args.batch_size // args.bn_splits,
    )
    trainer.fit()

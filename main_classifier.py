"""Evaluate a pretrained network: linear probe, finetuning, tests with several crops, nearest-neighbour retrieval."""

import argparse
import logging
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.select_backbone import feature_shape
from dataset.augmentation import View, draw_crop
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.registry import Videos, parse_name
from eval.predict import class_probabilities, read_videos
from eval.protocols import evaluate
from model.classifier import LinearClassifier
from model.released import fetch
from model.weights import RANDOM, check_classes, digest, has_classifier, load_backbone, origin
from utils import launch
from utils.checkpoint import load_checkpoint
from utils.engine import Batch, Step, Trainer, run_folder
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.metrics import top_k_hits
from utils.options import Parser, positive_int, training_parser
from utils.precision import refuse_unsound_precision

log = logging.getLogger("coclr")


def make_parser() -> Parser:
    parser = training_parser(
        __doc__,
        ["lincls"],
        num_seq=1,
        dataset="ucf101",
        workers=8,
        wd=1e-3,
        schedule=[60, 80],
        prefix="linclr",
    )
    group = parser.add_argument_group("classifier")
    group.add_argument(
        "--pretrain", metavar="CKPT", help="start from this checkpoint's network: path, URL or name"
    )
    group.add_argument(
        "--train_what",
        default="last",
        choices=["last", "ft", "all"],
        help="last: linear probe; ft: all, the network at lr/10; all: all at one lr",
    )
    group.add_argument("--which_split", type=positive_int, default=1, help="train/test split of the dataset")
    group.add_argument(
        "--optim", default="adam", choices=["adam", "sgd"], help="optimiser; sgd: momentum 0.9"
    )
    group.add_argument("--dropout", type=float, default=0.9, help="of features, with --train_what ft or all")
    group.add_argument(
        "--final_bn", action="store_true", help="batch norm before the layer; always with last"
    )
    group.add_argument("--num_fc", type=int, default=1, choices=[1], help="linear layers")
    group.add_argument("--eval_freq", type=positive_int, default=1, help="epochs between validations")
    group = parser.add_argument_group("test (training options do not matter then)")
    group.add_argument("--test", metavar="CKPT", help="test this checkpoint: path, URL, name, or 'random'")
    for crops, images in (
        ("center", "centre crop"),
        ("five", "corners and centre"),
        ("ten", "five and mirror images"),
    ):
        group.add_argument(f"--{crops}_crop", action="store_true", help=f"classify all windows: {images}")
    group.add_argument("--retrieval", action="store_true", help="nearest training videos of each test video")
    group.add_argument("--out_dir", metavar="DIR", help="where a test's files go; beside CKPT if not given")
    group.add_argument("--dirname", default="feature", help="folder there that keeps features")
    group.add_argument("--results", default="results.jsonl", help="file that gets a record of each test")
    group.add_argument(
        "--offline", action="store_true", help="never download; released weights from the cache alone"
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot work together, before anything is read."""
    name = parse_name(args.dataset)
    if name.clips != 1 or len(name.streams) != 1:
        raise UserError(
            f"--dataset {args.dataset} is for pretraining; evaluation takes {name.base} or {name.base}-f"
        )
    for option in ("pretrain", "resume"):
        if args.test and getattr(args, option):
            raise UserError(
                f"--test and --{option} exclude one another: one tests a checkpoint, the other trains"
            )
    asked = [
        f"--{test}" for test in ("center_crop", "five_crop", "ten_crop", "retrieval") if getattr(args, test)
    ]
    if asked and not args.test:
        raise UserError(f"{asked[0]} needs --test CKPT")
    feature_shape(args.net, args.seq_len, args.img_dim)
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout {args.dropout} should be at least 0 and below 1")


def validation_part(videos: Videos) -> Videos:
    """The fixed 30 % of the test videos, as pandas' sample(frac=0.3, random_state=666) draws them in class order."""
    order = np.lexsort((videos.names, videos.labels))
    chosen = np.random.RandomState(666).permutation(len(videos))[: max(round(0.3 * len(videos)), 1)]
    return videos.subset(order[chosen])


def make_step(train_what: str) -> Step:
    def step(
        model: nn.Module, clips: Tensor, batch: Batch, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and scalars of one batch; clips [B, 1, 1, 3, T, H, W]."""
        if train_what == "last":
            getattr(model, "module", model).backbone.eval()  # frozen, running statistics too
        logits = model(clips[:, 0, 0])[0].float()
        loss = F.cross_entropy(logits, batch["label"])
        return loss, {"loss": loss, **top_k_hits(logits, batch["label"])}

    return step


def train(args: argparse.Namespace, world: World) -> None:
    """Train the linear layer, or it and the network, and validate along the way."""
    videos, test = read_videos(args, "train", "test")
    validation = validation_part(test)
    probe = args.train_what == "last"
    torch.manual_seed(args.seed)
    model = LinearClassifier(
        len(videos.classes),
        args.net,
        args.dropout,
        use_dropout=not probe,
        use_l2_norm=probe,
        use_final_bn=probe or args.final_bn,
    )
    extra: dict[str, Any] = {"classes": videos.classes, "origin": RANDOM}
    start = "scratch"
    if args.pretrain:
        path = fetch(args.pretrain, args.offline)
        checkpoint = load_checkpoint(path)
        load_backbone(model.backbone, checkpoint, path)
        extra["origin"] = origin(checkpoint, path)
        start = f"{path.name.removesuffix('.tar').removesuffix('.pth')}-{digest(path)[:6]}"
        log.info(
            "network: all of %s (epoch %d); its projection head and queue are not needed",
            path,
            checkpoint.get("epoch", -1),
        )
    elif probe and not args.resume:
        log.warning("no --pretrain: a linear probe of random weights")
    refuse_unsound_precision(
        args.precision,
        world.device,
        model.backbone,
        (args.batch_size, 3, args.seq_len, args.img_dim, args.img_dim),
    )

    name = (
        f"{args.name_prefix}{args.dataset}-{args.img_dim}-sp{args.which_split}_{args.net}_{args.optim}"
        f"_bs{args.batch_size}_lr{args.lr}_wd{args.wd}_dp{args.dropout}_len{args.seq_len}_ds{args.ds}"
        f"_train-{args.train_what}_pt-{start}"
    )
    folder, resume = run_folder(args, name, world)
    if resume:
        saved = load_checkpoint(resume)
        if has_classifier(saved):
            check_classes(saved, videos.classes, resume)
        extra["origin"] = saved.get("origin", extra["origin"])
    if args.compile:
        model.backbone.compile()
    model.backbone.requires_grad_(not probe)
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = (
        [{"params": head}]
        if probe
        else [
            {
                "params": list(model.backbone.parameters()),
                "lr_scale": 0.1 if args.train_what == "ft" else 1.0,
            },
            {"params": head},
        ]
    )
    dataset = ClipDataset(
        videos,
        args.seq_len,
        args.ds,
        args.img_dim,
        args.seed,
        lambda rng: (View(0, "finetune"),),
        lambda rng, height, width: draw_crop(rng, height, width, attempts=10, fallback="centre"),
    )

    def validate(epoch: int) -> dict[str, float]:
        if (epoch + 1) % args.eval_freq and epoch != args.epochs - 1:
            return {}
        if world.size > 1:
            for buffer in model.buffers():  # each process has its own running statistics; rank 0's are saved
                dist.broadcast(buffer, 0)
        probabilities, readable = class_probabilities(model, validation, args, world, middle_only=True)
        hits = top_k_hits(probabilities["center"], torch.from_numpy(readable.labels))
        return {f"val_{name}": value.item() for name, value in hits.items()}

    kind = partial(torch.optim.SGD, momentum=0.9) if args.optim == "sgd" else torch.optim.Adam
    loader = make_loader(dataset, args.batch_size, args.workers, world.rank, world.size, world.device)
    trainer = Trainer(
        args,
        world,
        model,
        groups,
        partial(kind, lr=args.lr, weight_decay=args.wd),
        make_step(args.train_what),
        loader,
        folder,
        resume,
        best="val_top1",
        validate=validate,
        extra=extra,
    )
    log.info(
        "%s: %d training and %d validation videos of %d classes, %d steps per epoch",
        folder,
        len(videos),
        len(validation),
        len(videos.classes),
        trainer.batches.batches_per_epoch(),
    )
    trainer.fit()


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args)
    check_options(args)
    if args.test:
        evaluate(args, world)
    else:
        train(args, world)
    launch.stop()


if __name__ == "__main__":
    main()

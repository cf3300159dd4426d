"""Evaluate a pretrained network: linear probe, finetuning, tests with several crops, retrieval."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from backbone.select_backbone import feature_shape
from dataset.augmentation import augment_batch, draw_crop, draw_finetune_view
from dataset.catalogue import parse_name
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.options import add_data_options, places_of_data
from dataset.registry import Videos
from eval.predict import class_probabilities, read_videos
from eval.protocols import evaluate
from model.classifier import LinearClassifier
from model.options import add_model_options
from model.released import fetch
from model.weights import RANDOM, check_classes, digest, has_classifier, load_backbone, origin, resume
from utils import launch
from utils.checkpoint import TrainState, load_checkpoint
from utils.engine import Batch, in_parallel, train_epoch
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.log import log
from utils.metrics import top_k_hits
from utils.options import Parser, add_launch_options, add_training_options, positive_int
from utils.precision import refuse_unsound_precision, to_device, uses_channels_last
from utils.run import Run


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add_model_options(parser, ["lincls"])
    group = parser.add_argument_group("classifier")
    group.add_argument("--pretrain", metavar="CKPT", help="start from its network: path, URL or name")
    meaning = "last: linear probe; ft: all, the network at lr/10; all: all at one lr"
    group.add_argument("--train_what", default="last", choices=["last", "ft", "all"], help=meaning)
    group.add_argument("--which_split", type=positive_int, default=1, help="train/test split of the dataset")
    group.add_argument("--optim", default="adam", choices=["adam", "sgd"], help="sgd: momentum 0.9")
    group.add_argument("--dropout", type=float, default=0.9, help="of features, with --train_what ft or all")
    group.add_argument("--final_bn", action="store_true", help="batch norm before it; always with last")
    group.add_argument("--num_fc", type=int, default=1, choices=[1], help="linear layers")
    group.add_argument("--eval_freq", type=positive_int, default=1, help="epochs between validations")
    group = parser.add_argument_group("test (training options do not matter then)")
    group.add_argument("--test", metavar="CKPT", help="test this checkpoint: path, URL, name, or 'random'")
    crops, one_of = {"action": "store_const", "dest": "crops"}, group.add_mutually_exclusive_group()
    one_of.add_argument("--center_crop", **crops, const="center", help="classify all windows, centre crop")
    one_of.add_argument("--five_crop", **crops, const="five", help="classify them, corners and centre")
    one_of.add_argument("--ten_crop", **crops, const="ten", help="classify these and their mirror images")
    group.add_argument("--retrieval", action="store_true", help="nearest training videos of each test video")
    group.add_argument("--out_dir", metavar="DIR", help="where a test's files go; beside CKPT if not given")
    group.add_argument("--dirname", default="feature", help="folder there that keeps features")
    group.add_argument("--results", default="results.jsonl", help="file that gets a record of each test")
    group.add_argument("--offline", action="store_true", help="never download; weights from the cache alone")
    add_data_options(parser, dataset="ucf101", clips=1, workers=8)
    add_training_options(parser, wd=1e-3, schedule=[60, 80], prefix="linclr")
    add_launch_options(parser)
    return parser


def check_options(args: Namespace) -> None:
    """Refuse what cannot work together, before anything is read."""
    name = parse_name(args.dataset)
    if name.clips != 1 or len(name.streams) != 1:
        raise UserError(f"--dataset {args.dataset} is for pretraining; test {name.base} or {name.base}-f")
    if args.test and (args.pretrain or args.resume):
        raise UserError("--test excludes --pretrain and --resume: it tests, they train")
    if (args.crops or args.retrieval) and not args.test:
        raise UserError("--retrieval and --center_crop, --five_crop, --ten_crop need --test CKPT")
    feature_shape(args.net, args.seq_len, args.img_dim)
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout {args.dropout} should be at least 0 and below 1")


def run_name(args: Namespace, start: str) -> str:
    """Name of a run of training from what ``start_backbone`` calls ``start``."""
    return (
        f"{args.name_prefix}{args.dataset}-{args.img_dim}-sp{args.which_split}_{args.net}_{args.optim}"
        f"_bs{args.batch_size}_lr{args.lr}_wd{args.wd}_dp{args.dropout}_len{args.seq_len}_ds{args.ds}"
        f"_train-{args.train_what}_pt-{start}"
    )


def validation_part(videos: Videos) -> Videos:
    """The fixed 30 % of test videos that pandas' sample(frac=0.3, random_state=666) draws in class order."""
    order = np.lexsort((videos.names, videos.labels))
    chosen = np.random.RandomState(666).permutation(len(videos))[: max(round(0.3 * len(videos)), 1)]
    return videos.subset(order[chosen])


def training_loader(args: Namespace, world: World, videos: Videos) -> DataLoader:
    """Loader of one view of each training video."""
    crop = partial(draw_crop, finetune=True)
    dataset = ClipDataset(videos, args.seq_len, args.ds, args.img_dim, args.seed, draw_finetune_view, crop)
    return make_loader(dataset, args.batch_size, args.workers, world)


def start_backbone(args: Namespace, model: LinearClassifier) -> tuple[dict[str, Any], str]:
    """Start the network from --pretrain; returns where that comes from, and what the run's name calls it."""
    if not args.pretrain:
        if args.train_what == "last" and not args.resume:
            log.warning("no --pretrain: a linear probe of random weights")
        return RANDOM, "scratch"
    path = fetch(args.pretrain, args.offline)
    checkpoint = load_checkpoint(path)
    load_backbone(model.backbone, checkpoint, path)
    epoch = checkpoint.get("epoch", -1)
    log.info("network: all of %s (epoch %d); its projection head and queue are not needed", path, epoch)
    stem = path.name.removesuffix(".tar").removesuffix(".pth")
    return origin(checkpoint, path), f"{stem}-{digest(path)[:6]}"


def origin_of_resumed(path: Path, classes: list[str], default: dict[str, Any]) -> dict[str, Any]:
    """Where the network of a run that goes on comes from; UserError where it tells other classes apart."""
    saved = load_checkpoint(path)
    if has_classifier(saved):
        check_classes(saved, classes, path)
    return saved.get("origin", default)


def make_optimizer(args: Namespace, model: LinearClassifier) -> torch.optim.Optimizer:
    """Of the layer, and of the network where that is trained too: a group each."""
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": head}]
    if args.train_what != "last":
        scale = 0.1 if args.train_what == "ft" else 1.0
        groups.insert(0, {"params": list(model.backbone.parameters()), "lr_scale": scale})
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.lr, weight_decay=args.wd, momentum=0.9)
    return torch.optim.Adam(groups, lr=args.lr, weight_decay=args.wd)


def validate(args: Namespace, world: World, model: LinearClassifier, videos: Videos) -> dict[str, float]:
    """Accuracies of the model, with rank 0's running statistics, on the middle windows of ``videos``."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    probabilities, readable = class_probabilities(model, videos, args, world, "middle")
    hits = top_k_hits(probabilities["center"], torch.from_numpy(readable.labels))
    return {f"val_{name}": value.item() for name, value in hits.items()}


def train(args: Namespace, world: World) -> None:
    """Train the linear layer, or it and the network, and validate along the way."""
    channels_last = uses_channels_last(args, world.device)
    videos, test = read_videos(args, "train", "test")
    validation = validation_part(test)
    loader = training_loader(args, world, videos)

    probe = args.train_what == "last"
    torch.manual_seed(args.seed)
    norms = {"use_l2_norm": probe, "use_final_bn": probe or args.final_bn}
    model = LinearClassifier(len(videos.classes), args.net, args.dropout, use_dropout=not probe, **norms)
    network_origin, start = start_backbone(args, model)
    to_device(model, world.device, channels_last)
    clip_shape = (args.batch_size, 3, args.seq_len, args.img_dim, args.img_dim)
    refuse_unsound_precision(args.precision, world.device, model.backbone, clip_shape)
    model.backbone.requires_grad_(not probe)
    if args.compile:
        model.backbone.compile()
    parallel = in_parallel(model, world)

    def step(batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        if probe:
            model.backbone.eval()  # frozen, running statistics too
        clips = augment_batch(batch, channels_last)[:, 0, 0]  # [B, 3, T, H, W]
        logits = parallel(clips)[0].float()
        loss = F.cross_entropy(logits, batch["label"])
        return loss, {"loss": loss, **top_k_hits(logits, batch["label"])}

    optimizer = make_optimizer(args, model)
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.precision == "fp16")
    facts = {"net": args.net, "method": "linear classifier", "classes": videos.classes}
    facts["origin"] = network_origin
    state = TrainState(model, optimizer, scaler, args.lr, args.start_epoch, facts)

    run = Run(args, run_name(args, start), world)
    if run.resume:
        state.facts["origin"] = origin_of_resumed(run.resume, videos.classes, network_origin)
        resume(state, run.resume, world.size, args)
    log.info(
        f"{run.folder}: {len(videos)} training and {len(validation)} validation videos of "
        f"{len(videos.classes)} classes, {len(loader)} steps per epoch"
    )
    with run.training(state.iteration):
        while state.epoch < args.epochs:
            means = train_epoch(args, world, run, state, loader, step)
            if (state.epoch + 1) % args.eval_freq == 0 or state.epoch == args.epochs - 1:
                means |= validate(args, world, model, validation)
            run.end_epoch(state, means, means.get("val_top1"))


@one_line_errors
@launch.closes_process_group
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args, may_differ=places_of_data())
    check_options(args)
    if args.test:
        evaluate(args, world)
    else:
        train(args, world)


if __name__ == "__main__":
    main()

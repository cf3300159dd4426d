"""Pretrain one stream, RGB or optical flow, with InfoNCE or UberNCE."""

from argparse import Namespace

import torch
from torch import Tensor

from dataset.augmentation import augment_batch
from dataset.catalogue import parse_name
from dataset.loader import pretraining_loader
from dataset.options import add_data_options, places_of_data
from model.methods import METHODS
from model.options import (
    add_model_options,
    add_momentum_contrast_options,
    batch_norm_splits,
    pretraining_run_name,
)
from model.pretrain import set_batch_norm_bias
from model.split_batch_norm import split_batch_norm
from model.weights import load_encoder, resume
from utils import launch
from utils.checkpoint import TrainState
from utils.engine import Batch, compile_children, in_parallel, train_epoch
from utils.errors import UserError, one_line_errors
from utils.log import log
from utils.metrics import top_k_hits
from utils.options import Parser, add_launch_options, add_training_options
from utils.precision import refuse_unsound_precision, to_device, uses_channels_last
from utils.run import Run


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add_model_options(parser, list(METHODS))
    parser.add_argument(
        "--pretrain", metavar="CKPT", help="start from this one's query encoder: path, URL or name"
    )
    add_data_options(parser, dataset="ucf101-2clip", clips=2, workers=16)
    add_training_options(parser, wd=1e-5, schedule=[120, 160], prefix="pretrain")
    add_momentum_contrast_options(parser)
    add_launch_options(parser)
    return parser


def run_name(args: Namespace) -> str:
    """Name of the run, as the released ones were named."""
    return pretraining_run_name(args, args.model)


@one_line_errors
@launch.closes_process_group
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args, may_differ=places_of_data())
    splits = batch_norm_splits(args, world.size)
    channels_last = uses_channels_last(args, world.device)
    loader = pretraining_loader(args, world, streams=1)

    method = METHODS[args.model]
    if "label" in method.inputs and not loader.dataset.videos.classes:
        raise UserError(f"--model {args.model} needs labels: videos in folders of classes (class/video)")
    torch.manual_seed(args.seed)
    model = method.model(args.net, args.moco_dim, args.moco_k, args.moco_m, args.moco_t)
    set_batch_norm_bias(model, args.bn_bias)
    split_batch_norm(model, splits)
    to_device(model, world.device, channels_last)
    if args.compile:
        compile_children(model)
    parallel = in_parallel(model, world)

    def step(batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        clips = augment_batch(batch, channels_last)[:, :, 0]  # [B, 2, 3, T, H, W]
        logits, positives = parallel(clips, *(batch[name] for name in method.inputs))
        loss = method.loss(logits, positives)
        return loss, {"loss": loss, **top_k_hits(logits, positives)}

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=args.lr, weight_decay=args.wd, fused=True)
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.precision == "fp16")
    dataset = parse_name(args.dataset)
    learns = args.lr or args.pretrain or args.resume not in (None, "auto")
    label = method.label if learns else "no learning"  # but the statistics of batch norm
    facts = {"net": args.net, "method": label, "pretrained_on": dataset.base}
    state = TrainState(model, optimizer, scaler, args.lr, args.start_epoch, facts)

    run = Run(args, run_name(args), world)
    if run.resume:
        resume(state, run.resume, world.size, args)
    elif args.pretrain:
        epoch = load_encoder(model.encoder_q, args.pretrain)
        model.encoder_k.load_state_dict(model.encoder_q.state_dict())
        log.info("both encoders: encoder_q of %s, epoch %d; the queue starts fresh", args.pretrain, epoch)
    clip_shape = (args.batch_size, 3, args.seq_len, args.img_dim, args.img_dim)
    refuse_unsound_precision(args.precision, world.device, model.encoder_q, clip_shape)

    log.info(
        f"{run.folder}: {len(loader.dataset)} videos, {len(loader)} steps per epoch on {world}, batch norm "
        f"in groups of {args.batch_size // splits}"
    )
    with run.training(state.iteration):
        while state.epoch < args.epochs:
            means = train_epoch(args, world, run, state, loader, step)
            run.end_epoch(state, means, means.get("top1"), dataset.facts.keeps_all_checkpoints)


if __name__ == "__main__":
    main()

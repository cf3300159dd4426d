"""Co-train: improve the network of one stream with positives mined by the frozen network of the other."""

from argparse import Namespace

import numpy as np
import torch
from torch import Tensor, nn

from dataset.augmentation import augment_batch
from dataset.catalogue import parse_name
from dataset.loader import pretraining_loader
from dataset.options import add_data_options, places_of_data
from dataset.registry import Videos
from model.loss import hide_self_positive, mil_nce_loss
from model.options import (
    add_model_options,
    add_momentum_contrast_options,
    batch_norm_splits,
    pretraining_run_name,
)
from model.pretrain import CoCLR, set_batch_norm_bias
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
    add_model_options(parser, ["coclr"])
    group = parser.add_argument_group("co-training")
    meaning = (
        "checkpoints of the stream that is trained and of the one that mines: paths, URLs, names, 'random'"
    )
    group.add_argument("--pretrain", nargs=2, metavar=("OWN", "OTHER"), help=meaning)
    group.add_argument("--topk", type=int, default=5, help="neighbours mined per query; 0: siblings only")
    group.add_argument("--reverse", action="store_true", help="train flow and mine with RGB")
    meaning = "probability per step of hiding the self-positive where another positive is left"
    group.add_argument("--hide_self", type=float, default=0.9, metavar="P", help=meaning)
    add_data_options(parser, dataset="ucf101-2stream-2clip", clips=2, workers=16)
    add_training_options(parser, wd=1e-5, schedule=[120, 160], prefix="pretrain")
    add_momentum_contrast_options(parser)
    add_launch_options(parser)
    return parser


def run_name(args: Namespace) -> str:
    """Name of the run, as the released ones were named."""
    return pretraining_run_name(args, f"coclr-top{args.topk}{'-R' if args.reverse else ''}")


def label_of_source(videos: Videos) -> Tensor | None:
    """Class label by source id [sources], for monitoring alone; None for videos without labels."""
    if not videos.classes:
        return None
    labels = np.full(videos.sources.max() + 1, -1)
    labels[videos.sources] = videos.labels
    return torch.from_numpy(labels)


def co_training_step(
    model: CoCLR,
    parallel: nn.Module,
    clips: Tensor,
    batch: Batch,
    source_label: Tensor | None,
    hide_self: bool,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Loss, None for no update while the queue fills, and scalars of one batch.

    Args:
        parallel: ``model`` itself, or what averages its gradients over processes.
        clips: [B, 2, 2, 3, T, H, W], moments by streams.
        batch: its "source" ids and "label" are [B].
        source_label: class of each source id, for monitoring alone, if it is known.
        hide_self: hide the self-positive where another positive is left.
    """
    logits, positives = parallel(clips[:, 0], clips[:, 1], batch["source"])
    if not model.queue_is_full:
        return None, {}
    scalars = top_k_hits(logits, positives)
    own = torch.zeros_like(batch["source"])
    scalars |= {f"self_{name}": value for name, value in top_k_hits(logits, own).items()}
    if model.topk and source_label is not None:
        mined_label = source_label[model.mined_source]  # [B, topk]
        scalars["mining_precision"] = (mined_label == batch["label"][:, None]).float().mean()
    if hide_self:
        positives = hide_self_positive(positives)
    loss = mil_nce_loss(logits, positives)
    return loss, {"loss": loss, **scalars}


def start_encoders(model: CoCLR, pretrained: list[str] | None) -> None:
    """Start q and k from the first of --pretrain and the sampler from the second; say what was loaded."""
    if not pretrained:
        raise UserError("--pretrain OWN OTHER is needed: two checkpoints to start from ('random': untrained)")
    streams = ("flow", "RGB") if model.reverse else ("RGB", "flow")
    encoders = {"trained": model.encoder_q, "sampler": model.sampler}
    for path, (role, encoder), stream in zip(pretrained, encoders.items(), streams, strict=True):
        if path == "random":
            log.info("%s network (%s): random weights", role, stream)
        else:
            epoch = load_encoder(encoder, path)
            log.info("%s network (%s): encoder_q of %s, epoch %d", role, stream, path, epoch)
    model.encoder_k.load_state_dict(model.encoder_q.state_dict())


@one_line_errors
@launch.closes_process_group
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args, may_differ=places_of_data())
    splits = batch_norm_splits(args, world.size)
    if not 0 <= args.topk < args.moco_k:
        raise UserError(f"--topk {args.topk} should be at least 0 and below --moco-k {args.moco_k}")
    channels_last = uses_channels_last(args, world.device)
    loader = pretraining_loader(args, world, streams=2)
    videos: Videos = loader.dataset.videos
    source_label = label_of_source(videos)
    if source_label is None:
        log.info("mining precision needs labels, which these videos have not: it is not shown")
    else:
        shares = np.bincount(videos.labels) / len(videos)
        log.info("mining precision of random neighbours would be %.3f", (shares**2).sum())
        source_label = source_label.to(world.device)

    torch.manual_seed(args.seed)
    model = CoCLR(args.net, args.moco_dim, args.moco_k, args.moco_m, args.moco_t, args.topk, args.reverse)
    set_batch_norm_bias(model, args.bn_bias)
    split_batch_norm(model, splits)
    to_device(model, world.device, channels_last)
    if args.compile:
        compile_children(model)
    parallel = in_parallel(model, world)

    def step(batch: Batch, iteration: int) -> tuple[Tensor | None, dict[str, Tensor]]:
        clips = augment_batch(batch, channels_last)
        # the same draw on every rank
        hide_self = np.random.default_rng((args.seed, iteration)).random() < args.hide_self
        return co_training_step(model, parallel, clips, batch, source_label, hide_self)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=args.lr, weight_decay=args.wd, fused=True)
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.precision == "fp16")
    dataset = parse_name(args.dataset)
    facts = {"net": args.net, "method": "CoCLR", "pretrained_on": dataset.base}
    state = TrainState(model, optimizer, scaler, args.lr, args.start_epoch, facts)

    run = Run(args, run_name(args), world)
    if run.resume:
        resume(state, run.resume, world.size, args)
    else:
        start_encoders(model, args.pretrain)
        steps = args.moco_k // (args.batch_size * world.size)
        log.info("the queues start empty, as they should: the first %d steps fill them", steps)
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

"""Co-train: improve the network of one stream with positives mined by the frozen network of the other."""

import argparse
import logging

import numpy as np
import torch
from torch import Tensor, nn

from dataset.loader import pretraining_loader
from dataset.registry import Videos
from model.loss import hide_self_positive, mil_nce_loss
from model.pretrain import CoCLR
from model.split_batch_norm import split_batch_norm
from utils import launch
from utils.engine import Batch, Step
from utils.errors import UserError, one_line_errors
from utils.launch import World
from utils.metrics import top_k_hits
from utils.options import Parser, pretraining_parser
from utils.pretraining import check_options, load_encoder, pretrain

log = logging.getLogger("coclr")


def make_parser() -> Parser:
    parser = pretraining_parser(__doc__, ["coclr"], dataset="ucf101-2stream-2clip", workers=16)
    group = parser.add_argument_group("co-training")
    group.add_argument(
        "--pretrain",
        nargs=2,
        metavar=("OWN", "OTHER"),
        help="checkpoints of the stream that is trained and of the one that mines; 'random': untrained",
    )
    group.add_argument("--topk", type=int, default=5, help="neighbours mined per query; 0: siblings only")
    group.add_argument(
        "--reverse", action="store_true", help="train flow and mine with RGB, not the other way round"
    )
    group.add_argument(
        "--hide_self",
        type=float,
        default=0.9,
        metavar="P",
        help="probability per step of hiding the self-positive where another positive is left",
    )
    return parser


def load_start(args: argparse.Namespace, world: World, model: CoCLR) -> None:
    """Start q and k from the first of --pretrain and the sampler from the second; say what was loaded."""
    if not args.pretrain:
        raise UserError(
            "--pretrain OWN OTHER is needed: the two checkpoints to start from ('random' for untrained)"
        )
    streams = ("flow", "RGB") if args.reverse else ("RGB", "flow")
    for path, encoder, role, stream in zip(
        args.pretrain, (model.encoder_q, model.sampler), ("trained", "sampler"), streams, strict=True
    ):
        if path == "random":
            log.info("%s network (%s): random weights", role, stream)
        else:
            log.info(
                "%s network (%s): encoder_q of %s, epoch %d", role, stream, path, load_encoder(encoder, path)
            )
    model.encoder_k.load_state_dict(model.encoder_q.state_dict())
    log.info(
        "the queues start empty, as they should: the first %d steps fill them and train nothing",
        args.moco_k // (args.batch_size * world.size),
    )


def label_of_source(videos: Videos) -> Tensor:
    """Class label by source id, for monitoring alone."""
    labels = np.full(videos.sources.max() + 1, -1)
    labels[videos.sources] = videos.labels
    return torch.from_numpy(labels)


def make_step(args: argparse.Namespace, source_label: Tensor) -> Step:
    """The co-training step; ``source_label`` [sources] tells the class of a source id."""

    def step(
        model: nn.Module, clips: Tensor, batch: Batch, iteration: int
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Loss, None while the queue fills, and scalars of one batch; clips [B, 2, 2, 3, T, H, W]."""
        coclr = getattr(model, "module", model)
        logits, positives = model(clips[:, 0], clips[:, 1], batch["source"])
        if not coclr.queue_is_full:
            return None, {}
        own = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        scalars = top_k_hits(logits, positives)
        scalars |= {f"self_{name}": value for name, value in top_k_hits(logits, own).items()}
        if args.topk:
            mined_label = source_label[coclr.mined_source]  # [B, topk]
            scalars["mining_precision"] = (mined_label == batch["label"][:, None]).float().mean()
        if (
            np.random.default_rng((args.seed, iteration)).random() < args.hide_self
        ):  # the same draw on every rank
            positives = hide_self_positive(positives)
        loss = mil_nce_loss(logits, positives)
        return loss, {"loss": loss, **scalars}

    return step


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args)
    check_options(args, world)
    if not 0 <= args.topk < args.moco_k:
        raise UserError(f"--topk {args.topk} should be at least 0 and below --moco-k {args.moco_k}")
    loader = pretraining_loader(args, world.rank, world.size, world.device, streams=2)
    videos = loader.dataset.videos
    shares = np.bincount(videos.labels) / len(videos)
    log.info("mining precision of random neighbours would be %.3f", (shares**2).sum())

    torch.manual_seed(args.seed)
    model = CoCLR(args.net, args.moco_dim, args.moco_k, args.moco_m, args.moco_t, args.topk, args.reverse)
    split_batch_norm(model, args.bn_splits)
    method = f"coclr-top{args.topk}{'-R' * args.reverse}"
    step = make_step(args, label_of_source(videos).to(world.device))
    pretrain(args, world, model, step, loader, method, start=lambda: load_start(args, world, model))
    launch.stop()


if __name__ == "__main__":
    main()

"""Pretrain one stream, RGB or optical flow, with InfoNCE or UberNCE."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.loader import pretraining_loader
from model.loss import supcon_loss
from model.pretrain import InfoNCE, UberNCE
from model.split_batch_norm import split_batch_norm
from utils import launch
from utils.engine import Batch
from utils.errors import one_line_errors
from utils.metrics import top_k_hits
from utils.options import Parser, pretraining_parser
from utils.pretraining import check_options, load_encoder, pretrain

log = logging.getLogger("coclr")

MODELS = {"infonce": InfoNCE, "ubernce": UberNCE}


def make_parser() -> Parser:
    parser = pretraining_parser(__doc__, list(MODELS), dataset="ucf101-2clip", workers=16)
    parser.add_argument(
        "--pretrain", metavar="CKPT", help="start both encoders from this checkpoint's query encoder"
    )
    return parser


def step(model: nn.Module, clips: Tensor, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and scalars of one batch; clips [B, 2, 1, 3, T, H, W]."""
    if isinstance(getattr(model, "module", model), UberNCE):
        logits, positives = model(clips[:, :, 0], batch["label"])
        loss = supcon_loss(logits, positives)
    else:
        logits, positives = model(clips[:, :, 0])
        loss = F.cross_entropy(logits, positives)
    return loss, {"loss": loss, **top_k_hits(logits, positives)}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    world = launch.start(args)
    check_options(args, world)
    loader = pretraining_loader(args, world.rank, world.size, world.device, streams=1)

    torch.manual_seed(args.seed)
    model = MODELS[args.model](args.net, args.moco_dim, args.moco_k, args.moco_m, args.moco_t)
    split_batch_norm(model, args.bn_splits)

    def start() -> None:
        if args.pretrain:
            epoch = load_encoder(model.encoder_q, args.pretrain)
            model.encoder_k.load_state_dict(model.encoder_q.state_dict())
            log.info("both encoders: encoder_q of %s, epoch %d; the queue starts fresh", args.pretrain, epoch)

    pretrain(args, world, model, step, loader, args.model, start)
    launch.stop()


if __name__ == "__main__":
    main()

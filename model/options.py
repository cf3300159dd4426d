"""Command-line options of networks and of pretraining methods, and what of them cannot work together."""

import argparse

from backbone.select_backbone import NETWORKS, feature_shape
from utils.errors import UserError
from utils.log import log
from utils.options import Parser, positive_int


def add_model_options(parser: Parser, models: list[str]) -> None:
    """What is trained: one of the ``models`` on one of the networks."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=models[0], choices=models, help="what is trained")
    group.add_argument("--net", default=next(iter(NETWORKS)), choices=list(NETWORKS), help="backbone")


def add_momentum_contrast_options(parser: Parser) -> None:
    """The embedding, the queue and the key encoder of pretraining."""
    group = parser.add_argument_group("momentum contrast")
    group.add_argument("--moco_dim", type=positive_int, default=128, help="size of the embedding")
    group.add_argument("--moco_k", type=positive_int, default=2048, help="negatives in the queue")
    group.add_argument("--moco_m", type=float, default=0.999, help="momentum of the key encoder")
    group.add_argument("--moco_t", type=float, default=0.07, help="temperature")
    meaning = "groups in which each process normalises its batch; 2 for one process, 1 for several"
    group.add_argument("--bn_splits", type=positive_int, help=meaning)
    meaning = "bias that batch norms of fresh networks start with; 1 lets more of a small clip through"
    group.add_argument("--bn_bias", type=float, default=0.0, help=meaning)
    parser.add_argument("--test", help=argparse.SUPPRESS)  # refused: main_classifier.py evaluates


def batch_norm_splits(args: argparse.Namespace, processes: int) -> int:
    """The groups in which a process normalises its batch, after checking all sizes of batches.

    Raises UserError, before anything is read, for what cannot work together.
    """
    if args.test:
        raise UserError("--test is not for pretraining; evaluate with main_classifier.py --test CKPT")
    if args.moco_t <= 0:
        raise UserError(f"--moco-t {args.moco_t} should be above 0; the paper's is 0.07")
    if not 0 <= args.moco_m <= 1:
        raise UserError(f"--moco-m {args.moco_m} should be between 0 and 1; the paper's is 0.999")
    global_batch = args.batch_size * processes
    if args.moco_k % global_batch:
        raise UserError(
            f"--moco-k {args.moco_k} is not divisible by the global batch of {global_batch} "
            f"(--batch_size {args.batch_size} x {processes} processes); change one of them"
        )
    one_process_can_split = processes == 1 and args.batch_size % 2 == 0
    if processes == 1 and not (one_process_can_split or args.bn_splits):
        log.warning(
            "--batch_size %d is odd, so that the batch is normalised in one group instead of two: shuffled "
            "keys have nothing to hide behind; take an even one",
            args.batch_size,
        )
    splits = args.bn_splits or (2 if one_process_can_split else 1)
    if args.batch_size % splits:
        raise UserError(f"--bn_splits {splits} does not divide --batch_size {args.batch_size}")
    positions = feature_shape(args.net, args.seq_len, args.img_dim)[1:].numel()
    if args.batch_size // splits * positions == 1:
        raise UserError(
            f"--batch_size {args.batch_size} --bn_splits {splits} leaves one value per channel to "
            "normalise; raise --batch_size, --seq_len or --img_dim"
        )
    return splits


def pretraining_run_name(args: argparse.Namespace, method: str) -> str:
    """Name of a run of pretraining, as the released runs were named."""
    return (
        f"{args.name_prefix}{method}_k{args.moco_k}_{args.dataset}-{args.img_dim}_{args.net}"
        f"_bs{args.batch_size}_lr{args.lr}_seq{args.num_seq}_len{args.seq_len}_ds{args.ds}"
    )

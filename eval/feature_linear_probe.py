"""Linear probe on features that main_classifier.py --retrieval saved: one layer, trained in seconds."""

from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import eval  # noqa: F401  # first: see eval/eval.py
from eval.features import Features, add_feature_options, open_features, read_provenance
from eval.metrics import accuracies
from eval.records import append_record
from utils.errors import UserError, one_line_errors
from utils.log import log, start_logging
from utils.metrics import as_text
from utils.options import Parser, non_negative_float, positive_int, seed
from utils.schedule import learning_rate


def make_parser() -> Parser:
    parser = Parser(__doc__, "--test DIR|CKPT")
    add_feature_options(parser)
    parser.add_argument("--batch_size", type=positive_int, default=1024, help="features per step")
    parser.add_argument("--epochs", type=positive_int, default=100, help="epochs in all")
    parser.add_argument("--eval_freq", type=positive_int, default=5, help="epochs between tests")
    parser.add_argument("--schedule", type=int, nargs="*", default=(60, 80), help="epochs that drop the rate")
    parser.add_argument("--lr", type=non_negative_float, default=1.0, help="learning rate at the start")
    parser.add_argument("--wd", type=non_negative_float, default=1e-3, help="weight decay")
    parser.add_argument("--normalize", action="store_true", help="L2-normalise the features")
    parser.add_argument("--final_bn", action="store_true", help="batch norm before the layer")
    parser.add_argument("--verbose", action="store_true", help="say the accuracy at each test")
    parser.add_argument("--seed", type=seed, default=0, help="seed of weights and order")
    parser.add_argument("--results", default="results.jsonl", help="file that gets a record")
    return parser


def probe(args: Namespace, train: Features, test: Features) -> dict[str, float]:
    """Train on ``train``; accuracies on ``test`` in percent, of the last epoch and of the best test top-1."""
    if args.final_bn and args.batch_size == 1:
        raise UserError("--batch_size 1 leaves --final_bn one value per channel to normalise; raise it")
    torch.manual_seed(args.seed)
    x, test_x = ((F.normalize(f.features, dim=1) if args.normalize else f.features) for f in (train, test))
    if args.final_bn:  # its eps drowns features of untrained networks, which can be as small as 1e-14
        scale = x.std().clamp_min(torch.finfo(x.dtype).tiny)
        x, test_x = x / scale, test_x / scale
    linear = nn.Linear(x.shape[1], int(max(train.labels.max(), test.labels.max())) + 1)
    nn.init.normal_(linear.weight, 0.0, 0.01)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(nn.BatchNorm1d(x.shape[1]), linear) if args.final_bn else linear
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, weight_decay=args.wd, momentum=0.9)
    numbers: dict[str, float] = {}
    for epoch in tqdm(range(args.epochs), "probe", unit="epoch", disable=None, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, epoch, args.epochs, args.schedule)
        model.train()
        for rows in torch.randperm(len(x)).split(args.batch_size):
            if args.final_bn and len(rows) == 1:
                continue  # one feature has no variance
            loss = F.cross_entropy(model(x[rows]), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not loss.isfinite():
            raise UserError(f"loss is {loss.item()} in epoch {epoch}; lower --lr {args.lr} or --normalize")
        if (epoch + 1) % args.eval_freq == 0 or epoch == args.epochs - 1:
            with torch.no_grad():
                last = accuracies(model.eval()(test_x), test.labels)
            if args.verbose:
                log.info("epoch %d: loss %.4f, test top1 %.2f", epoch, loss.item(), last["top1"])
            if last["top1"] > numbers.get("best_epoch_top1", -1):
                numbers |= {"best_epoch_top1": last["top1"], "best_epoch": epoch}
    return last | numbers


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    folder, train, test = open_features(args)
    numbers = probe(args, train, test)
    log.info("%s, %d test videos: %s", folder, len(test.labels), as_text(numbers))
    options = ("lr", "wd", "epochs", "schedule", "batch_size", "normalize", "final_bn", "seed")
    provenance = read_provenance(folder, args.dataset)
    settings = {key: getattr(args, key) for key in options} | {"features": provenance.get("settings")}
    provenance = {"checkpoint": str(folder), **provenance, "settings": settings}
    append_record(args.results, "feature probe", provenance, videos=len(test.labels), numbers=numbers)


if __name__ == "__main__":
    main()

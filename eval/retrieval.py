"""Nearest-neighbour retrieval: R@k on saved features, and pictures of what was found."""

from argparse import Namespace

import torch
from torch import Tensor

import eval  # noqa: F401  # first: see eval/eval.py
from dataset.options import add_database_options
from dataset.registry import Videos
from dataset.splits import class_of
from eval.features import PARTS, Features, add_feature_options, open_features
from eval.metrics import retrieve
from eval.pictures import Clip, clips_of, gallery, recall_curve
from eval.predict import read_videos
from eval.records import write_file
from utils.errors import UserError, one_line_errors
from utils.log import log, start_logging
from utils.metrics import as_text
from utils.options import Parser, positive_int


def make_parser() -> Parser:
    parser = Parser(__doc__, "--test DIR|CKPT")
    add_feature_options(parser)
    parser.add_argument("--gallery", metavar="FILE.html", help="show queries and the training clips nearest")
    parser.add_argument("--curve", metavar="FILE.png", help="draw R@k over k")
    parser.add_argument("--queries", type=positive_int, default=12, help="queries shown, evenly over classes")
    parser.add_argument("--neighbours", type=positive_int, default=5, help="training clips shown per query")
    add_database_options(parser)
    parser.add_argument("--which_split", type=int, default=1, help="split that the features were made of")
    parser.set_defaults(seq_len=1, ds=1)  # the pictures show videos of any length
    return parser


def clips_of_rows(videos: Videos, features: Features) -> list[Clip]:
    """The clip of each row of ``features``, under its class; UserError where name or frames are missing."""
    if features.names is None:
        raise UserError("these features come without names, so no pictures; make them anew by --retrieval")
    clips = clips_of(videos)
    missing = sorted(set(features.names) - clips.keys())
    if missing:
        (store,) = videos.stores.values()
        raise UserError(f"{store.path} lacks the video {missing[0]} of the features; check --data_root")
    return [clips[name]._replace(caption=class_of(name)) for name in features.names]


def gallery_rows(args: Namespace, train: Features, test: Features, neighbours: Tensor) -> list[list[Clip]]:
    """--queries test clips, evenly over the classes, each with its nearest training clips."""
    train_clips, test_clips = map(clips_of_rows, read_videos(args, *PARTS), (train, test))
    evenly = torch.linspace(0, len(test.labels) - 1, min(args.queries, len(test.labels))).long()
    rows = []
    for query in test.labels.argsort(stable=True)[evenly].tolist():
        row = [test_clips[query]._replace(border="query")]
        for neighbour in neighbours[query, : args.neighbours].tolist():
            same = train.labels[neighbour] == test.labels[query]
            row.append(train_clips[neighbour]._replace(border="right" if same else "wrong"))
        rows.append(row)
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    folder, train, test = open_features(args)
    numbers, neighbours, curve = retrieve([train], [test])
    counts = f"{len(test.labels)} queries in {len(train.labels)} training videos"
    log.info("%s, %s: %s", folder, counts, as_text(numbers))
    if args.curve:
        write_file(args.curve, recall_curve(args.dataset, curve))
        log.info("wrote %s", args.curve)
    if args.gallery:
        write_file(args.gallery, gallery(gallery_rows(args, train, test, neighbours)))
        log.info("wrote %s", args.gallery)


if __name__ == "__main__":
    main()

"""Nearest-neighbour retrieval: R@k on saved features, and pictures of what was found."""

import logging
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.registry import open_videos
from eval.features import PARTS, Features, add_feature_options, find_folder, load_features
from eval.metrics import recalls, retrieve
from eval.pictures import gallery, recall_curve
from eval.records import write_file
from utils.errors import UserError, one_line_errors
from utils.log import start_logging
from utils.metrics import as_text
from utils.options import Parser, add_database_options, positive_int

log = logging.getLogger("coclr")


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add_feature_options(parser)
    parser.add_argument(
        "--gallery",
        metavar="FILE",
        help="write queries and their nearest training clips as .html (moving, self-contained) or .png",
    )
    parser.add_argument("--curve", metavar="FILE.png", help="draw R@k over k")
    parser.add_argument(
        "--queries", type=positive_int, default=12, help="queries in the gallery, evenly over classes"
    )
    parser.add_argument("--neighbours", type=positive_int, default=5, help="training clips shown per query")
    add_database_options(parser)
    parser.add_argument("--which_split", type=int, default=1, help="split that the features were made of")
    return parser


def stores_by_name(args, parts: dict[str, Features]) -> dict[str, dict[str, tuple]]:
    """For each part, where the frames of a name lie: {name: (store, position)}."""
    where = {}
    for part, features in parts.items():
        if features.names is None:
            raise UserError(
                "these features come without names, so no pictures; make them anew by --retrieval"
            )
        videos = open_videos(
            args.dataset,
            part,
            1,
            1,
            args.data_root,
            {"rgb": args.rgb_lmdb, "flow": args.flow_lmdb},
            args.which_split,
        )
        ((stream, store),) = videos.stores.items()
        where[part] = {
            name: (store, int(position))
            for name, position in zip(videos.names, videos.positions[stream], strict=True)
        }
        if missing := set(features.names) - where[part].keys():
            raise UserError(
                f"{store.path} lacks the video {sorted(missing)[0]} of the features; check --data_root"
            )
    return where


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    start_logging(is_main=True)
    folder = find_folder(args.test, args.dirname, args.dataset)
    train, test = (load_features(folder, args.dataset, part) for part in PARTS)
    numbers, neighbours = retrieve([train], [test])
    log.info(
        "%s, %d queries in %d training videos: %s",
        folder,
        len(test.labels),
        len(train.labels),
        as_text(numbers),
    )
    if args.curve:
        log.info(
            "wrote %s", write_file(args.curve, recall_curve({args.dataset: recalls(neighbours, test, train)}))
        )
    if args.gallery:
        where = stores_by_name(args, {"train": train, "test": test})
        rows = torch.linspace(0, len(test.labels) - 1, min(args.queries, len(test.labels))).long()
        rows = test.labels.argsort(stable=True)[rows].tolist()  # evenly over the classes
        found = [
            (test.names[row], [train.names[i] for i in neighbours[row, : args.neighbours].tolist()])
            for row in rows
        ]
        log.info("wrote %s", write_file(args.gallery, gallery(found, where, args.gallery.endswith(".png"))))


if __name__ == "__main__":
    main()

"""Sets of real footage pretrained together without labels, and tested within each of them.

    python -m scripts.evidence.real_footage FOLDER SET SET ... [--seeds 0 1 2]

FOLDER holds SET/CLASS/VIDEO and SET_splits/{trainlist,testlist}01.txt. Runs scripts/reproduce.py on all sets
together, whose test videos are kept out; its retrieval and linear probe are then repeated within each set, as
telling the sets apart is no merit. Stopped at any point, the same command goes on. Data are written to
$COCLR_DATA or ./data, everything else to the current folder; results.md is the table.
"""

from pathlib import Path

from dataset.catalogue import STREAMS
from dataset.preparation import prepare
from dataset.registry import data_folder
from eval import feature_linear_probe, merge_2stream_prob, report
from eval.features import PARTS, load_features, read_provenance, save_features
from eval.metrics import retrieve
from eval.records import append_record
from scripts import reproduce
from utils.errors import UserError, one_line_errors
from utils.options import Parser

NAME = "real"
FEATURES = f"feature-{NAME}"
# TV-L1 at a quarter of the paper's size and half the rate of frames; its bound is 20 pixels at full size
PREPARE = "--short_side 64 --fps 12.5 --bound 12".split()
CLIPS = "--seq_len 8 --ds 1 --img_dim 64 --channels_last -j 1".split()
RECIPE = "--small --baselines all --nce_epochs 40 --nce_schedule 33".split()
RECIPE += "--coclr_epochs 20 --coclr_schedule 16".split()
# of 1, 0.3, 0.1 ... the best of both streams in four-fold validation on the training videos of seed 0
PROBE = "--final_bn --lr 0.3".split()


def link_videos(folder: Path, sets: list[str], out: Path) -> None:
    """Link the videos of all sets as OUT/SET-CLASS/VIDEO; write lists of the parts of their first split."""
    lists: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for name in sets:
        for file, videos in lists.items():
            source = folder / f"{name}_splits" / file
            if not source.is_file():
                raise UserError(f"{source} is missing: it lists the videos of {name}, CLASS/VIDEO")
            for line in source.read_text().splitlines():
                video = line.split()[0]
                link = out / f"{name}-{video}"
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to((folder / name / video).resolve())
                videos.append(f"{name}-{video}")
    classes = sorted({video.split("/")[0] for videos in lists.values() for video in videos})
    lists["classInd.txt"] = [f"{number} {name}" for number, name in enumerate(classes, 1)]
    for file, lines in lists.items():
        (out / file).write_text("".join(f"{line}\n" for line in lines))


def evaluate_within(folder: Path, ending: str, name: str) -> None:
    """Retrieval and linear probe of the features in ``folder`` among the videos of one set."""
    parts = {}
    for part in PARTS:
        features = load_features(folder, NAME + ending, part)
        parts[part] = features.select([video for video in features.names if video.startswith(f"{name}-")])
    provenance = read_provenance(folder, NAME + ending) | {"dataset": name}
    save_features(folder, name + ending, parts, provenance)
    numbers, _, _ = retrieve([parts["train"]], [parts["test"]])
    append_record("results.jsonl", "retrieval", provenance, videos=len(parts["test"].labels), numbers=numbers)
    feature_linear_probe.main(["--dataset", name + ending, "--test", str(folder), *PROBE])


def both_streams(seed: int, name: str) -> None:
    """Retrieval by both networks of the last cycle among the videos of one set."""
    pattern = f"log-pretrain/seed{seed}_Cycle1-{{}}Mining_*/model/{FEATURES}"
    folders = [next(Path().glob(pattern.format(miner))) for miner in ("Flow", "RGB")]  # RGB's, flow's
    merge = ["--mode", "s", "--prob1", str(folders[0]), "--prob2", str(folders[1]), "--dataset", name]
    merge_2stream_prob.main(merge)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0], "FOLDER SET ...")
    parser.add_argument("folder", type=Path, help="holds SET/CLASS/VIDEO and SET_splits/")
    parser.add_argument("sets", nargs="+", metavar="SET", help="names of sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    args = parser.parse_args(argv)
    root = data_folder()
    footage, data = root / f"{NAME}-videos", root / NAME
    link_videos(args.folder, args.sets, footage)
    prepare.main([NAME, "--videos", str(footage), "--out", str(data), *PREPARE])
    for seed in args.seeds:
        reproduce.main([NAME, "1", *CLIPS, "--seed", str(seed), *RECIPE])
        folders = [
            folder
            for runs in (f"seed{seed}_*", f"random_*_seed{seed}")
            for folder in sorted(Path().glob(f"log-*/{runs}/**/{FEATURES}"))
        ]
        for name in args.sets:
            for folder in folders:
                for stream in STREAMS.values():
                    if (folder / f"{NAME}{stream.ending}_test_feature.pth.tar").is_file():
                        evaluate_within(folder, stream.ending, name)
            both_streams(seed, name)
    report.main(["--mean"])


if __name__ == "__main__":
    main()

"""What co-training gains by its settings, from the same two InfoNCE networks, a row for each setting.

    python -m scripts.evidence.cotraining [--settings recipe top-1] [--seeds 0 1]

Trains by main_nce.py and main_coclr.py in the current folder, with the settings of the quickstart, on a
dataset in $COCLR_DATA or ./data, and tests by leave-one-out retrieval on training videos. No test video is
read. Stopped at any point, the same command goes on. Printed are means and standard deviations over seeds:
the share of mined neighbours that are of the query's class in the last epoch of each half-cycle, and R@1 of
both networks after it.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch

import main_coclr
from scripts.evidence.agreement import mean_and_spread
from scripts.evidence.variants import at_rate, checkpoint_of, last_epoch, small_options, test, train
from scripts.reproduce import FLOW, RGB, SMALL
from utils.errors import one_line_errors
from utils.options import Parser, positive_float

CLIPS = {"seq_len": 8, "ds": 2, "img_dim": 32}


@dataclass(frozen=True)
class Setting:
    """Options of all co-training, how many times flow's rate, the cycles, and what it starts from.

    start: the variant by which both networks were pretrained. miner: that of the flow network which mines at
    first; as ``start`` if not given.
    """

    options: tuple[str, ...] = ()
    flow_rate: float = 1
    cycles: int = 1
    start: str = "paper"
    miner: str = ""


SETTINGS = {
    "recipe": Setting(),
    "from-no-learning": Setting(start="no-learning"),
    "top-1": Setting(("--topk", "1")),
    "top-15": Setting(("--topk", "15")),
    "hide-self-0.9": Setting(("--hide_self", "0.9")),
    "flow-third-of-the-rate": Setting(flow_rate=1 / 3),
    "coloured-flow": Setting(("--flow_colour", "1"), start="coloured-flow"),
    "two-cycles": Setting(cycles=2),
    "mined-by-flow-of-labels": Setting(miner="labels"),
}


def co_train(name: str, half: str, cycle: int, start: tuple[Path, Path], args: Namespace, seed: int) -> Path:
    """Train the "rgb" or "flow" half of a cycle, or go on; returns its last checkpoint.

    start: the checkpoint that is trained, and the one that mines.
    """
    setting = SETTINGS[name]
    epochs = args.coclr_epochs // setting.cycles
    words = small_options(f"{args.dataset}-2stream-2clip", CLIPS, seed, epochs)
    words += [*SMALL["cotrain"], *setting.options]
    rate = args.rate
    if half == "flow":
        words += ["--reverse", *SMALL["train_flow"]]
        rate *= setting.flow_rate
    words = at_rate(words, rate)
    prefix = f"{name}-{args.epochs}+{epochs}epochs-seed{seed}-cycle{cycle}-{half}_"
    main_coclr.main([*words, "--name_prefix", prefix, "--pretrain", *map(str, start)])
    return checkpoint_of(f"{prefix}coclr-*_{args.dataset}-*")


def nce(name: str, ending: str, args: Namespace, seed: int, epochs: int) -> Path:
    """The last checkpoint of a variant of one stream."""
    return train(name, f"{args.dataset}{ending}-2clip", CLIPS, seed, epochs, args.rate)


def measure(name: str, args: Namespace, seed: int) -> list[float]:
    """Mining precision and R@1 of RGB, then of flow, in percent, after the cycles of a setting."""
    setting = SETTINGS[name]
    rgb, flow = (nce(setting.start, ending, args, seed, args.epochs) for ending in (RGB, FLOW))
    mines = nce(setting.miner, FLOW, args, seed, args.epochs) if setting.miner else flow
    rgb_like = name if setting.flow_rate == 1 else "recipe"
    for cycle in range(1, setting.cycles + 1):
        rgb = co_train(rgb_like, "rgb", cycle, (rgb, mines), args, seed)
        mines = flow = co_train(name, "flow", cycle, (flow, rgb), args, seed)
    found = []
    for checkpoint, ending in ((rgb, RGB), (flow, FLOW)):
        found.append(last_epoch(checkpoint)["mining_precision"] * 100)
        found.append(test(checkpoint, f"{args.dataset}{ending}", CLIPS, seed))
    return found


def without(variant: str, args: Namespace, epochs: int) -> str:
    """The row of a variant of InfoNCE, without co-training."""
    recalls = []
    for ending in (RGB, FLOW):
        found = []
        for seed in args.seeds:
            checkpoint = nce(variant, ending, args, seed, epochs)
            found.append(test(checkpoint, f"{args.dataset}{ending}", CLIPS, seed))
        recalls.append(mean_and_spread(found, 1))
    return f"| not co-trained: {variant} of {epochs} epochs | | {recalls[0]} | | {recalls[1]} |"


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="synthetic", help="name of a dataset that has both streams")
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="*", choices=names, default=names, help="what to compare")
    parser.add_argument("--epochs", type=int, default=34, help="of InfoNCE")
    parser.add_argument("--coclr_epochs", type=int, default=20, help="of co-training of each stream, in all")
    parser.add_argument("--rate", type=positive_float, default=3, help="in times of that of --small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [without(variant, args, args.epochs) for variant in ("no-learning", "paper")]
    for name in args.settings:
        columns = zip(*(measure(name, args, seed) for seed in args.seeds), strict=True)
        rows.append(f"| {name} | {' | '.join(mean_and_spread(values, 1) for values in columns)} |")
    rows.append(without("paper", args, args.epochs + args.coclr_epochs))
    print("| | mining precision of flow | R@1 of RGB | of RGB | of flow |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

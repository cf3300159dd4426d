"""What a small InfoNCE training gains by known changes of the method, at equal compute, a row for each.

    python -m scripts.evidence.variants --dataset synthetic-f-2clip --rate 3 [--variants paper EMAN]

Trains by main_nce.py in the current folder, with the settings of ``reproduce.py --small``, on a dataset in
$COCLR_DATA or ./data, and tests by leave-one-out retrieval on training videos, within each set where class
folders are called SET-CLASS. No test video is read. The quickstart has three times the rate, ``--rate 3``.
Stopped at any point, the same command goes on. Printed are means and standard deviations over seeds.
"""

import json
import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import main_nce
from backbone.select_backbone import select_backbone
from dataset.catalogue import parse_name
from dataset.registry import Videos, open_videos
from eval.metrics import centred
from eval.predict import features_of
from model.methods import METHODS
from model.pretrain import InfoNCE, embed
from model.weights import load_backbone
from scripts.evidence.agreement import WORLD, mean_and_spread
from scripts.reproduce import SMALL
from utils.checkpoint import load_checkpoint
from utils.errors import one_line_errors
from utils.options import Parser, positive_float
from utils.schedule import learning_rate

WARM_UP = 5  # epochs
NETWORK = SMALL["net"]


class EMAN(InfoNCE):
    """Keys by averaged statistics: the key encoder never sees its batch (Cai et al., CVPR 2021)."""

    def train(self, mode: bool = True) -> "EMAN":
        super().train(mode)
        self.encoder_k.eval()
        return self

    @torch.no_grad()
    def _momentum_update(self) -> None:
        super()._momentum_update()
        for own, other in zip(self.encoder_k.buffers(), self.encoder_q.buffers(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, 1 - self.m)

    @torch.no_grad()
    def _encode_keys(self, clips: Tensor) -> Tensor:
        return embed(self.encoder_k, clips)


class FreshKeys(InfoNCE):
    """Negatives as new as the positive: the keys of this batch beside the queue, the own one left out."""

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        logits = super()._logits(query, key)
        others = query @ key.T / self.T
        return torch.cat([logits, others.fill_diagonal_(-torch.inf)], dim=1)


class RisingMomentum(InfoNCE):
    """The key encoder's momentum rises from m to 1 - (1 - m) / 10, over the first 256 steps."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def _momentum_update(self) -> None:
        start = self.m
        self.m = 1 - (1 - start) * (1 - 0.9 * min(self.steps.item() / 256, 1))
        super()._momentum_update()
        self.m = start
        self.steps += 1


def warmed_up(base: float, epoch: int, epochs: int, drops: list[int], cosine: bool = False) -> float:
    """``learning_rate``, rising over the first epochs."""
    return learning_rate(base, epoch, epochs, drops, cosine) * min((epoch + 1) / WARM_UP, 1)


@dataclass(frozen=True)
class Variant:
    """A change of the method, of options, of the clips, or of the rate, trained for a share of the epochs."""

    method: str = "infonce"
    model: type[InfoNCE] = InfoNCE  # of this method
    options: tuple[str, ...] = ()
    clips: dict[str, int] = field(default_factory=dict)
    epochs: float = 1
    rate: float = 1
    schedule: Callable[..., float] = learning_rate


VARIANTS = {
    "no-learning": Variant(rate=0, epochs=1 / 11),  # the statistics of batch norm alone
    "paper": Variant(),
    "EMAN": Variant(model=EMAN),
    "fresh-keys": Variant(model=FreshKeys),
    "rising-momentum": Variant(model=RisingMomentum),
    "warm-up": Variant(schedule=warmed_up),
    "16-frames": Variant(clips={"seq_len": 16, "ds": 1}, epochs=1 / 2),
    "64-pixels": Variant(clips={"img_dim": 64}, epochs=3 / 7),  # at equal compute, as measured
    "3-times-the-rate": Variant(rate=3),
    "third-of-the-rate": Variant(rate=1 / 3),
    "old-keys": Variant(options=("--moco-k", "128", "--moco-m", "0.95")),
    "one-group": Variant(options=("--bn_splits", "1")),  # of batch norm: 32 values of a map of one pixel
    "coloured-flow": Variant(options=("--flow_colour", "1")),
    "labels": Variant(method="ubernce"),
}


def small_options(dataset: str, clips: dict[str, int], seed: int, epochs: int) -> list[str]:
    """Options of a pretraining of some hundred steps; the rate is that of RGB."""
    words = ["--dataset", dataset, "--net", NETWORK, "--batch_size", "32", *SMALL["pretrain"]]
    words += [f"--{option}={value}" for option, value in clips.items()]
    words += ["--channels_last", "-j", "0", "--seed", str(seed), "--resume", "auto"]
    return [*words, "--epochs", str(epochs), "--schedule", str(epochs * 5 // 6)]


def at_rate(words: list[str], rate: float) -> list[str]:
    """Options of a training with ``rate`` times the rate that they give."""
    args, _ = main_nce.make_parser().parse_known_args(words)
    return [*words, "--lr", f"{args.lr * rate:.2g}"]


def train(name: str, dataset: str, clips: dict[str, int], seed: int, epochs: int, rate: float = 1) -> Path:
    """Train a variant from scratch, or go on; returns its last checkpoint.

    epochs: of the paper's way. rate: of the paper's way, in times of that of --small.
    """
    variant = VARIANTS[name]
    clips = clips | variant.clips
    words = small_options(dataset, clips, seed, round(epochs * variant.epochs))
    words += SMALL["train_flow"] if parse_name(dataset).streams == ("flow",) else []
    prefix = f"{name}-{epochs}epochs-seed{seed}_"
    words = [*at_rate(words, rate * variant.rate), *variant.options]
    words += ["--model", variant.method, "--name_prefix", prefix]
    row = {"infonce": replace(METHODS["infonce"], model=variant.model)}
    with (
        mock.patch.dict(METHODS, row),
        mock.patch("utils.engine.learning_rate", variant.schedule),
    ):
        main_nce.main(words)
    return checkpoint_of(f"{prefix}{variant.method}*_{dataset}-*")


def checkpoint_of(run: str) -> Path:
    """The last checkpoint of the run whose folder fits a pattern."""
    return max(Path("log-pretrain").glob(f"{run}/model/epoch*"), key=lambda path: path.stat().st_mtime)


def leave_one_out(features: Tensor, videos: Videos) -> float:
    """R@1 in percent of each video among the others of its set; the mean over the sets."""
    sets: dict[str, list[int]] = {}
    for row, name in enumerate(videos.names):
        sets.setdefault(name.split("-")[0] if "-" in name else "", []).append(row)
    shares = []
    for rows in sets.values():
        unit, labels = centred(features[rows]), torch.from_numpy(videos.labels[rows])
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
        shares.append((labels[nearest] == labels).double().mean().item() * 100)
    return statistics.fmean(shares)


def test(checkpoint: Path | None, dataset: str, clips: dict[str, int], seed: int) -> float:
    """R@1 of a checkpoint on training videos, see ``leave_one_out``; None: of random weights."""
    torch.manual_seed(seed)
    backbone, param = select_backbone(NETWORK)
    if checkpoint:
        load_backbone(backbone, load_checkpoint(checkpoint), checkpoint)
    settings = Namespace(
        **clips, batch_size=32, workers=0, precision="fp32", channels_last=True, compile=False
    )
    dataset = dataset.removesuffix("-2clip")
    videos = open_videos(dataset, "train", clips["seq_len"], clips["ds"])
    features, readable = features_of(backbone, param["feature_size"], videos, settings, WORLD)
    return leave_one_out(features, readable)


def last_epoch(checkpoint: Path) -> dict[str, float]:
    """Means of the scalars over the last epoch of the run of a checkpoint."""
    scalars = checkpoint.parent.parent / "scalars.jsonl"
    steps = [json.loads(line) for line in scalars.read_text().splitlines()]
    last = [step for step in steps if step["epoch"] == steps[-1]["epoch"]]
    return {name: statistics.fmean(step[name] for step in last if name in step) for name in last[-1]}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="synthetic-f-2clip", help="of one stream, NAME[-f]-2clip")
    names = list(VARIANTS)
    parser.add_argument("--variants", nargs="*", choices=names, default=names, help="what to compare")
    parser.add_argument("--ds", type=int, default=2, help="stride between frames")
    parser.add_argument("--epochs", type=int, default=34, help="of the paper's way")
    parser.add_argument("--rate", type=positive_float, default=1, help="in times of that of --small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    clips = {"seq_len": 8, "ds": args.ds, "img_dim": 32}
    random = [test(None, args.dataset, clips, seed) for seed in args.seeds]
    rows = [f"| random weights | | | {mean_and_spread(random, 1)} |"]
    for name in args.variants:
        changed = clips | VARIANTS[name].clips
        found = []
        for seed in args.seeds:
            checkpoint = train(name, args.dataset, clips, seed, args.epochs, args.rate)
            means = last_epoch(checkpoint)
            recall = test(checkpoint, args.dataset, changed, seed)
            found.append((means["loss"], means["top1"], recall))
        losses, hits, recalls = zip(*found, strict=True)
        loss, top1 = statistics.fmean(losses), statistics.fmean(hits)
        rows.append(f"| {name} | {loss:.2f} | {top1:.2f} | {mean_and_spread(recalls, 1)} |")
    print("| | loss | top-1 | R@1 |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

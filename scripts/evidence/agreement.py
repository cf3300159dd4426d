"""How much of a clip gets through a network: do two augmented views of a video agree before it is trained?

    python -m scripts.evidence.agreement --dataset synthetic-f-2clip --bn_bias 0 1 2

For every --bn_bias and seed a fresh S3D embeds the two views of 256 training videos, as pretraining draws
them, in training mode, 32 at a time in two groups. Printed are means and standard deviations over seeds: the
correlation of the two embeddings of a video (1: the views agree; 0: they have no more in common than those of
two videos), and the share of the five nearest embeddings that are of the video's class. Labels serve this
table alone, and no test video is read.
"""

import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.augmentation import augment_batch
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.registry import open_videos
from model.pretrain import embed, projection_encoder, set_batch_norm_bias
from model.split_batch_norm import split_batch_norm
from utils.errors import one_line_errors
from utils.launch import World
from utils.options import Parser

VIDEOS, BATCH = 256, 32
FRAMES, STRIDE, SIDE = 8, 2, 32  # of the clips
WORLD = World(0, 1, torch.device("cpu"))


def agreement(first: Tensor, second: Tensor) -> float:
    """Correlation of the embeddings [N, C] of two views of N videos, over all videos and channels."""
    first, second = first - first.mean(dim=0), second - second.mean(dim=0)
    return F.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


def neighbour_precision(first: Tensor, second: Tensor, labels: Tensor) -> float:
    """Share of the five ``second`` views nearest to each ``first`` one, its own left out, in its class."""
    similarity = F.normalize(first - first.mean(dim=0)) @ F.normalize(second - second.mean(dim=0)).T
    nearest = similarity.fill_diagonal_(-1).topk(5, dim=1).indices
    return (labels[nearest] == labels[:, None]).float().mean().item()


def embeddings(encoder: nn.Module, dataset: ClipDataset) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the two views of the first videos of an epoch, [N, C] each, and their labels [N]."""
    rows, labels = [], []
    for batch in make_loader(dataset, BATCH, 0, WORLD):
        clips = augment_batch(batch, channels_last=True)[:, :, 0]  # [B, views, 3, T, S, S]
        rows.append(torch.stack([embed(encoder, clips[:, view]) for view in range(2)]))
        labels.append(batch["label"])
        if sum(map(len, labels)) >= VIDEOS:
            break
    first, second = torch.cat(rows, dim=1)
    return first, second, torch.cat(labels)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation, the latter of several ``values`` only."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="synthetic-f-2clip", help="dataset of one stream")
    parser.add_argument("--data_root", help="folder of the datasets; $COCLR_DATA or ./data if not given")
    parser.add_argument("--bn_bias", type=float, nargs="+", default=[0, 1, 2], help="biases to compare")
    meaning = "0: no colour jitter and no grey on flow"
    parser.add_argument("--flow_colour", type=int, default=1, choices=[0, 1], help=meaning)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of weights and draws")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    videos = open_videos(args.dataset, "train", FRAMES, STRIDE, args.data_root)
    print("| initial bias | agreement of two views | 5 nearest of the same class |\n|---|---|---|")
    for bias in args.bn_bias:
        agreements, precisions = [], []
        for seed in args.seeds:
            torch.manual_seed(seed)
            encoder = projection_encoder("s3d", dim=128)
            set_batch_norm_bias(encoder, bias)
            split_batch_norm(encoder, 2).to(memory_format=torch.channels_last_3d)
            dataset = ClipDataset(videos, FRAMES, STRIDE, SIDE, seed, flow_colour=bool(args.flow_colour))
            with torch.no_grad():
                first, second, labels = embeddings(encoder, dataset)
            agreements.append(agreement(first, second))
            precisions.append(neighbour_precision(first, second, labels))
        print(f"| {bias:g} | {mean_and_spread(agreements)} | {mean_and_spread(precisions)} |", flush=True)


if __name__ == "__main__":
    main()

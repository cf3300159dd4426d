"""Accuracies and nearest-neighbour retrieval, in percent."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.features import Features
from utils.metrics import top_k_hits

KS = (1, 5, 10, 20, 50)
QUERIES_AT_ONCE = 1024


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy of scores [N, classes]."""
    return {name: round(100 * value.item(), 4) for name, value in top_k_hits(scores, labels).items()}


def centred(features: Tensor) -> Tensor:
    """Features [N, C] minus their own mean, L2-normalised."""
    return F.normalize(features - features.mean(dim=0), dim=1)


def nearest(queries: Sequence[Tensor], gallery: Sequence[Tensor], k: int) -> Tensor:
    """The k most similar gallery rows of each query, most similar first, int64 [Q, min(k, N)].

    Both are lists of features, one [Q, C] and one [N, C] per stream; the similarities of the streams are added.
    """
    queries, gallery = [centred(f) for f in queries], [centred(f) for f in gallery]
    found = []
    for start in range(0, len(queries[0]), QUERIES_AT_ONCE):
        similarity = sum(
            q[start : start + QUERIES_AT_ONCE] @ g.T for q, g in zip(queries, gallery, strict=True)
        )
        found.append(similarity.topk(min(k, similarity.shape[1]), dim=1).indices)
    return torch.cat(found)


def recall_at(
    neighbours: Tensor, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int] = KS
) -> dict[str, float]:
    """R@k in percent: the share of queries with their own class among the first k ``neighbours`` [Q, max(ks)]."""
    hits = (gallery_labels[neighbours] == query_labels[:, None]).cummax(dim=1).values  # [Q, k]
    return {f"R@{k}": 100 * hits[:, min(k, hits.shape[1]) - 1].double().mean().item() for k in ks}


def recalls(neighbours: Tensor, test: Features, train: Features) -> list[float]:
    """R@1, R@2, ... in percent, as far as there are ``neighbours``."""
    return list(recall_at(neighbours, test.labels, train.labels, range(1, neighbours.shape[1] + 1)).values())


def retrieve(train: Sequence[Features], test: Sequence[Features]) -> tuple[dict[str, float], Tensor]:
    """R@k for k in ``KS``, and the neighbours int64 [Q, 50], from the features of one or more streams."""
    neighbours = nearest([f.features for f in test], [f.features for f in train], max(KS))
    return recall_at(neighbours, test[0].labels, train[0].labels), neighbours

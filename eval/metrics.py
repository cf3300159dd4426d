"""Accuracies and nearest-neighbour retrieval; all in percent."""

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


def centred(features: Tensor, mean: Tensor | None = None) -> Tensor:
    """Features [N, C] minus their own mean, or another, L2-normalised."""
    mean = features.mean(dim=0) if mean is None else mean
    # those of untrained networks can be as small as 1e-14
    return F.normalize(features - mean, dim=1, eps=torch.finfo(features.dtype).tiny)


def nearest(queries: Sequence[Tensor], gallery: Sequence[Tensor], k: int) -> Tensor:
    """The k most similar gallery rows of each query, most similar first, int64 [Q, min(k, N)].

    Both are lists of features, one [Q, C] and one [N, C] per stream; the similarities of the streams are
    added.
    """
    queries, gallery = [centred(f) for f in queries], [centred(f) for f in gallery]
    found = []
    for start in range(0, len(queries[0]), QUERIES_AT_ONCE):
        similarity = sum(
            q[start : start + QUERIES_AT_ONCE] @ g.T for q, g in zip(queries, gallery, strict=True)
        )
        found.append(similarity.topk(min(k, similarity.shape[1]), dim=1).indices)
    return torch.cat(found)


def recalls(neighbours: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> list[float]:
    """R@1, R@2, ..., R@K: the share of queries with their class among k ``neighbours`` [Q, K]."""
    hits = (gallery_labels[neighbours] == query_labels[:, None]).cummax(dim=1).values  # [Q, K]
    return [100 * share for share in hits.double().mean(dim=0).tolist()]


def retrieve(
    train: Sequence[Features], test: Sequence[Features]
) -> tuple[dict[str, float], Tensor, list[float]]:
    """Search the training videos for each test video, by the features of one or more streams.

    Returns R@k for k in ``KS``, the neighbours int64 [Q, 50], and the curve R@1, R@2, ..., R@50.
    """
    neighbours = nearest([f.features for f in test], [f.features for f in train], max(KS))
    curve = recalls(neighbours, test[0].labels, train[0].labels)
    return {f"R@{k}": curve[min(k, len(curve)) - 1] for k in KS}, neighbours, curve

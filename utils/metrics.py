"""Meters that read the device rarely, and accuracies."""

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor


class Meters:
    """Collects named scalars of each step on the device; ``flush`` alone waits for it.

    ``sums`` and ``counts`` are the totals of what was flushed, for the means of an epoch.
    """

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None):
        self.sums: dict[str, float] = defaultdict(float, sums or {})
        self.counts: dict[str, int] = defaultdict(int, counts or {})
        self._pending: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, values: dict[str, Tensor]) -> None:
        """Take one step's scalars."""
        self._pending.append({name: value.detach() for name, value in values.items()})

    def flush(self) -> list[dict[str, float]]:
        """The steps added since the last flush, each the mean over ranks; all ranks must flush together."""
        pending, self._pending = self._pending, []
        scalars = [value.double() for step in pending for value in step.values()]
        means = torch.stack(scalars) if scalars else torch.empty(0)
        if scalars and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        numbers = iter(means.tolist())
        steps = [{name: next(numbers) for name in step} for step in pending]
        for step in steps:
            for name, value in step.items():
                self.sums[name] += value
                self.counts[name] += 1
        return steps

    def means(self) -> dict[str, float]:
        """Mean of each scalar over the steps that had it."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


@torch.no_grad()
def top_k_hits(logits: Tensor, positives: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, Tensor]:
    """Share of rows with a positive among the k largest logits.

    Args:
        logits: [B, C].
        positives: [B, C] bool, or the positive's column [B].
        ks: the k wanted; limited to C.
    """
    order = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices  # [B, k]
    hits = order == positives[:, None] if positives.dim() == 1 else positives.gather(1, order)
    return {f"top{k}": hits[:, :k].any(dim=1).float().mean() for k in ks}


def as_text(numbers: dict[str, float], decimals: int = 2) -> str:
    """Numbers on one line, whole ones as they are."""
    texts = {
        name: f"{value:.{decimals}f}" if isinstance(value, float) else value
        for name, value in numbers.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())

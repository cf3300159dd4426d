"""Learning rates, as pure functions of the epoch."""

import math


def learning_rate(base: float, epoch: int, epochs: int, drops: list[int], cosine: bool = False) -> float:
    """Rate of 0-based ``epoch``: ``base`` x 0.1 per ``drops`` reached, or a half cosine over ``epochs``."""
    if cosine:
        return base * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return base * 0.1 ** sum(epoch >= drop for drop in drops)

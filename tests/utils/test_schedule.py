import math

import pytest

from utils.schedule import learning_rate


def test_learning_rate_drops_at_each_epoch_reached():
    rates = [learning_rate(1e-3, epoch, 300, [250, 280]) for epoch in (0, 249, 250, 279, 280, 299)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate(2.0, 25, 100, [], cosine=True) == pytest.approx(1 + math.cos(math.pi / 4))

"""The plain step that ours is compared with computes the same."""

from pathlib import Path

import pytest

from benchmarks.common import make_noise
from benchmarks.step import COMMANDS, in_training, our_step, plain_step

OPTIONS = (
    "--seq_len 8 --img_dim 32 --batch_size 4 --moco-k 8 --moco-t 0.5 -j 0 --bn_splits 1 --bn_bias 1 --gpu -1"
)


@pytest.mark.parametrize("method", COMMANDS)
def test_plain_and_our_steps_have_the_same_losses(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_noise(Path("data/noise"), 4, 8)
    command = f"{COMMANDS[method]} {OPTIONS}"
    if method == "coclr":
        command += " --hide_self 0"

    def losses(make_step) -> list[float]:
        def first_three(*training) -> list[float]:
            step = make_step(*training)
            return [step().item() for _ in range(3)]

        return in_training(command, first_three)

    ours, plain = losses(our_step), losses(plain_step)
    assert ours[0] > 0.1
    assert ours[2] != ours[0]
    assert plain[0] == pytest.approx(ours[0], rel=1e-5)
    assert plain == pytest.approx(ours, rel=0.05)

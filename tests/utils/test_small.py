"""Schedules, meters, options: the small parts."""

import math

import pytest
import torch

from utils.errors import UserError
from utils.metrics import Meters, top_k_hits
from utils.options import pretraining_parser
from utils.precision import refuse_unsound_precision
from utils.schedule import learning_rate


def test_learning_rate_drops_at_each_epoch_reached():
    rates = [learning_rate(1e-3, epoch, 300, [250, 280]) for epoch in (0, 249, 250, 279, 280, 299)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate(2.0, 25, 100, [], cosine=True) == pytest.approx(1 + math.cos(math.pi / 4))


def test_meters_mean_over_the_steps_that_have_a_scalar():
    meters = Meters()
    meters.add({"loss": torch.tensor(1.0)})
    meters.add({"loss": torch.tensor(3.0), "precision": torch.tensor(0.5)})
    assert meters.flush() == [{"loss": 1.0}, {"loss": 3.0, "precision": 0.5}]
    assert meters.flush() == []
    meters.add({})
    meters.add({"loss": torch.tensor(5.0)})
    assert meters.flush() == [{}, {"loss": 5.0}]
    assert meters.means() == {"loss": 3.0, "precision": 0.5}


def test_top_k_hits():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]])
    assert {k: v.item() for k, v in top_k_hits(logits, torch.tensor([0, 0])).items()} == {
        "top1": 0.5,
        "top5": 0.5,
    }
    positives = torch.zeros(2, 6, dtype=torch.bool)
    positives[0, 4] = positives[1, 5] = positives[1, 0] = True
    assert {k: v.item() for k, v in top_k_hits(logits, positives).items()} == {"top1": 0.5, "top5": 1.0}


def parse(*words):
    return pretraining_parser("test", ["infonce"], "ucf101-2clip", 16).parse_args(words)


def test_hyphens_and_underscores_are_the_same():
    assert (
        parse("--moco_k", "64", "--batch-size=4", "--local-rank=1", "--dist_url", "tcp://a_b:1").moco_k == 64
    )
    args = parse(
        "--moco-k=64", "--batch_size", "4", "--local_rank", "1", "--name_prefix", "--a-b".lstrip("-")
    )
    assert (args.moco_k, args.batch_size, args.local_rank, args.name_prefix) == (64, 4, 1, "a-b")


@pytest.mark.parametrize(
    "words",
    [
        ("--net", "vgg"),
        ("--model", "simclr"),
        ("--batch_size", "0"),
        ("--nonsense",),
        ("--batch", "4"),
        ("--num_seq", "3"),
    ],
)
def test_bad_options_are_one_line_and_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words[-1] in message


def test_defaults_are_the_originals():
    args = parse()
    assert (
        args.net,
        args.seq_len,
        args.ds,
        args.batch_size,
        args.lr,
        args.wd,
        args.schedule,
        args.epochs,
    ) == ("s3d", 32, 1, 32, 1e-3, 1e-5, [120, 160], 10)
    assert (
        args.moco_dim,
        args.moco_k,
        args.moco_m,
        args.moco_t,
        args.workers,
        args.img_dim,
        args.print_freq,
    ) == (128, 2048, 0.999, 0.07, 16, 128, 5)


def test_fp16_on_a_cpu_is_refused_by_name():
    with pytest.raises(UserError, match="--precision fp16"):
        refuse_unsound_precision("fp16", torch.device("cpu"), torch.nn.Identity(), (1, 3, 8, 32, 32))


@pytest.mark.parametrize("factor", [1.0, -1.0, math.inf])
def test_bf16_with_other_gradients_than_fp32_is_refused(factor):
    class Layer(torch.nn.Conv3d):
        def forward(self, x):
            y = super().forward(x)
            return y if y.dtype == torch.float32 else factor * y + (1 - factor) * y.detach()

    layer, cpu = Layer(3, 4, 1), torch.device("cpu")
    refuse_unsound_precision("fp32", cpu, layer, (2, 3, 8, 32, 32))
    if factor == 1.0:
        refuse_unsound_precision("bf16", cpu, layer, (2, 3, 8, 32, 32))
    else:
        with pytest.raises(UserError, match=r"bf16.*8x32x32.*cosine.*--precision fp32"):
            refuse_unsound_precision("bf16", cpu, layer, (2, 3, 8, 32, 32))

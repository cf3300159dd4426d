"""Which sizes of batches, queues and groups go together."""

import pytest

import main_nce
from model.options import batch_norm_splits, pretraining_run_name
from utils.errors import UserError

SMALL = "--moco-k 64 --seq_len 8 --img_dim 32 --batch_size"


def parse(words):
    return main_nce.make_parser().parse_args(words.split())


@pytest.mark.parametrize(
    ("words", "processes", "splits"),
    [("8", 1, 2), ("8", 2, 1), ("1", 2, None), ("8 --bn_splits 4", 2, 4), ("8 --bn_splits 1", 1, 1)],
)
def test_groups_of_batch_norm(words, processes, splits):
    args = parse(f"{SMALL} {words}")
    before = vars(args).copy()
    if splits is None:
        with pytest.raises(UserError, match="leaves one value per channel"):
            batch_norm_splits(args, processes)
    else:
        assert batch_norm_splits(args, processes) == splits
    assert vars(args) == before


def test_odd_batch_of_one_process_is_one_group_and_that_is_said(caplog):
    words = "--moco-k 63 --seq_len 8 --img_dim 32 --batch_size 9"
    assert batch_norm_splits(parse(words), 1) == 1
    assert "--batch_size 9 is odd" in caplog.text
    caplog.clear()
    assert batch_norm_splits(parse(f"{words} --bn_splits 1"), 1) == 1  # as was asked for
    assert not caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("3", r"--moco-k 64 is not divisible by the global batch of 6 \(--batch_size 3 x 2 processes\)"),
        ("8 --bn_splits 3", "--bn_splits 3 does not divide --batch_size 8"),
        ("4 --bn_splits 4", "--batch_size 4 --bn_splits 4 leaves one value per channel"),
        ("8 --test x", "--test is not for pretraining"),
        ("8 --img_dim 16", "--img_dim 16 are too small"),
    ],
)
def test_what_cannot_work_together(words, message):
    with pytest.raises(UserError, match=message):
        batch_norm_splits(parse(f"{SMALL} {words}"), 2)


def test_name_of_a_run_is_the_released_ones():
    args = parse("--dataset ucf101-2clip --name_prefix Cycle1_")
    assert pretraining_run_name(args, "coclr-top5-R") == (
        "Cycle1_coclr-top5-R_k2048_ucf101-2clip-128_s3d_bs32_lr0.001_seq2_len32_ds1"
    )

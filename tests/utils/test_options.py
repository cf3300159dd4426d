import pytest

import main_nce


def parse(*words):
    return main_nce.make_parser().parse_args(words)


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
    ) == ("s3d", 32, 1, 32, 1e-3, 1e-5, (120, 160), 10)
    assert (
        args.moco_dim,
        args.moco_k,
        args.moco_m,
        args.moco_t,
        args.workers,
        args.img_dim,
        args.print_freq,
    ) == (128, 2048, 0.999, 0.07, 16, 128, 5)

import pytest

import main_coclr
from scripts.evidence import cotraining

OPTIONS = "--settings two-cycles --seeds 3 --epochs 4 --coclr_epochs 6 --dataset tiny".split()


@pytest.fixture
def halves(monkeypatch):
    """The options of each half-cycle that is trained; a checkpoint is the prefix of its run."""
    done = []

    def train(name, dataset, clips, seed, epochs, rate):
        assert rate == 3
        return f"{name} of {dataset}, {epochs}"

    monkeypatch.setattr(cotraining, "train", train)
    monkeypatch.setattr(cotraining, "checkpoint_of", lambda run: run.split("_")[0])
    monkeypatch.setattr(cotraining, "test", lambda checkpoint, *_: 50.0)
    monkeypatch.setattr(cotraining, "last_epoch", lambda checkpoint: {"mining_precision": 0.25})
    parse = main_coclr.make_parser().parse_args
    monkeypatch.setattr(main_coclr, "main", lambda words: done.append(parse(words)))
    return done


def starts(halves):
    return {args.name_prefix.rstrip("_"): args.pretrain for args in halves}


def test_each_half_goes_on_and_is_mined_by_the_newest_network_of_the_other_stream(halves, capsys):
    cotraining.main(OPTIONS)
    run = "two-cycles-4+3epochs-seed3-cycle"
    rgb, flow = "paper of tiny-2clip, 4", "paper of tiny-f-2clip, 4"
    assert starts(halves) == {
        f"{run}1-rgb": [rgb, flow],
        f"{run}1-flow": [flow, f"{run}1-rgb"],
        f"{run}2-rgb": [f"{run}1-rgb", f"{run}1-flow"],
        f"{run}2-flow": [f"{run}1-flow", f"{run}2-rgb"],
    }
    assert [args.reverse for args in halves] == [False, True] * 2
    assert [args.lr for args in halves] == pytest.approx([3e-4, 1.5e-4] * 2)
    assert {args.epochs for args in halves} == {3}
    assert "| two-cycles | 25.0 | 50.0 | 25.0 | 50.0 |" in capsys.readouterr().out


def test_only_the_first_miner_may_be_another(halves):
    cotraining.main([*OPTIONS, "--settings", "mined-by-flow-of-labels"])
    flow = "paper of tiny-f-2clip, 4"
    assert [args.pretrain[1] for args in halves[::2]] == ["labels of tiny-f-2clip, 4"]
    assert [args.pretrain[0] for args in halves[1::2]] == [flow]


def test_where_only_flow_differs_rgb_is_not_trained_again(halves):
    cotraining.main([*OPTIONS, "--settings", "flow-third-of-the-rate"])
    assert [args.name_prefix.split("-4+")[0] for args in halves] == ["recipe", "flow-third-of-the-rate"]
    assert halves[1].lr == 5e-5

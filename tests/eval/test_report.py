"""The table: records to rows beside the paper's numbers."""

import json

import pytest

from eval import report

ORIGIN = {"method": "CoCLR", "pretrained_on": "ucf101", "pretrain_epoch": 99}
RETRIEVAL = {
    "what": "retrieval",
    "dataset": "ucf101",
    "split": 1,
    "stream": "rgb",
    "checkpoint": "a.tar",
    "epoch": 99,
    "origin": ORIGIN,
    "settings": {},
    "numbers": {"R@1": 52.0, "R@5": 70.0, "R@50": 90.0},
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_table_shows_the_difference_from_the_paper(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finetuned = RETRIEVAL | {
        "what": "finetune",
        "crops": "ten",
        "dataset": "hmdb51",
        "numbers": {"top1": 52.6},
    }
    ours = RETRIEVAL | {"dataset": "tiny", "origin": None, "numbers": {"R@1": 11.0}}
    older = RETRIEVAL | {"numbers": {"R@1": 1.0}}
    write(tmp_path / "results.jsonl", older, RETRIEVAL, finetuned, ours)
    report.main([])
    markdown = (tmp_path / "results.md").read_text()
    assert capsys.readouterr().out == markdown
    assert (
        "| retrieval | CoCLR, 100 epochs | ucf101 | rgb | ucf101 | 1 | a.tar | 52.0 (paper 53.3, -1.3) | "
        "70.0 (paper 69.4, +0.6) | - | - | 90.0 |" in markdown
    )
    assert (
        "| finetune, ten crop | CoCLR, 100 epochs | ucf101 | rgb | hmdb51 | 1 | a.tar | "
        "52.6 (paper 52.1, +0.5) |" in markdown
    )
    assert "| retrieval | unknown | unknown | rgb | tiny | 1 | a.tar | 11.0 | - | - | - | - |" in markdown
    assert markdown.count("retrieval") == 2  # the older record of the same evaluation is replaced


def test_mean_and_spread_over_checkpoints_and_splits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "seeds.jsonl",
        *(
            RETRIEVAL | {"checkpoint": f"{i}.tar", "numbers": {"R@1": value}}
            for i, value in enumerate((50.0, 53.0, 56.0))
        ),
    )
    report.main(["seeds.jsonl", "--mean", "--out", "out/table.md"])
    assert "| all | all | 53.0 ± 1.7 (n=3) (paper 53.3, -0.3) |" in (tmp_path / "out/table.md").read_text()


def test_settings_that_differ_keep_rows_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probe = RETRIEVAL | {"what": "feature probe"}
    probes = [
        probe
        | {
            "checkpoint": f"{i}.tar",
            "settings": {"lr": lr, "wd": 0.001, "features": {"net": net}},
            "numbers": {"top1": value},
        }
        for i, (lr, net, value) in enumerate([(1.0, "s3d", 60.0), (0.01, "s3d", 20.0), (0.01, "r50", 30.0)])
    ]
    write(tmp_path / "results.jsonl", RETRIEVAL, *probes)
    report.main(["--mean"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[7:9] for row in rows if row.startswith("| feature probe")] == [
        ["net r50 lr 0.01", "30.0"],
        ["net s3d lr 0.01", "20.0"],
        ["net s3d lr 1.0", "60.0"],
    ]
    (tests,) = (row for row in rows if row.startswith("| retrieval"))
    assert tests.split(" | ")[6:8] == ["all", "52.0 (paper 53.3, -1.3)"]  # no column where none differ


def test_a_single_test_has_the_error_of_its_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results.jsonl", RETRIEVAL | {"videos": 256, "numbers": {"R@1": 20.0}})
    report.main(["--chart", "chart.png"])
    assert "| 20.0 ± 2.5 (paper" in (tmp_path / "results.md").read_text()  # sqrt(.2 * .8 / 256)


def test_rows_are_in_the_order_of_the_recipe_and_cycles_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages = [
        ("random", None, "rgb"),
        ("InfoNCE", None, "rgb"),
        ("InfoNCE", None, "flow"),
        ("CoCLR", 1, "rgb"),
        ("CoCLR", 1, "rgb+flow"),
        ("CoCLR", 2, "rgb"),
        ("UberNCE", None, "rgb"),
    ]
    shuffled = [
        RETRIEVAL
        | {
            "stream": stream,
            "checkpoint": f"{method}{cycle}",
            "origin": ORIGIN | {"method": method, "cycle": cycle},
        }
        for method, cycle, stream in reversed(stages)
    ]
    write(tmp_path / "results.jsonl", *shuffled)
    report.main(["--chart", "chart.png"])
    rows = [
        line.split(" | ")[1:4:2]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| retrieval")
    ]
    assert rows == [
        [f"{method}, {f'cycle {cycle}, ' if cycle else ''}100 epochs", stream]
        for method, cycle, stream in stages
    ]
    text = (tmp_path / "results.md").read_text()
    assert [
        ("paper 53.3" in line, "paper 55.9" in line) for line in text.splitlines() if "CoCLR, " in line
    ] == [(False, False), (False, False), (True, False)]  # the paper's are of two cycles
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_chart_without_retrieval_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results.jsonl", RETRIEVAL | {"what": "linear", "numbers": {"top1": 3.0}})
    with pytest.raises(SystemExit):
        report.main(["--chart", "chart.png"])
    assert "hold no retrieval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"what": "retrieval"', "line 1 is corrupt"),
        ('{"what": "x", "numbers": {}}\n[1]', "line 2 is corrupt"),
        ('{"what": 3, "numbers": {}}', "line 1 is corrupt"),
        (None, "cannot read results.jsonl"),
    ],
)
def test_corrupt_results_name_the_line(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        report.main([])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()


def paper(what, dataset, **network):
    return report.paper_numbers(RETRIEVAL | {"what": what, "dataset": dataset} | network)


def test_paper_numbers_are_as_printed():
    assert paper("linear", "ucf101") == {"top1": 70.2}
    assert paper("linear", "hmdb51", stream="rgb+flow") == {"top1": 40.2}
    assert paper("retrieval", "hmdb51", stream="rgb+flow")["R@20"] == 69.7
    k400 = {"origin": ORIGIN | {"pretrained_on": "k400"}, "stream": "flow"}
    assert paper("finetune", "ucf101", **k400) == {"top1": 85.27}
    assert not paper("linear", "ucf101", **k400)["top1"]
    tables = (*report.PAPER_TOP1.values(), *report.PAPER_RECALL.values())
    assert sum(value is not None for values in tables for value in values) == 40

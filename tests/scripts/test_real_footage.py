import json

import pytest
import torch

from eval.features import Features, load_features, save_features
from scripts.evidence.real_footage import evaluate_within, link_videos, main


def make_set(folder, name, train, test):
    for video in (*train, *test):
        path = folder / name / video
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(video)
    lists = folder / f"{name}_splits"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{video} 1\n" for video in train))
    (lists / "testlist01.txt").write_text("".join(f"{video}\n" for video in test))


def test_videos_of_all_sets_are_linked_and_listed(tmp_path):
    make_set(tmp_path, "one", ["Run/a.mp4", "Sit/b.mp4"], ["Run/c.mp4"])
    make_set(tmp_path, "two", ["Run/a.mp4"], ["Jump/d.mp4"])
    for _ in range(2):  # the same command goes on
        link_videos(tmp_path, ["one", "two"], tmp_path / "out")
    assert (tmp_path / "out/two-Jump/d.mp4").read_text() == "Jump/d.mp4"
    lists = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.txt")}
    assert lists == {
        "trainlist01.txt": ["one-Run/a.mp4", "one-Sit/b.mp4", "two-Run/a.mp4"],
        "testlist01.txt": ["one-Run/c.mp4", "two-Jump/d.mp4"],
        "classInd.txt": ["1 one-Run", "2 one-Sit", "3 two-Jump", "4 two-Run"],
    }


def test_a_set_without_lists_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "absent"])
    assert "absent_splits/trainlist01.txt is missing" in capsys.readouterr().err


def test_retrieval_within_a_set_does_not_see_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["one-Run/a", "one-Sit/b", "two-Run/a"]
    train = Features(torch.tensor([[1.0, 0.1], [0, 1], [1, 0]]), torch.tensor([0, 1, 2]), names)
    test = Features(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([0, 1]), ["one-Run/c", "one-Sit/d"])
    provenance = {"dataset": "real", "split": 1, "stream": "rgb", "checkpoint": "x"}
    save_features(tmp_path / "feature-real", "real", {"train": train, "test": test}, provenance)
    evaluate_within(tmp_path / "feature-real", "", "one")
    assert load_features(tmp_path / "feature-real", "one", "train").names == names[:2]
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(record["what"], record["dataset"]) for record in records] == [
        ("retrieval", "one"),
        ("feature probe", "one"),
    ]
    assert records[0]["numbers"]["R@1"] == 100

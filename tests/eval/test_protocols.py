"""Tests of a checkpoint: what is recorded, where its files go, and that numbers do not hang on files."""

import json

import numpy as np
import pytest
import torch
from databases import make_dataset, moving_square, write_database

import main_classifier
from eval import protocols
from eval.protocols import evaluate
from model.classifier import LinearClassifier
from utils.errors import UserError
from utils.launch import World

CPU = World(0, 1, torch.device("cpu"))
CLASSES = ["Class0", "Class1", "Class2"]


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch):
    """A working folder with ./data/tiny, 6 training and 3 test videos, and theirs/a.tar, a classifier."""
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data/tiny", per_class=4, frames=20)
    (tmp_path / "theirs").mkdir()
    torch.manual_seed(0)
    model = LinearClassifier(3, "s3d", use_dropout=False, use_l2_norm=True, use_final_bn=True)
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "classes": CLASSES}, "theirs/a.tar")
    return tmp_path


def evaluate_with(*words, dataset="tiny"):
    sizes = ("--seq_len", "8", "--img_dim", "32", "-j", "0", "--batch_size", "4")
    parser = main_classifier.make_parser()
    evaluate(parser.parse_args(["--dataset", dataset, "--test", "theirs/a.tar", *sizes, *words]), CPU)


def records(cwd):
    return [json.loads(line) for line in (cwd / "results.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_go_to_out_dir(cwd):
    evaluate_with("--five_crop", "--retrieval", "--out_dir", "mine")
    assert files(cwd / "theirs") == ["a.tar"]
    parts = [f"feature/tiny_{part}_{kind}" for part in ("test", "train") for kind in ("feature", "label")]
    assert files(cwd / "mine") == sorted(
        [f"a.tar-{kind}" for kind in ("confusion-center.png", "confusion-five.png")]
        + [f"a.tar-{kind}" for kind in ("prob-center.json", "prob-five.json")]
        + [f"{path}.pth.tar" for path in parts]
        + [f"feature/tiny_{name}" for name in ("test_names.json", "train_names.json", "provenance.json")]
        + ["feature/.lock", "feature/tiny_recall.png"]
    )
    center, five, retrieval = records(cwd)
    assert (center["file"], five["file"]) == tuple(
        str(cwd / f"mine/a.tar-prob-{crops}.json") for crops in ("center", "five")
    )
    provenance = json.loads((cwd / "mine/feature/tiny_provenance.json").read_text())
    assert provenance.items() <= retrieval.items()
    assert provenance["test_videos"] == five["test_videos"]
    assert provenance["settings"] == {
        "net": "s3d",
        "seq_len": 8,
        "ds": 1,
        "img_dim": 32,
        "precision": "fp32",
    }


def test_another_database_of_the_same_names_makes_other_features(cwd):
    made = []
    for seed in (0, 0, 1):
        make_dataset(cwd / "data/tiny", per_class=4, frames=20, seed=seed)
        evaluate_with("--retrieval")
        made.append(torch.load("theirs/feature/tiny_test_feature.pth.tar"))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


PLACES = {
    "files": ("--out_dir", "a file/mine"),
    "features": ("--dirname", "../a file"),
    "results": ("--results", "a file/results.jsonl"),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_are_tried_before_the_work(cwd, place, monkeypatch):
    (cwd / "a file").write_text("")
    monkeypatch.setattr(protocols, "read_videos", lambda *_: pytest.fail("the work has begun"))
    option = "--out_dir" if place == "features" else PLACES[place][0]
    with pytest.raises(UserError, match=f"a file: Not a directory; choose another .*{option}"):
        evaluate_with("--retrieval", *PLACES[place])
    assert files(cwd / "theirs") == ["a.tar"]


@pytest.mark.parametrize("what", ["--ten_crop", "--retrieval"])
def test_numbers_are_recorded_whatever_becomes_of_the_files(cwd, what, monkeypatch):
    def full(*_):
        raise UserError("disk full")

    for writer in ("write_file", "save_features"):
        monkeypatch.setattr(protocols, writer, full)
    with pytest.raises(UserError, match="disk full"):
        evaluate_with(what)
    assert [record.get("crops") for record in records(cwd)] == {
        "--ten_crop": ["center", "five", "ten"],
        "--retrieval": [None],
    }[what]


def test_videos_left_out_are_counted_too_short_ones_and_broken_ones(cwd):
    rng = np.random.default_rng(0)
    videos = {f"Class{i % 3}/v{i}": moving_square(rng, i, 20, 40)[0] for i in range(9)}
    videos["Class0/v6"] = videos["Class0/v6"][:5]  # needs six
    videos["Class1/v7"][9] = b"broken"
    write_database(cwd / "data/bad/rgb.lmdb", videos)
    parts = {name: "test" if int(name[-1]) > 3 else "train" for name in videos}
    (cwd / "data/bad/split.csv").write_text("".join(f"{name},{part}\n" for name, part in parts.items()))
    evaluate_with("--center_crop", "--retrieval", dataset="bad")
    assert [(record["videos"], record["left_out"]) for record in records(cwd)] == [(3, 2), (3, 2)]

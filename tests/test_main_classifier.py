"""main_classifier.py as a user runs it: training, resuming, tests, retrieval, processes, bad input."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from databases import make_dataset, write_database
from runs import CLIPS, run_ranks

import main_classifier
from dataset.augmentation import evaluation_input
from dataset.jpeg import decode
from dataset.registry import open_videos
from dataset.window_dataset import WindowDataset
from eval import feature_linear_probe, merge_2stream_prob, report, retrieval
from eval.features import load_features
from eval.predict import read_videos
from model.pretrain import InfoNCE, set_batch_norm_bias
from model.weights import load_classifier
from utils.checkpoint import load_checkpoint
from utils.launch import World

SMALL = ("--dataset", "tiny", *CLIPS, "-j", "0", "--batch_size", "4")
FOLDER = "tiny-32-sp1_s3d_quarter_{optim}_bs4_lr{lr}_wd0.001_dp{dp}_len8_ds1_train-{what}_pt-{pt}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder: ./data/tiny, 9 training and 3 test videos of 3 classes; pre.tar, of InfoNCE."""
    home = tmp_path_factory.mktemp("home")
    make_dataset(home / "data/tiny", per_class=4, frames=20)
    torch.manual_seed(5)
    model = InfoNCE("s3d_quarter", 16, 32)
    set_batch_norm_bias(model, 1.0)  # so that features are more than rounding
    torch.save(
        {"epoch": 7, "state_dict": model.state_dict(), "options": {"dataset": "tiny-2clip"}}, home / "pre.tar"
    )
    return home


@pytest.fixture
def cwd(home, tmp_path, monkeypatch):
    for name in ("data", "pre.tar"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def main(*words) -> None:
    main_classifier.main([*SMALL, *map(str, words)])


def newest(cwd: Path, epoch: int) -> Path:
    (path,) = cwd.glob(f"log-linclr/*/model/epoch{epoch}.pth.tar")
    return path


def records(cwd: Path) -> list[dict]:
    return [json.loads(line) for line in (cwd / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finetuned(home):
    """A classifier finetuned for two epochs; (checkpoint, folder that it was made in)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        main(
            "--train_what",
            "ft",
            "--epochs",
            "2",
            "--schedule",
            "1",
            "--dropout",
            "0.5",
            "--pretrain",
            "pre.tar",
        )
    return newest(home, 1)


def test_finetuned_checkpoint(home, finetuned):
    saved = load_checkpoint(finetuned)
    assert {"epoch", "state_dict", "best_acc", "optimizer", "iteration"} <= saved.keys()
    assert saved["classes"] == ["Class0", "Class1", "Class2"]
    assert saved["origin"] == {"method": "InfoNCE", "pretrained_on": "tiny", "pretrain_epoch": 7}
    assert saved["best_acc"] in (0, 1)  # validation top-1 of a single video
    start = load_checkpoint(home / "pre.tar")["state_dict"]
    key = "Conv_1a.conv1.weight"
    assert not torch.equal(saved["state_dict"][f"backbone.{key}"], start[f"encoder_q.0.{key}"])
    names = list(dict(load_classifier(saved, "s3d_quarter", saved["classes"], "x").named_parameters()))
    rates = {name: group["lr"] for name, group in zip(names, saved["optimizer"]["param_groups"], strict=True)}
    # after the drop: a tenth for the head, a hundredth for the network
    assert {round(rate, 12) for name, rate in rates.items() if name.startswith("backbone.")} == {1e-5}
    assert {round(rate, 12) for name, rate in rates.items() if name.startswith("final_fc.")} == {1e-4}


def test_linear_probe_trains_the_layer_alone_word_for_word(cwd):
    main(
        "--net",
        "s3d_quarter",
        "--ds",
        "1",
        "--train_what",
        "last",
        "--epochs",
        "2",
        "--schedule",
        "60",
        "80",
        "--optim",
        "sgd",
        "--lr",
        "1e-1",
        "--wd",
        "1e-3",
        "--final_bn",
        "--pretrain",
        "pre.tar",
        "--eval_freq",
        "2",
    )
    start, saved = load_checkpoint("pre.tar")["state_dict"], load_checkpoint(newest(cwd, 1))
    state = saved["state_dict"]
    backbone = {key: value for key, value in state.items() if key.startswith("backbone.")}
    assert len(backbone) > 300
    for key, value in backbone.items():  # running statistics too
        assert torch.equal(value, start[f"encoder_q.0.{key.removeprefix('backbone.')}"]), key
    assert {key for key in state if not key.startswith("backbone.")} == {
        "final_fc.0.weight",
        "final_fc.0.bias",
        *(
            f"final_bn.{name}"
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    }
    assert state["final_bn.num_batches_tracked"] == 4
    assert state["final_fc.0.bias"].abs().min() > 1e-3  # it began at 0
    assert (state["final_bn.weight"] - 1).abs().min() > 0  # and this at 1
    trace = (newest(cwd, 1).parent.parent / "log.txt").read_text()
    assert "epoch 0 of 0-1: loss" in trace
    assert trace.count("val_top1") == 1  # --eval_freq 2
    assert "linear probe of random weights" not in trace


@pytest.mark.slow
def test_1_plus_1_epochs_equal_2_and_resuming_checks_the_classes(cwd, capsys):
    words = ("--train_what", "ft", "--dropout", "0.5", "--pretrain", "pre.tar", "--cos")
    main(*words, "--epochs", "2", "--name_prefix", "whole_")
    whole = load_checkpoint(next(cwd.glob("log-linclr/whole_*/model/epoch1.pth.tar")))
    # stop after the first of two epochs, as a killed run would
    patch = pytest.MonkeyPatch()
    patch.setattr(main_classifier.Run, "end_epoch", stop_after(main_classifier.Run.end_epoch))
    with patch.context(), pytest.raises(SystemExit):
        main(*words, "--epochs", "2", "--name_prefix", "parts_")
    patch.undo()
    (first,) = cwd.glob("log-linclr/parts_*/model/epoch0.pth.tar")
    resumed = cwd / "first.tar"
    resumed.write_bytes(first.read_bytes())
    main(*words, "--epochs", "2", "--name_prefix", "rest_", "--resume", resumed)
    rest = load_checkpoint(next(cwd.glob("log-linclr/rest_*/model/epoch1.pth.tar")))
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, rest["state_dict"][key]), key
    saved = torch.load(resumed, weights_only=True)
    torch.save(saved | {"classes": ["Class0", "Class2", "Class1"]}, resumed)
    with pytest.raises(SystemExit):
        main(*words, "--epochs", "2", "--name_prefix", "other_", "--resume", resumed)
    assert "'Class2' stands where the dataset has 'Class1'" in capsys.readouterr().err


def stop_after(end_epoch):
    def end_and_stop(self, *args):
        end_epoch(self, *args)
        raise KeyboardInterrupt

    return end_and_stop


def test_training_data_goes_to_processes_that_are_not_forked(home):
    args = main_classifier.make_parser().parse_args([*SMALL, "--data_root", str(home / "data")])
    (videos,) = read_videos(args, "train")
    here = main_classifier.training_loader(args, World(0, 1, torch.device("cpu")), videos).dataset
    there = pickle.loads(pickle.dumps(here))
    assert torch.equal(there[0, 3]["clips"], here[0, 3]["clips"])


def test_validation_part_is_what_pandas_draws():
    """Rows of DataFrame.sample(frac=0.3, random_state=666) by pandas 2.3, for two lengths."""
    for length, first, size in (
        (3783, [2394, 387, 890, 1679, 333, 691, 2043, 799], 1135),
        (13, [1, 11, 0, 7], 4),
    ):
        names = np.random.default_rng(0).permutation([f"A/{i:04d}" for i in range(length)]).tolist()
        videos = main_classifier.Videos(
            {},
            names,
            {"rgb": np.arange(length)},
            np.full(length, 9),
            np.zeros(length, int),
            np.arange(length),
            ["A"],
        )
        part = main_classifier.validation_part(videos)
        assert part.names[:8] == [f"A/{i:04d}" for i in first]
        assert len(part) == size
        assert [names[i] for i in part.positions["rgb"]] == part.names


@torch.no_grad()
def test_ten_crop_word_for_word_against_a_slow_loop(cwd, finetuned, home):
    checkpoint = cwd / "ft.tar"
    checkpoint.write_bytes(finetuned.read_bytes())
    main("--net", "s3d_quarter", "--ds", "1", "--train_what", "ft", "--test", checkpoint, "--ten_crop")
    saved = load_checkpoint(checkpoint)
    model = load_classifier(saved, "s3d_quarter", saved["classes"], "x").eval()
    videos = open_videos("tiny", "test", 8, 1, home / "data")
    slow = {}
    for index, name in enumerate(videos.names):
        jpegs = videos.stores["rgb"].read_frames(int(videos.positions["rgb"][index]), list(range(20)))
        item = WindowDataset(videos, 8, 1, 32, 5)[index]
        assert [decode(j).shape for j in jpegs] == [(40, 40, 3)] * 20
        crops = {"center": [], "five": [], "ten": []}
        for crop in range(5):
            for flip in (False, True):
                clips = [
                    evaluation_input(item["frames"][crop][window][None], torch.tensor([flip]), False)
                    for window in item["windows"]
                ]
                probability = torch.stack([model(clip)[0].softmax(dim=1)[0] for clip in clips]).mean(dim=0)
                crops["ten"].append(probability)
                if not flip:
                    crops["five"].append(probability)
                    if crop == 4:
                        crops["center"].append(probability)
        slow[name] = {kind: torch.stack(values).mean(dim=0) for kind, values in crops.items()}
    for kind, record in zip(("center", "five", "ten"), records(cwd), strict=True):
        found = json.loads(Path(f"{checkpoint}-prob-{kind}.json").read_text())
        assert found.keys() == slow.keys()
        for name, entry in found.items():
            assert len(entry["mean_prob"]) == 3
            torch.testing.assert_close(torch.tensor(entry["mean_prob"]), slow[name][kind], atol=1e-5, rtol=0)
        hits = [slow[name][kind].argmax() == int(name[5]) for name in slow]
        assert record["numbers"]["top1"] == pytest.approx(100 * np.mean(hits), abs=1e-3)
        assert (record["what"], record["crops"], record["videos"], record["left_out"]) == (
            "finetune",
            kind,
            3,
            0,
        )
        assert (record["dataset"], record["stream"], record["split"], record["epoch"]) == (
            "tiny",
            "rgb",
            1,
            1,
        )
        assert record["origin"]["method"] == "InfoNCE"
        assert Path(f"{checkpoint}-confusion-{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_retrieval_word_for_word_and_the_tools_after_it(cwd, monkeypatch, capsys):
    checkpoint = cwd / "a.tar"
    checkpoint.write_bytes((cwd / "pre.tar").read_bytes())
    main("--net", "s3d_quarter", "--ds", "1", "--test", checkpoint, "--retrieval")
    test = load_features(cwd / "feature", "tiny", "test")
    backbone = InfoNCE("s3d_quarter", 16, 32).encoder_q[0]
    backbone.load_state_dict(
        {
            key.removeprefix("encoder_q.0."): value
            for key, value in load_checkpoint(checkpoint)["state_dict"].items()
            if key.startswith("encoder_q.0.")
        }
    )
    videos = open_videos("tiny", "test", 8, 1, "data")
    assert test.names == videos.names
    for index in range(len(videos)):
        item = WindowDataset(videos, 8, 1, 32)[index]
        clips = evaluation_input(
            item["frames"][0][item["windows"]], torch.zeros(len(item["windows"]), dtype=bool), False
        )
        with torch.no_grad():
            slow = [F.adaptive_avg_pool3d(backbone.eval()(clip[None]), 1).flatten() for clip in clips]
        slow = torch.stack(slow).mean(dim=0)
        torch.testing.assert_close(test.features[index], slow, atol=1e-5, rtol=1e-4)
    assert (cwd / "feature/tiny_recall.png").is_file()

    # a second time the features are reused, unless the settings differ
    def untouched(*args):
        raise AssertionError("features were made anew")

    with monkeypatch.context() as patch:
        patch.setattr("eval.protocols.features_of", untouched)
        main("--test", checkpoint, "--retrieval")
        with pytest.raises(AssertionError, match="anew"):
            main("--test", checkpoint, "--retrieval", "--ds", "2")
    first, second = records(cwd)
    assert first["numbers"] == second["numbers"]

    feature_linear_probe.main(
        [
            "--dataset",
            "tiny",
            "--test",
            "feature",
            "--final_bn",
            "--lr",
            "1.0",
            "--wd",
            "1e-3",
            "--epochs",
            "3",
        ]
    )
    shutil.copytree("feature", "flow")
    provenance = cwd / "flow/tiny_provenance.json"
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"stream": "flow"}))
    merge_2stream_prob.main(["--prob1", "feature", "--prob2", "flow", "--dataset", "tiny", "--mode", "s"])
    retrieval.main(
        ["--test", str(checkpoint), "--dataset", "tiny", "--gallery", "g.html", "--curve", "c.png"]
    )
    report.main([])
    assert [record["what"] for record in records(cwd)] == [
        "retrieval",
        "retrieval",
        "feature probe",
        "retrieval",
    ]
    assert records(cwd)[3]["numbers"] == first["numbers"]  # a stream merged with itself
    assert (cwd / "g.html").read_text().count('class="query"') == 3
    assert "| feature probe | InfoNCE, 8 epochs | tiny | rgb | tiny | 1 |" in capsys.readouterr().out
    assert not list(cwd.rglob("*.part"))


@pytest.mark.slow
def test_two_processes_train_and_give_the_same_numbers_as_one(cwd, finetuned):
    for folder in ("one", "two"):
        (cwd / folder).mkdir()
        (cwd / folder / "ft.tar").write_bytes(finetuned.read_bytes())
    main("--test", "one/ft.tar", "--five_crop", "--retrieval", "--results", "one.jsonl")
    run_ranks(
        "main_classifier.py",
        *SMALL,
        "--batch_size",
        "3",
        "--test",
        "two/ft.tar",
        "--five_crop",
        "--retrieval",
        "--results",
        "two.jsonl",
        cwd=cwd,
    )
    for part in ("train", "test"):
        one, two = (load_features(cwd / folder / "feature", "tiny", part) for folder in ("one", "two"))
        assert one.names == two.names
        torch.testing.assert_close(one.features, two.features, atol=1e-5, rtol=1e-4)
    for kind in ("center", "five"):
        one, two = (
            json.loads((cwd / folder / f"ft.tar-prob-{kind}.json").read_text()) for folder in ("one", "two")
        )
        assert one.keys() == two.keys()
        for name in one:
            assert one[name]["mean_prob"] == pytest.approx(two[name]["mean_prob"], abs=1e-5)
    one, two = (
        [json.loads(line)["numbers"] for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert one == two
    text = run_ranks(
        "main_classifier.py",
        *SMALL,
        "--batch_size",
        "2",
        "--train_what",
        "last",
        "--epochs",
        "1",
        "--optim",
        "sgd",
        "--lr",
        "0.1",
        "--pretrain",
        "pre.tar",
        cwd=cwd,
    )
    assert "val_top1" in text
    assert "2 steps per epoch" in text


def test_random_weights_and_flow(cwd):
    main("--dataset", "tiny-f", "--test", "random", "--retrieval")
    (record,) = records(cwd)
    assert (record["origin"]["method"], record["stream"]) == ("random", "flow")


BAD = {
    "pretraining dataset": (("--dataset", "tiny-2clip"), "tiny or tiny-f"),
    "unknown dataset": (("--dataset", "nowhere"), r"no RGB database at \S+nowhere/rgb.lmdb"),
    "two streams": (("--dataset", "tiny-2stream"), "tiny or tiny-f"),
    "absent checkpoint": (("--pretrain", "nothing.tar"), "no checkpoint at nothing.tar"),
    "other network": (("--pretrain", "pre.tar", "--net", "s3dg"), "seems to be InfoNCE on s3d"),
    "no classifier": (("--test", "pre.tar", "--ten_crop"), "holds no classifier.*--retrieval"),
    "class count": (("--test", "ft.tar", "--dataset", "two"), "tells 3 classes apart, the dataset has 2"),
    "other classes": (
        ("--test", "ft.tar", "--dataset", "renamed"),
        "'Class2' stands where the dataset has 'Other'",
    ),
    "empty test split": (("--test", "ft.tar", "--dataset", "untested"), "untested: the test split is empty"),
    "no test": (("--retrieval",), "--retrieval and .* need --test"),
    "test and pretrain": (("--test", "ft.tar", "--pretrain", "pre.tar"), "--test excludes --pretrain"),
    "two crops": (("--test", "ft.tar", "--ten_crop", "--center_crop"), "--center_crop: not allowed with"),
    "several layers": (("--num_fc", "2"), "--num_fc"),
    "offline": (
        ("--test", "CoCLR-ucf101-rgb", "--offline"),
        "--offline: CoCLR-ucf101-rgb is not in the cache",
    ),
    "small clips": (("--seq_len", "4"), "--seq_len 4 --img_dim 32 are too small"),
    "dropout": (("--dropout", "1"), "--dropout 1"),
    "few videos": (("--batch_size", "32"), "9 videos.*--batch_size"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(cwd, finetuned, case, monkeypatch, capsys):
    monkeypatch.setenv("COCLR_CACHE", str(cwd / "cache"))
    options, message = BAD[case]
    (cwd / "ft.tar").write_bytes(finetuned.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCLR_DATA", str(cwd / "own"))
        (cwd / "own").mkdir()
        (cwd / "own/tiny").symlink_to(cwd / "data/tiny")
        frames = open_videos("tiny", "train", 8, 1).stores["rgb"].read_frames(0, list(range(20)))
        for name, classes, part in (
            ("two", ("Class0", "Class1"), "test"),
            ("untested", ("A", "B"), "train"),
            ("renamed", ("Class0", "Class1", "Other"), "test"),
        ):
            write_database(cwd / f"own/{name}/rgb.lmdb", {f"{label}/a": frames for label in classes})
            (cwd / f"own/{name}/split.csv").write_text("".join(f"{label}/a,{part}\n" for label in classes))
        with pytest.raises(SystemExit) as exit_:
            main(*options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2
    assert "error: " in last
    assert re.search(message, last), last
    assert not list(cwd.glob("log-linclr/*/model/*"))
    assert not (cwd / "results.jsonl").exists()

"""Two-stream merging against loops over the videos both have; bad files give one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import merge_2stream_prob as merge
from eval.features import Features, save_features
from eval.metrics import KS


def write(path, names, seed, classes=7, **more):
    """A JSON file of random probabilities; returns them by name."""
    rng = np.random.default_rng(seed)
    rows = {name: rng.dirichlet(np.ones(classes)).tolist() for name in names}
    path.write_text(
        json.dumps({name: {"mean_prob": row, "label": int(name[1]), **more} for name, row in rows.items()})
    )
    return rows


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = [f"C{i % 7}/v{i}" for i in range(41)]


def test_mean_probability_over_the_common_videos(folder, caplog):
    rgb = write(folder / "rgb.json", NAMES[:-1], 1)
    flow = write(folder / "flow.json", NAMES[:2:-1], 2)  # another order, three videos fewer, one more
    merge.log.propagate = True
    with caplog.at_level("INFO", "coclr"):
        numbers, videos = merge.merge_classification(["rgb.json", "flow.json"], "tiny")
    common = rgb.keys() & flow.keys()
    assert videos == len(common) == 37
    assert "37 videos in both; rgb.json lacks 1, flow.json lacks 3" in caplog.text
    for k in (1, 5):
        hits = [int(n[1]) in np.argsort(np.add(rgb[n], flow[n]))[::-1][:k] for n in common]
        assert numbers[f"top{k}"] == pytest.approx(100 * np.mean(hits), abs=1e-3)
    assert 0 < numbers["top1"] < numbers["top5"] < 100


def test_labels_follow_from_the_names_where_they_are_not_noted(folder):
    for name in ("a.json", "b.json"):
        write(folder / name, NAMES, 1)
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({n: {"mean_prob": v["mean_prob"]} for n, v in content.items()}))
    with_labels = write(folder / "c.json", NAMES, 1) and merge.merge_classification(
        ("c.json", "c.json"), "tiny"
    )
    assert merge.merge_classification(("a.json", "b.json"), "tiny") == with_labels


def features(names, seed):
    rng = np.random.default_rng(seed)
    labels = torch.tensor([int(name[1]) for name in names])
    values = torch.tensor(rng.normal(size=(len(names), 6)) + np.eye(7, 6)[labels], dtype=torch.float32)
    return Features(values, labels, list(names))


def test_summed_similarities_over_the_common_videos(folder):
    train, test = [f"C{i % 7}/t{i}" for i in range(60)], NAMES
    rgb = {"train": features(train, 1), "test": features(test, 2)}
    flow = {
        "train": features(train[:1:-1], 3),
        "test": features(test[::-1], 4),
    }  # two training videos are missing
    save_features(folder / "rgb/feature", "tiny", rgb, {"checkpoint": "r.tar", "origin": {"method": "CoCLR"}})
    save_features(
        folder / "flow/feature", "tiny-f", flow, {"checkpoint": "f.tar", "origin": {"method": "InfoNCE"}}
    )
    merge.main(["--prob1", "rgb", "--prob2", "flow/feature", "--dataset", "tiny", "--mode", "s"])
    record = json.loads((folder / "results.jsonl").read_text())
    assert record["stream"] == "rgb+flow"
    assert record["checkpoint"] == "r.tar + f.tar"
    assert record["origin"] == {"method": "CoCLR + InfoNCE"}

    def prepared(stream, part, names):
        rows = np.array(
            [stream[part].features[stream[part].names.index(name)].numpy() for name in names], np.float64
        )
        rows -= rows.mean(axis=0)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    common = [name for name in train if name in flow["train"].names]
    similarity = sum(prepared(s, "test", test) @ prepared(s, "train", common).T for s in (rgb, flow))
    for k in KS:
        hits = [
            any(common[j][:2] == name[:2] for j in np.argsort(-row)[:k])
            for name, row in zip(test, similarity, strict=True)
        ]
        assert record["numbers"][f"R@{k}"] == pytest.approx(100 * np.mean(hits))
    assert record["numbers"]["R@1"] < 100


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        (
            {"one/tiny": {"split": 1}, "two/tiny-f": {"split": 2}},
            ("one", "two"),
            "one and two are of different splits: 1 and 2",
        ),
        (
            {"one/tiny": {"split": 1}},
            ("one", "one"),
            "one and one are both of rgb; give one of RGB and one of",
        ),
        (
            {"feature/tiny": {"sha256": "of another"}},
            ("a.tar", "feature"),
            "the features in feature are of another checkpoint",
        ),
    ],
)
def test_features_that_cannot_be_merged_are_refused(folder, capsys, saved, given, message):
    parts = {"train": features(NAMES, 1), "test": features(NAMES, 2)}
    (folder / "a.tar").write_bytes(b"x")
    for place, provenance in saved.items():
        save_features(folder / Path(place).parent, Path(place).name, parts, provenance)
    with pytest.raises(SystemExit, match="2"):
        merge.main(["--prob1", given[0], "--prob2", given[1], "--dataset", "tiny", "--mode", "s"])
    assert f"error: {message}" in capsys.readouterr().err
    assert not (folder / "results.jsonl").exists()


BAD = {
    "corrupt JSON": (lambda f: (f / "flow.json").write_text('{"C0/v0": {'), "flow.json is corrupt, not JSON"),
    "missing file": (lambda f: (f / "flow.json").unlink(), "cannot read flow.json"),
    "not probabilities": (lambda f: (f / "flow.json").write_text('{"a": [1, 2]}'), "flow.json should be"),
    "a list": (lambda f: (f / "flow.json").write_text("[]"), "flow.json should be"),
    "not numbers": (
        lambda f: (f / "flow.json").write_text('{"a": {"mean_prob": ["x"]}}'),
        "flow.json should be",
    ),
    "label in words": (
        lambda f: (f / "flow.json").write_text('{"a": {"mean_prob": [1], "label": "b"}}'),
        "flow.json should be",
    ),
    "NaN": (lambda f: (f / "flow.json").write_text('{"a": {"mean_prob": [NaN]}}'), "flow.json should be"),
    "other videos": (lambda f: write(f / "flow.json", ["C1/other"], 1), "no video in common"),
    "other classes": (lambda f: write(f / "flow.json", NAMES, 1, classes=9), "of 7 classes, flow.json of 9"),
    "other dataset": (
        lambda f: write(f / "flow.json", NAMES, 1, dataset="hmdb51"),
        "flow.json was made of hmdb51",
    ),
    "a folder": (
        lambda f: ((f / "flow.json").unlink(), (f / "flow.json").mkdir()),
        "cannot read flow.json: Is a directory",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(folder, case, capsys):
    spoil, message = BAD[case]
    write(folder / "rgb.json", NAMES, 1)
    write(folder / "flow.json", NAMES, 2)
    spoil(folder)
    with pytest.raises(SystemExit) as exit_:
        merge.main(["--prob1", "rgb.json", "--prob2", "flow.json", "--dataset", "tiny"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2
    assert last.startswith("error: ")
    assert message in last
    assert not (folder / "results.jsonl").exists()

"""Feature files: reuse only of what was made from the same, and errors in one line."""

import argparse
import shutil

import pytest
import torch
from databases import make_dataset

from dataset.registry import open_videos
from eval.features import (
    Features,
    are_current,
    find_folder,
    load_features,
    log,
    provenance_path,
    read_provenance,
    save_features,
)
from eval.records import provenance_of
from utils.errors import UserError


def provenance(checkpoint, videos, **options):
    args = argparse.Namespace(
        **{"dataset": "tiny", "which_split": 1, "net": "s3d", "seq_len": 4, "ds": 1, "img_dim": 16}
        | {"precision": "fp32"}
        | options
    )
    return provenance_of(args, checkpoint, {"epoch": 3, "state_dict": {}}, videos)


@pytest.fixture
def made(tmp_path):
    """A checkpoint file, its features, and what they were made from."""
    make_dataset(tmp_path / "data/tiny", per_class=4, frames=12, size=16)
    videos = {part: open_videos("tiny", part, 4, 1, tmp_path / "data") for part in ("train", "test")}
    checkpoint = tmp_path / "a.tar"
    checkpoint.write_bytes(b"weights")
    made_from = provenance(checkpoint, videos)
    parts = {
        part: Features(torch.randn(len(v), 5), torch.from_numpy(v.labels), v.names)
        for part, v in videos.items()
    }
    save_features(tmp_path / "feature", "tiny", parts, made_from)
    return checkpoint, videos, parts, made_from


def test_round_trip(made, tmp_path):
    _, _, parts, made_from = made
    for part, content in parts.items():
        loaded = load_features(tmp_path / "feature", "tiny", part)
        assert torch.equal(loaded.features, content.features)
        assert torch.equal(loaded.labels, content.labels)
        assert loaded.names == content.names
    assert read_provenance(tmp_path / "feature", "tiny") == made_from
    assert {path.name for path in (tmp_path / "feature").iterdir()} == {
        ".lock",
        "tiny_provenance.json",
        *(
            f"tiny_{part}_{what}"
            for part in ("train", "test")
            for what in ("feature.pth.tar", "label.pth.tar", "names.json")
        ),
    }


def test_half_written_features_are_refused(made, tmp_path):
    folder = tmp_path / "feature"
    assert find_folder(str(folder), "feature", "tiny") == folder
    (folder / "tiny_provenance.json").write_text("{}")
    with pytest.raises(UserError, match=r"features of tiny in .* are half-written; .*--retrieval"):
        find_folder(str(folder), "feature", "tiny")


def test_reused_only_for_the_same_checkpoint_videos_and_settings(made, tmp_path, caplog):
    checkpoint, videos, _, made_from = made
    folder = tmp_path / "feature"
    assert are_current(folder, "tiny", made_from)
    assert are_current(folder, "tiny", made_from | {"checkpoint": "elsewhere/a.tar"})
    log.propagate = True
    with caplog.at_level("INFO", "coclr"):
        for option, value, said in (("seq_len", 16, "settings"), ("which_split", 2, "split")):
            assert not are_current(folder, "tiny", provenance(checkpoint, videos, **{option: value}))
            assert f"{folder} differ in {said}; making them anew" in caplog.text
    checkpoint.write_bytes(b"other weights")
    assert not are_current(folder, "tiny", provenance(checkpoint, videos))


def test_reused_with_a_copied_database_but_not_with_another_of_the_same_names(made, tmp_path):
    checkpoint, videos, _, _ = made
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    make_dataset(tmp_path / "anew/tiny", per_class=4, frames=12, size=24)
    for root, current in (("copy", True), ("anew", False)):
        others = {part: open_videos("tiny", part, 4, 1, tmp_path / root) for part in ("train", "test")}
        assert others["test"].names == videos["test"].names
        assert are_current(tmp_path / "feature", "tiny", provenance(checkpoint, others)) is current
        mixed = videos | {"test": others["test"]}  # one part alone
        assert are_current(tmp_path / "feature", "tiny", provenance(checkpoint, mixed)) is current


def test_half_written_features_are_not_reused(made, tmp_path, monkeypatch):
    _, _, parts, made_from = made

    def full(content, path):
        raise UserError("disk full")

    monkeypatch.setattr("eval.features.save_atomically", full)
    with pytest.raises(UserError, match="disk full"):
        save_features(tmp_path / "feature", "tiny", parts, made_from)
    assert not are_current(tmp_path / "feature", "tiny", made_from)


def test_features_of_another_checkpoint_are_refused(made, tmp_path):
    checkpoint = made[0]
    assert find_folder(str(checkpoint), "feature", "tiny") == tmp_path / "feature"
    assert find_folder(str(tmp_path), "feature", "tiny") == tmp_path / "feature"
    assert find_folder(str(tmp_path / "feature"), "feature", "tiny") == tmp_path / "feature"
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"are of another checkpoint \(\S+/a.tar\)"):
        find_folder(str(checkpoint), "feature", "tiny")
    with pytest.raises(UserError, match=r"no features of ucf101.*--retrieval"):
        find_folder(str(tmp_path), "feature", "ucf101")


def test_the_originals_features_load_without_names(tmp_path):
    torch.save(torch.ones(3, 4, dtype=torch.float16), tmp_path / "ucf101_test_feature.pth.tar")
    torch.save(torch.tensor([[0], [1], [2]]), tmp_path / "ucf101_test_label.pth.tar")
    loaded = load_features(tmp_path, "ucf101", "test")
    assert loaded.names is None
    assert loaded.features.dtype == torch.float32
    assert loaded.labels.tolist() == [0, 1, 2]
    assert read_provenance(tmp_path, "ucf101-f") == {"dataset": "ucf101", "stream": "flow"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "tiny_test_feature.pth.tar").write_bytes(b"PK broken"),
        lambda folder: (folder / "tiny_test_label.pth.tar").unlink(),
        lambda folder: (folder / "tiny_test_names.json").write_text('["a"'),
        lambda folder: (folder / "tiny_test_names.json").write_text('["a"]'),
        lambda folder: torch.save({"a": 1}, folder / "tiny_test_feature.pth.tar"),
        lambda folder: torch.save(torch.zeros(2), folder / "tiny_test_label.pth.tar"),
    ],
)
def test_spoilt_files_give_one_clear_line(made, tmp_path, spoil):
    spoil(tmp_path / "feature")
    with pytest.raises(UserError, match="tiny_test_") as error:
        load_features(tmp_path / "feature", "tiny", "test")
    assert "\n" not in str(error.value)


def test_corrupt_provenance(made, tmp_path):
    provenance_path(tmp_path / "feature", "tiny").write_text("{")
    with pytest.raises(UserError, match="corrupt"):
        are_current(tmp_path / "feature", "tiny", made[3])

"""Feature files: reuse only of what was made from the same, and errors in one line."""

import pytest
import torch
from databases import make_dataset

from dataset.registry import open_videos
from eval.features import (
    Features,
    find_folder,
    load_features,
    made_from_the_same,
    provenance,
    provenance_path,
    read_provenance,
    save_features,
)
from utils.errors import UserError

RECORD = {"checkpoint": "a.tar", "dataset": "tiny", "split": 1, "settings": {"seq_len": 8}}


@pytest.fixture
def made(tmp_path):
    """A checkpoint file, its features, and what they were made from."""
    make_dataset(tmp_path / "data/tiny", per_class=4, frames=12, size=16)
    videos = {part: open_videos("tiny", part, 4, 1, tmp_path / "data") for part in ("train", "test")}
    checkpoint = tmp_path / "a.tar"
    checkpoint.write_bytes(b"weights")
    made_from = provenance(checkpoint, videos, RECORD)
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
        "tiny_provenance.json",
        *(
            f"tiny_{part}_{what}"
            for part in ("train", "test")
            for what in ("feature.pth.tar", "label.pth.tar", "names.json")
        ),
    }


def test_reused_only_for_the_same_checkpoint_videos_and_settings(made, tmp_path):
    checkpoint, videos, _, made_from = made
    folder = tmp_path / "feature"
    assert made_from_the_same(folder, "tiny", made_from)
    moved = made_from | {"checkpoint": "elsewhere/a.tar"}
    assert made_from_the_same(folder, "tiny", moved)
    for other in ({"settings": {"seq_len": 16}}, {"split": 2}):
        assert not made_from_the_same(folder, "tiny", provenance(checkpoint, videos, RECORD | other))
    videos["test"].frames[0] += 1
    assert not made_from_the_same(folder, "tiny", provenance(checkpoint, videos, RECORD))
    videos["test"].frames[0] -= 1
    checkpoint.write_bytes(b"other weights")
    assert not made_from_the_same(folder, "tiny", provenance(checkpoint, videos, RECORD))


def test_half_written_features_are_not_reused(made, tmp_path, monkeypatch):
    _, _, parts, made_from = made

    def full(content, path):
        raise UserError("disk full")

    monkeypatch.setattr("eval.features.save_atomically", full)
    with pytest.raises(UserError, match="disk full"):
        save_features(tmp_path / "feature", "tiny", parts, made_from)
    assert not made_from_the_same(tmp_path / "feature", "tiny", made_from)


def test_features_of_another_checkpoint_are_refused(made, tmp_path):
    checkpoint = made[0]
    assert find_folder(str(checkpoint), "feature", "tiny") == tmp_path / "feature"
    assert find_folder(str(tmp_path), "feature", "tiny") == tmp_path / "feature"
    assert find_folder(str(tmp_path / "feature"), "feature", "tiny") == tmp_path / "feature"
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"are of another checkpoint \(a.tar\)"):
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
    assert read_provenance(tmp_path, "ucf101") == {}


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
        made_from_the_same(tmp_path / "feature", "tiny", made[3])

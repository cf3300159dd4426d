"""The tool: numbers of saved features, and a gallery whose queries are spread over the classes."""

import re

import pytest
import torch
from databases import make_dataset

from dataset.registry import open_videos
from eval import retrieval
from eval.features import Features, save_features


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Features of ./data/tiny in ./feature: a test clip's nearest are of its class, the next one, its own."""
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data/tiny", per_class=8, frames=12, size=24)
    parts = {}
    for part in ("train", "test"):
        videos = open_videos("tiny", part, 2, 1, "data")
        labels = torch.from_numpy(videos.labels)
        numbers = torch.tensor([int(name[-6:-4]) for name in videos.names])
        angles = labels * 2 * torch.pi / 3 + (numbers if part == "train" else 0 * numbers) * 0.01
        features = torch.stack([angles.cos(), angles.sin()], dim=1)
        parts[part] = Features(features, labels, videos.names)
    save_features(tmp_path / "feature", "tiny", parts, {"checkpoint": "a.tar"})
    return {part: content.names for part, content in parts.items()}


def test_gallery_shows_queries_of_all_classes_and_their_neighbours(names, tmp_path, capsys):
    options = "--dataset tiny --test feature --queries 3 --neighbours 4 --gallery g.html --curve c.png"
    retrieval.main(options.split())
    assert "6 queries in 18 training videos: R@1 100.00" in capsys.readouterr().err
    page = (tmp_path / "g.html").read_text()
    assert re.findall(r'figure class="(\w+)"', page) == ["query", "right", "right", "right", "right"] * 3
    shown = re.findall(r'title="(Class\d)/', page)
    assert shown == ["Class0"] * 5 + ["Class1"] * 5 + ["Class2"] * 5
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_features_without_names_or_of_another_database_show_nothing(names, tmp_path, capsys):
    tool = ["--dataset", "tiny", "--test", "feature", "--gallery", "g.html"]
    other = make_dataset(tmp_path / "other/tiny", per_class=4, frames=12, size=24)
    with pytest.raises(SystemExit, match="2"):
        retrieval.main([*tool, "--data_root", "other"])
    assert f"{other.relative_to(tmp_path)}/rgb.lmdb lacks the video" in capsys.readouterr().err
    for path in (tmp_path / "feature").glob("*names.json"):
        path.unlink()
    with pytest.raises(SystemExit, match="2"):
        retrieval.main(tool)
    assert "come without names, so no pictures" in capsys.readouterr().err
    assert not (tmp_path / "g.html").exists()

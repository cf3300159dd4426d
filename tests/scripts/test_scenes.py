import pytest
import torch

from eval.features import Features, save_features
from scripts.evidence.scenes import SCENES, main, measure


def test_what_the_nearest_video_shares_is_counted():
    features = torch.tensor([[1.0, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]])
    features = Features(features, torch.tensor([0, 0, 1, 1]), None)
    assert measure(features, ["a", "a", "b", "b"]) == [100, 100, 0]  # each class has one scene
    assert measure(features, ["a", "b", "b", "a"]) == [0, 100, 100]


@pytest.mark.parametrize(
    ("name", "video", "scene"),
    [
        ("ut_interaction", "ut_interaction-Hugging/v_Hugging_set2_seq13_14", "set2_seq13"),
        ("arid6", "arid6-Stand/Stand_2_8", "2"),
    ],
)
def test_the_names_of_videos_tell_scenes(name, video, scene):
    assert SCENES[name].search(video)[1] == scene


def test_the_table_has_a_row_of_each_network(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "no features of ut_interaction here" in capsys.readouterr().err
    names = {
        "ut_interaction": [f"ut_interaction-Hugging/v_Hugging_set1_seq0{i}_0" for i in range(2)],
        "arid6": [f"arid6-Sit/Sit_{i}_0" for i in range(2)],
    }
    for seed, method in enumerate(("random", "InfoNCE", "InfoNCE")):
        folder = tmp_path / f"log-pretrain/{seed}/model/feature-real"
        for name, videos in names.items():
            part = Features(torch.eye(2), torch.zeros(2, dtype=torch.long), videos)
            provenance = {"stream": "rgb", "dataset": name, "origin": {"method": method}}
            save_features(folder, name, {"train": part}, provenance)
    main([])
    rows = capsys.readouterr().out.splitlines()
    assert rows.count("| rgb, random | 0.0 | 100.0 | 100.0 |") == 2
    assert rows.count("| rgb, InfoNCE | 0.0 ± 0.0 (n=2) | 100.0 ± 0.0 (n=2) | 100.0 ± 0.0 (n=2) |") == 2

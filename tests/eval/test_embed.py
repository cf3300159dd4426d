"""Features of a folder without labels or lists, and what is most like a video, as a user asks for them."""

import re

import numpy as np
import pytest
import torch
from footage import picture, write_video

from backbone.select_backbone import select_backbone
from dataset.augmentation import evaluation_input
from dataset.clips import test_windows as windows_of
from dataset.crop import crop_resize
from dataset.decode import decode_video
from eval import embed

SMALL = ("--seq_len", "8", "--img_dim", "32", "-j", "0", "--batch_size", "4")
FRAMES = {"b/deep/er": 20, "a": 13, "c": 5}  # the last is shorter than a window


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch):
    """A working folder with ./videos, files of any depth of which one is broken, and a.tar, a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COCLR_CACHE", str(tmp_path / "cache"))
    for seed, (name, frames) in enumerate(FRAMES.items()):
        write_video(tmp_path / f"videos/{name}.avi", [picture(seed, 2 * t) for t in range(frames)])
    (tmp_path / "videos/broken.mp4").write_bytes(b"no video")
    (tmp_path / "videos/notes.txt").write_text("no labels")
    save_network()
    return tmp_path


def save_network(path="a.tar", name="s3d", **entries):
    torch.manual_seed(1)
    backbone, _ = select_backbone(name)
    state = {f"encoder_q.0.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, **entries}, path)
    return backbone.eval()


def run(*words):
    embed.main(["videos", "--weights", "a.tar", *SMALL, *words])


def features(path="features.npz"):
    with np.load(path) as file:
        return dict(file)


@torch.no_grad()
def slow(path) -> list[torch.Tensor]:
    """Features of the windows of one file, one at a time."""
    frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in decode_video(str(path))]
    backbone = save_network("again.tar")
    found = []
    for window in windows_of(len(frames), 8, 1):
        clip = crop_resize([frames[i] for i in window], (3, 11, 42, 42), 32)  # 42 = 48 * 224 / 256
        found.append(
            backbone(evaluation_input(clip[None], torch.tensor([False]), False)).mean(dim=(0, 2, 3, 4))
        )
    return found


def test_features_against_a_slow_loop(cwd):
    run("--windows")
    found = features()
    assert found["names"].tolist() == sorted(FRAMES)
    scale = np.abs(found["features"]).max()
    for row, name in enumerate(sorted(FRAMES)):
        expected = torch.stack(slow(cwd / f"videos/{name}.avi")).numpy()
        own = found["window_video"] == row
        np.testing.assert_allclose(found["windows"][own], expected, rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(found["features"][row], expected.mean(axis=0), rtol=0, atol=1e-4 * scale)
        assert found["window_frame"][own].tolist() == windows_of(FRAMES[name], 8, 1)[:, 0].tolist()
    run("--out", "plain.npz")
    np.testing.assert_allclose(
        features("plain.npz")["features"], found["features"], rtol=0, atol=1e-5 * scale
    )
    assert "windows" not in features("plain.npz")


def test_what_is_current_is_not_made_anew(cwd, monkeypatch):
    made, embedded = [], embed.embedded

    def counted(*args):
        made.append(args)
        return embedded(*args)

    monkeypatch.setattr(embed, "embedded", counted)
    for words, times in (((), 1), ((), 1), (("--windows",), 2), ((), 2), (("--ds", "2"), 3)):
        run(*words)
        assert len(made) == times, words
    write_video(cwd / "videos/d.avi", [picture(9)] * 9)
    run("--ds", "2")
    assert features()["names"].tolist() == ["a", "b/deep/er", "c", "d"]
    (cwd / "features.npz").write_bytes(b"PK broken")
    run("--ds", "2")
    assert features()["names"].tolist() == ["a", "b/deep/er", "c", "d"]
    assert len(made) == 5


def test_most_like_are_listed_and_shown(cwd, capsys):
    twin = write_video(cwd / "twin.avi", [picture(1, 2 * t) for t in range(13)])  # of a
    run("--like", str(twin), "--neighbours", "2", "--gallery", "g.html")
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first == ["1.000", "a"]
    assert float(second[0]) < 0.9
    page = (cwd / "g.html").read_text()
    assert re.findall(r'figure class="(\w+)"', page) == ["query", "unknown", "unknown"]
    assert ">a (1.00)<" in page
    (cwd / "videos/e").mkdir()
    twin.rename(cwd / "videos/e/twin.avi")
    run("--like", "videos/a.avi")  # of the folder: it is not its own neighbour
    assert capsys.readouterr().out.splitlines()[0] == "1.000  e/twin"


def test_network_is_that_of_the_weights(cwd):
    save_network("r50.tar", "r50")
    run("--weights", "r50.tar")
    assert features()["features"].shape == (3, 2048)


BAD = {
    "gallery of nothing": (("--gallery", "g.html"), "--gallery shows what --like FILE finds"),
    "no such query": (("--like", "nowhere.mp4"), "nowhere.mp4"),
    "broken query": (("--like", "videos/broken.mp4"), "no video of videos/broken.mp4 can be decoded"),
    "several queries": (("--like", "videos"), "--like videos holds . videos; name one"),
    "no such weights": (("--weights", "nowhere.tar"), "no checkpoint at nowhere.tar"),
    "place": (("--out", "a.tar/features.npz"), "a.tar: Not a directory; .*--out"),
    "place of gallery": (
        ("--like", "videos/a.avi", "--gallery", "a.tar/g.html"),
        "a.tar: Not .*; .*--gallery",
    ),
    "released, offline": (
        ("--weights", "CoCLR-ucf101-rgb", "--offline"),
        "CoCLR-ucf101-rgb is not in the cache; put https",
    ),
    "flow": (("--weights", "flow.tar"), "flow.tar are of optical flow, which video files have not"),
    "reversed": (("--weights", "reversed.tar"), "reversed.tar are of optical flow"),
    "small": (("--img_dim", "8"), "too small"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(cwd, case, capsys):
    options, message = BAD[case]
    save_network("flow.tar", options={"dataset": "ucf101-f-2clip"})
    save_network("reversed.tar", options={"dataset": "ucf101-2stream-2clip", "reverse": True})
    with pytest.raises(SystemExit, match="2"):
        run(*options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"^error: .*{message}", last), last
    assert not (cwd / "features.npz").exists()

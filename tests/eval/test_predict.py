"""Averages over windows, crops and mirror images against a slow transcription; batches change nothing."""

import argparse
import os
import signal
import threading

import numpy as np
import pytest
import torch
from databases import make_dataset, write_database
from torchvision.transforms.v2 import functional as tv

from backbone.select_backbone import select_backbone
from dataset import window_dataset
from dataset.clips import test_windows as windows_of
from dataset.crop import crop_resize
from dataset.jpeg import decode
from dataset.registry import Videos, open_videos
from eval.predict import fold_batch_norms, in_threads, predict
from utils.errors import UserError, plain_words
from utils.launch import World

CPU = World(0, 1, torch.device("cpu"))
CLASSES = 5


def classify(clips):
    """A small network whose result depends on every pixel and frame; softmax over five classes."""
    weight = torch.randn(clips[0].numel(), CLASSES, generator=torch.Generator().manual_seed(0)) / 20
    return (clips.flatten(1) @ weight).softmax(dim=1)


def options(batch_size, seq_len=8, workers=0):
    return argparse.Namespace(
        dataset="tiny",
        seq_len=seq_len,
        ds=1,
        img_dim=16,
        batch_size=batch_size,
        workers=workers,
        precision="fp32",
        channels_last=False,
    )


def open_tiny(root):
    return open_videos("tiny", "test", 8, 1, root)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root / "tiny", per_class=12, frames=34, size=40)
    return root


def slow(videos, index: int, crops: str) -> torch.Tensor:
    """Mean probability of one video: a loop over windows, crops and mirror images."""
    frames = int(videos.frames[index])
    jpegs = videos.stores["rgb"].read_frames(int(videos.positions["rgb"][index]), list(range(frames)))
    images = [decode(j) for j in jpegs]
    results = []
    for window in windows_of(frames, 8, 1):
        for flip in (False, True) if crops == "ten" else (False,):
            chosen = [np.ascontiguousarray(images[i][:, ::-1]) if flip else images[i] for i in window]
            boxes = [(0, 0, 35, 35), (0, 5, 35, 35), (5, 0, 35, 35), (5, 5, 35, 35), (2, 2, 35, 35)]
            for box in boxes if crops != "center" else boxes[4:]:
                if flip:  # the mirrored centre of an odd margin is one pixel off
                    box = (box[0], 40 - box[1] - 35, 35, 35)
                clip = crop_resize(chosen, box, 16).permute(0, 3, 1, 2) / 255  # [T, 3, S, S]
                clip = tv.normalize(clip, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
                results.append(classify(clip.transpose(0, 1)[None])[0])
    return torch.stack(results).mean(dim=0)


@pytest.mark.parametrize("crops", ["center", "five", "ten"])
def test_mean_of_all_windows_and_crops(root, crops):
    videos = open_tiny(root)
    means, readable = predict(classify, CLASSES, videos, options(7), CPU, crops)
    assert readable.names == videos.names
    assert list(means) == ["center", "five", "ten"][: ("center", "five", "ten").index(crops) + 1]
    for index in range(len(videos)):
        for name, mean in means.items():
            torch.testing.assert_close(mean[index], slow(videos, index, name), atol=1e-5, rtol=0)
    assert means["center"].std(dim=0).min() > 1e-3  # the videos differ, so this was not vacuous


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_changes_nothing(root, batch_size, monkeypatch):
    videos = open_tiny(root)
    expected, _ = predict(classify, CLASSES, videos, options(32), CPU, "ten")
    monkeypatch.setattr(window_dataset, "WINDOWS_PER_ITEM", 2)
    sizes = []

    def recorded(clips):
        sizes.append(len(clips))
        return classify(clips)

    means, _ = predict(recorded, CLASSES, videos, options(batch_size), CPU, "ten")
    assert list(means) == ["center", "five", "ten"]
    for name in means:
        torch.testing.assert_close(means[name], expected[name], atol=1e-5, rtol=0)
    total = 10 * sum(len(windows_of(int(frames), 8, 1)) for frames in videos.frames)
    assert sum(sizes) == total  # every window once
    assert max(sizes) <= batch_size
    assert len(set(sorted(sizes)[1:])) <= 1  # all full but the last, whichever thread had it


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_work_at_once_and_results_keep_their_order(threads):
    together, before = threading.Barrier(threads, timeout=60), torch.get_num_threads()

    def square(value):
        together.wait()  # passes only when as many are here
        return value * value

    assert list(in_threads(square, range(12), threads)) == [value * value for value in range(12)]
    assert torch.get_num_threads() == before


def test_video_with_an_unreadable_part_is_left_out(root, tmp_path, monkeypatch, caplog):
    store = open_tiny(root).stores["rgb"]
    names = open_tiny(root).names[:2]
    frames = [store.read_frames(store.names.index(name), list(range(34))) for name in names]
    frames[1][32] = b"broken"  # in the last window alone
    write_database(tmp_path / "bad/rgb.lmdb", dict(zip(names, frames, strict=True)))
    (tmp_path / "bad/split.csv").write_text("".join(f"{name},test\n" for name in names))
    monkeypatch.setattr(window_dataset, "WINDOWS_PER_ITEM", 4)
    videos = open_videos("bad", "test", 7, 1, tmp_path)
    with caplog.at_level("WARNING", "coclr"):
        means, readable = predict(classify_7, CLASSES, videos, options(3, seq_len=7), CPU)
    assert readable.names == names[:1]
    assert means["center"].shape == (1, CLASSES)
    assert means["center"].isfinite().all()


def test_a_row_for_each_window(root, monkeypatch):
    monkeypatch.setattr(window_dataset, "WINDOWS_PER_ITEM", 3)
    videos = open_tiny(root)
    means, _ = predict(classify, CLASSES, videos, options(5), CPU)
    windows, _ = predict(classify, CLASSES, videos, options(5), CPU, per_window=True)
    counts = [len(windows_of(int(frames), 8, 1)) for frames in videos.frames]
    rows = windows["center"].split(counts)
    assert min(counts) > 3
    for mean, own in zip(means["center"], rows, strict=True):
        torch.testing.assert_close(own.mean(dim=0), mean, atol=1e-6, rtol=0)
    assert max(own.std(dim=0).max() for own in rows) > 1e-3  # windows differ where something moves
    second = videos.subset(np.array([1]))
    alone, _ = predict(classify, CLASSES, second, options(1), CPU, per_window=True)
    torch.testing.assert_close(alone["center"], rows[1], atol=1e-6, rtol=0)


def test_middle_window_alone(root):
    videos = open_tiny(root)
    windows, _ = predict(classify, CLASSES, videos, options(5), CPU, per_window=True)
    rows = windows["center"].split([len(windows_of(int(frames), 8, 1)) for frames in videos.frames])
    middle, _ = predict(classify, CLASSES, videos, options(5), CPU, "middle")
    for mean, own in zip(middle["center"], rows, strict=True):
        torch.testing.assert_close(mean, own[len(own) // 2], atol=1e-6, rtol=0)


def test_windows_of_a_video_with_an_unreadable_part_are_all_left_out(root, tmp_path, monkeypatch):
    monkeypatch.setattr(window_dataset, "WINDOWS_PER_ITEM", 4)
    frames = [b"broken"] * 34
    store = open_tiny(root).stores["rgb"]
    frames[:30] = store.read_frames(0, list(range(30)))
    write_database(tmp_path / "bad/rgb.lmdb", {"A/whole": frames[:20], "A/broken": frames})
    (tmp_path / "bad/split.csv").write_text("A/whole,test\nA/broken,test\n")
    videos = open_videos("bad", "test", 8, 1, tmp_path)
    windows, readable = predict(classify, CLASSES, videos, options(3), CPU, per_window=True)
    assert readable.names == ["A/whole"]
    assert windows["center"].shape == (len(windows_of(20, 8, 1)), CLASSES)


def test_nothing_readable_is_one_clear_error(root, tmp_path):
    write_database(tmp_path / "bad/rgb.lmdb", {"A/a": [b"broken"] * 20})
    (tmp_path / "bad/split.csv").write_text("A/a,test\n")
    with pytest.raises(UserError, match="none of the 1 videos could be read"):
        predict(classify, CLASSES, open_videos("bad", "test", 8, 1, tmp_path), options(3), CPU)


def test_killed_loader_process_is_an_error_not_a_hang(root, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Videos, "read_clips", killed)
    with pytest.raises(RuntimeError) as error:
        predict(classify, CLASSES, open_tiny(root), options(3, workers=1), CPU)
    assert "lower -j" in plain_words(error.value)


def classify_7(clips):
    return classify(torch.cat([clips, clips[:, :, :1]], dim=2))


@pytest.mark.parametrize("network", ["s3d", "s3dg", "r50"])
def test_folded_network_computes_the_same(network):
    torch.manual_seed(0)
    model = select_backbone(network)[0].eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):  # not the identity
            module.running_mean.normal_(0, 0.01)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    clips = torch.randn(2, 3, 8, 32, 32)
    fast = fold_batch_norms(model)
    with torch.no_grad():
        expected = model(clips)
        torch.testing.assert_close(fast(clips), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    left, before = (sum(isinstance(m, torch.nn.BatchNorm3d) for m in net.modules()) for net in (fast, model))
    assert left == (4 if network == "r50" else 0)  # on its four shortcuts
    assert before > 50  # the network itself keeps its own

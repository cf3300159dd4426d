import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from footage import extract_frames, picture, rgb_image, write_video
from PIL import Image

from dataset.decode import decode_video
from dataset.footage import Video
from dataset.jpeg import decode, decode_whole
from dataset.preparation.flow import compute_flow, encode_flow
from dataset.preparation.frames import Options, frame_files, make_frames, read_flow_files, read_jpegs, resize
from dataset.store import BrokenVideo


def test_video_that_is_not_there(tmp_path):
    with pytest.raises(BrokenVideo, match="no frame of"):
        list(decode_video(str(tmp_path / "gone.avi")))


def test_a_jpeg_without_its_end_is_not_whole():
    jpeg = cv2.imencode(".jpg", picture(0))[1].tobytes()
    for whole in (jpeg, jpeg + b"\0\0"):  # padding
        assert np.array_equal(decode_whole(whole), decode(jpeg))
    for torn in (jpeg[:-2], b""):
        with pytest.raises(ValueError, match="its end is missing"):
            decode_whole(torn)


def test_resize_keeps_aspect_and_antialiases():
    image = picture(0, size=(96, 64))
    small = resize(image, 32)
    assert small.shape == (32, 48, 3)
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).max() <= 1
    assert resize(image.transpose(1, 0, 2), 32).shape == (48, 32, 3)
    assert resize(image, 128).shape == (128, 192, 3)
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::3] = 255
    assert np.unique(resize(stripes, 32)).tolist() == [85]  # a third of the light


def test_short_side_fps_quality_and_bound_reach_the_frames(tmp_path):
    video = Video("a/x", str(write_video(tmp_path / "x.avi", [picture(0, t) for t in range(30)], fps=30)))
    frames = dict.fromkeys(("rgb", "flow"), 0)
    for stream, jpeg in make_frames(video, Options(flow="dis", short_side=32, fps=10)):
        frames[stream] += 1
        assert rgb_image(jpeg).shape == (32, 43, 3)
    assert frames == {"rgb": 10, "flow": 9}
    sizes = [sum(len(jpeg) for _, jpeg in make_frames(video, Options(("rgb",), quality=q))) for q in (50, 95)]
    assert sizes[0] < 0.7 * sizes[1]
    for bound, level in ((20, 134), (5, 153)):  # one pixel to the right: 127.5 * (1 + 1 / bound)
        (flow, *_) = [j for s, j in make_frames(video, Options(("flow",), flow="dis", bound=bound))]
        assert abs(np.median(rgb_image(flow)[8:-8, 8:-8, 2].astype(int)) - level) <= 3


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(10, [0, 3, 6, 9, 12]), (20, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]), (60, list(range(15)))],
)
def test_fps_leaves_out_frames_evenly(tmp_path, fps, expected):
    grey = [np.full((32, 32, 3), 10 + 15 * t, np.uint8) for t in range(15)]
    video = Video("a/x", str(write_video(tmp_path / "x.avi", grey, fps=30)))
    assert [round((frame.mean() - 10) / 15) for frame in decode_video(video.path, fps)] == expected


def test_flow_is_that_of_the_stored_frames(tmp_path):
    video = Video("a/x", str(write_video(tmp_path / "x.avi", [picture(0, t) for t in range(3)])))
    made = list(make_frames(video, Options(quality=30)))
    assert [stream for stream, _ in made] == ["rgb", "rgb", "flow", "rgb", "flow"]
    grey = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for _, jpeg in made[:2]]
    truth = encode_flow(compute_flow(*grey, "tvl1"))[..., ::-1]
    assert made[2][1] == cv2.imencode(".jpg", truth, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()


def video(folder: Path) -> Video:
    return Video("a/v", str(folder))


def names(folder: Path) -> dict[str, list[str]]:
    return {kind: [Path(path).name for path in paths] for kind, paths in frame_files(video(folder)).items()}


def test_files_by_kind_in_the_order_of_their_numbers(tmp_path):
    extract_frames(tmp_path / "v", 12, flow="pairs")
    (tmp_path / "v/thumbnail.jpg").write_text("of another kind")
    assert names(tmp_path / "v") == {
        "rgb": [f"image_{t:05d}.jpg" for t in range(1, 13)],
        "flow_x": [f"flow_x_{t:05d}.jpg" for t in range(1, 12)],
        "flow_y": [f"flow_y_{t:05d}.jpg" for t in range(1, 12)],
    }
    for t in range(1, 13):  # numbers without zeros, from 0
        (tmp_path / f"v/image_{t:05d}.jpg").rename(tmp_path / f"v/image_{t - 1}.jpg")
        for kind in ("flow_x", "flow_y"):
            if t < 12:
                (tmp_path / f"v/{kind}_{t:05d}.jpg").rename(tmp_path / f"v/{kind}{t - 1}.JPEG")
    assert names(tmp_path / "v")["rgb"] == [f"image_{t}.jpg" for t in range(12)]
    assert names(tmp_path / "v")["flow_y"] == [f"flow_y{t}.JPEG" for t in range(11)]


@pytest.mark.parametrize(
    ("flow", "lost", "reason"),
    [
        ("", ["image_00005"], "rgb file number 5 is missing"),
        ("pairs", ["image_00005"], "rgb file number 5 is missing"),
        ("pairs", ["image_00001"], "rgb file number 1 is missing"),
        ("pairs", ["flow_x_00004", "flow_y_00006"], "flow_[xy] file number [46] is missing"),
        ("pairs", ["flow_x_00001", "flow_y_00001"], "flow_[xy] file number 1 is missing"),
        ("pairs", ["flow_y_00007"], "do not pair up"),
        ("pairs", ["flow_x_00007", "flow_y_00007"], "6 flow_[xy] files for 8 frames"),
        ("3-channel", ["flow_00003"], "flow file number 3 is missing"),
        ("3-channel", ["flow_00007"], "6 flow files for 8 frames"),
    ],
)
def test_a_lost_file_is_named(tmp_path, flow, lost, reason):
    extract_frames(tmp_path / "v", 8, flow=flow)
    for stem in lost:
        (tmp_path / f"v/{stem}.jpg").unlink()
    with pytest.raises(BrokenVideo, match=reason):
        frame_files(video(tmp_path / "v"))


def test_a_number_that_two_files_have_is_named(tmp_path):
    extract_frames(tmp_path / "v", 4)
    shutil.copy(tmp_path / "v/image_00003.jpg", tmp_path / "v/frame_3.jpg")
    with pytest.raises(BrokenVideo, match="rgb file number 3 is there twice"):
        frame_files(video(tmp_path / "v"))


def test_surplus_flow_file_is_not_taken(tmp_path):
    extract_frames(tmp_path / "v", 4, flow="pairs")
    for kind in ("flow_x", "flow_y"):
        shutil.copy(tmp_path / f"v/{kind}_00003.jpg", tmp_path / f"v/{kind}_00004.jpg")
    assert {kind: len(files) for kind, files in names(tmp_path / "v").items()} == {
        "rgb": 4,
        "flow_x": 3,
        "flow_y": 3,
    }


def test_pairs_are_merged_and_3_channel_files_kept(tmp_path):
    extract_frames(tmp_path / "pairs", flow="pairs")
    pairs = read_flow_files(video(tmp_path / "pairs"), frame_files(video(tmp_path / "pairs")), 90)
    for t, jpeg in enumerate(pairs):
        assert np.abs(rgb_image(jpeg).mean(axis=(0, 1)) - [128, 160 - t, 100 + t]).max() <= 1
    assert t == 2
    written = extract_frames(tmp_path / "whole", flow="3-channel")
    files = frame_files(video(tmp_path / "whole"))
    assert list(read_flow_files(video(tmp_path / "whole"), files, 90)) == written["flow"]


def test_torn_and_missing_files_are_named(tmp_path):
    written = extract_frames(tmp_path / "v")
    files = frame_files(video(tmp_path / "v"))["rgb"]
    assert list(read_jpegs(video(tmp_path / "v"), files)) == written["image"]
    Path(files[1]).write_bytes(written["image"][1][:-2])  # decoders forgive it
    with pytest.raises(BrokenVideo, match=r"image_00002\.jpg is not a whole JPEG"):
        list(read_jpegs(video(tmp_path / "v"), files))
    Path(files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"image_00002\.jpg"):
        list(read_jpegs(video(tmp_path / "v"), files))

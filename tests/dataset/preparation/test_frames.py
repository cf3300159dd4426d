import cv2
import numpy as np
import pytest
from footage import picture, rgb_image, write_video
from PIL import Image

from dataset.decode import decode_video
from dataset.footage import Video
from dataset.jpeg import decode, decode_whole
from dataset.preparation.flow import compute_flow, encode_flow
from dataset.preparation.frames import Options, make_frames, resize
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

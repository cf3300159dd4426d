import cv2
import numpy as np
import pytest

from dataset.preparation.flow import encode_flow
from dataset.preparation.show import contact_sheet, main
from dataset.store import pack_frames, write_store


def jpeg(image: np.ndarray) -> bytes:
    """JPEG of an RGB image."""
    return cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 100])[
        1
    ].tobytes()


@pytest.fixture
def folder(tmp_path):
    """Eleven frames that turn from black to blue; flow of 8 pixels to the right."""
    rgb = [jpeg(np.full((32, 40, 3), [0, 0, 20 * t], np.uint8)) for t in range(11)]
    flow = [jpeg(encode_flow(np.full((32, 40, 2), [8, 0], np.float32)))] * 10
    write_store(tmp_path / "rgb.lmdb", ["a/x"], lambda name: (pack_frames(rgb), 11))
    write_store(tmp_path / "flow.lmdb", ["a/x"], lambda name: (pack_frames(flow), 10))
    return tmp_path


def test_sheet_of_frames_and_flow(folder, capsys):
    main([str(folder), "a/x", "-o", str(folder / "x.png"), "--frames", "3"])
    sheet = cv2.imread(str(folder / "x.png"))[..., ::-1].astype(int)
    assert sheet.shape == (2 * 36 + 4, 3 * 44 + 4, 3)
    centers = [[sheet[36 * row + 20, 44 * column + 24] for column in range(3)] for row in range(2)]
    assert (
        np.abs(np.array(centers[0]) - [[0, 0, 0], [0, 0, 100], [0, 0, 200]]).max() <= 3
    )  # first, middle, last
    assert np.abs(np.array(centers[1]) - [255, 0, 0]).max() <= 12  # to the right, at full speed: red
    assert sheet[1, 1].tolist() == [255, 255, 255]
    assert "a full colour is 7.9 pixels per frame" in capsys.readouterr().out


def test_one_database(folder):
    main([str(folder / "flow.lmdb"), "a/x", "-o", str(folder / "f.png"), "--frames", "2"])
    assert cv2.imread(str(folder / "f.png")).shape == (40, 2 * 44 + 4, 3)


def test_images_of_different_size_are_padded():
    sheet = contact_sheet([[np.zeros((2, 3, 3), np.uint8), np.zeros((5, 1, 3), np.uint8)]])
    assert sheet.shape == (5 + 8, 2 * (3 + 4) + 4, 3)
    assert (sheet == 0).all(axis=2).sum() == 2 * 3 + 5


@pytest.mark.parametrize(
    ("video", "output", "says"),
    [
        ("a/y", "x.png", "has no video 'a/y'; there are a/x"),
        ("a/x", "gone/x.png", "cannot write"),
        ("a/x", "x.nothing", "cannot write"),
    ],
)
def test_errors_are_one_line(folder, capsys, video, output, says):
    with pytest.raises(SystemExit) as stop:
        main([str(folder), video, "-o", str(folder / output)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error

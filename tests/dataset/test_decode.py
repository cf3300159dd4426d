import itertools
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from coded import coded_frame, read_code, read_corners, write_coded
from hypothesis import example, given
from hypothesis import strategies as st

from dataset.decode import (
    Report,
    VideoFile,
    announced_size,
    decode_video,
    index_frames,
    nearest_to_ticks,
    read_frames,
)
from dataset.footage import Video
from dataset.preparation.frames import Options, make_frames
from dataset.store import BrokenVideo

ROOT = Path(__file__).parents[2]
INTERLACED = {"flags": "+ildct+ilme"}
H264_FIELDS = INTERLACED | {"x264-params": "interlaced=1:log-level=none"}


def codes(path: Path, **kwargs) -> list[int]:
    """Numbers of the frames of a video; all are whole and upright."""
    found = []
    for frame in decode_video(str(path), **kwargs):
        assert read_corners(frame) == "RGBW"
        found.append(read_code(frame))
    return found


def reason(path: Path) -> str:
    with pytest.raises(BrokenVideo) as caught:
        list(decode_video(str(path)))
    return caught.value.reason


def worst_error(path: Path, size: tuple[int, int] = (96, 64)) -> float:
    """Largest mean difference of a frame from the picture drawn with its number."""
    return max(
        np.abs(frame[..., ::-1].astype(int) - coded_frame(read_code(frame), *size)).mean()
        for frame in decode_video(str(path))
    )


def packets(path: Path) -> list[tuple[int, int]]:
    """(position in the file, bytes) of each packet of the video."""
    with av.open(str(path)) as file:
        return [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]


def spoil(path: Path, numbers: range, skip: int = 8) -> Path:
    """Overwrite packets of the video with zeros, but for their first bytes."""
    data = bytearray(path.read_bytes())
    for start, length in packets(path)[numbers.start : numbers.stop]:
        data[start + skip : start + length] = bytes(length - skip)
    path.write_bytes(data)
    return path


def shorten(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "settings"),
    [
        ("v.mp4", "libx264", {"options": {"bf": "3"}}),
        ("v.m4v", "mpeg4", {"options": {"bf": "2"}}),
        ("v.mov", "mjpeg", {"pixels": "yuvj420p"}),
        ("v.avi", "mpeg4", {}),
        ("v.avi", "libx264", {"options": {"bf": "3"}}),
        ("v.mpg", "mpeg2video", {"options": {"bf": "2"}}),
        ("v.ts", "libx264", {}),
        ("v.mkv", "ffv1", {"pixels": "yuv422p"}),
        ("v.webm", "libvpx-vp9", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
        ("v.webm", "libvpx", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
        ("v.mp4", "libsvtav1", {"options": {"preset": "8", "crf": "20"}}),
        ("v.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}),
        ("v.flv", "flv", {}),
        ("v.wmv", "wmv2", {}),
        ("v.gif", "gif", {"pixels": "rgb8"}),
    ],
)
def test_every_frame_comes_once_in_order(tmp_path, name, codec, settings):
    path = write_coded(tmp_path / name, codec=codec, **settings)
    report = Report()
    assert codes(path, report=report) == list(range(40))
    assert (report.frames, report.lost, report.concealed, report.rescaled) == (40, 0, 0, 0)
    assert report.remarks() == ""


@pytest.mark.parametrize(
    ("name", "codec", "size", "options"),
    [
        ("v.mp4", "libx264", (96, 64), H264_FIELDS),
        ("v.mkv", "mpeg2video", (96, 66), INTERLACED),  # an odd number of lines in a field
        ("v.avi", "mpeg4", (96, 64), INTERLACED),
        ("v.avi", "dvvideo", (720, 576), {}),
    ],
)
def test_interlaced_frames_are_whole_pictures(tmp_path, name, codec, size, options):
    path = write_coded(tmp_path / name, range(20), codec, size=size, options=options)
    with av.open(str(path)) as file:
        assert all(frame.interlaced_frame for frame in file.decode(video=0))
    first, second = (list(decode_video(str(path))) for _ in range(2))
    assert [read_code(frame) for frame in first] == list(range(20))
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert worst_error(path, size) < 6


def test_progressive_video_that_turns_interlaced(tmp_path):
    head = write_coded(tmp_path / "head.m2v", range(20), "mpeg2video")
    tail = write_coded(tmp_path / "tail.m2v", range(20, 40), "mpeg2video", options=INTERLACED)
    path = tmp_path / "v.m2v"
    path.write_bytes(head.read_bytes() + tail.read_bytes())
    with av.open(str(path)) as file:
        kinds = [frame.interlaced_frame for frame in file.decode(video=0)]
    assert kinds == [False] * 20 + [True] * 20
    assert codes(path) == list(range(40))
    assert worst_error(path) < 6


def copy_from(source: Path, target: Path, first: int, earlier: Fraction = Fraction(0)) -> Path:
    """Copy a video's packets from number ``first`` on, with time stamps ``earlier`` by so many seconds."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = given.streams.video[0]
        copied = made.add_stream_from_template(stream)
        ticks = int(earlier / stream.time_base)
        for packet in itertools.islice(given.demux(stream), first, None):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copied
                made.mux(packet)
    return target


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path):
    whole = write_coded(tmp_path / "whole.mp4", range(60), gop_size=30)
    path = copy_from(whole, tmp_path / "cut.mp4", 0, earlier=Fraction(18, 25))
    assert len(packets(path)) > 42
    assert codes(path) == list(range(18, 60))
    index = index_frames(str(path))
    assert len(index.pts) == 42
    assert [read_code(frame) for frame in read_frames(str(path), index, [0, 11, 12, 41])] == [18, 29, 30, 59]


@pytest.mark.parametrize(
    ("matrix", "corners"),  # x' = a x + c y, y' = b x + d y
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"),
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_rotations_and_reflections_of_the_header_are_applied(tmp_path, matrix, corners):
    path = write_coded(tmp_path / "v.mp4", range(3), sample_aspect_ratio=Fraction(4, 3))
    data = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    report = Report()
    frames = list(decode_video(str(path), report=report))
    turned = matrix[0] == 0
    assert {read_corners(frame) for frame in frames} == {corners}
    assert {frame.shape for frame in frames} == {(96, 64, 3) if turned else (64, 96, 3)}
    assert report.pixel_aspect == (Fraction(3, 4) if turned else Fraction(4, 3))


@pytest.mark.parametrize(
    ("pixels", "size", "bound"),
    [
        ("yuv420p", (96, 64), 5),
        ("yuv420p10le", (96, 64), 5),
        ("yuv444p", (95, 63), 3),
        ("yuv422p", (97, 65), 5),
        ("gray", (97, 65), 200),
    ],
)
def test_depths_greys_and_odd_sizes(tmp_path, pixels, size, bound):
    path = write_coded(tmp_path / "v.mkv", range(4), "ffv1", pixels=pixels, size=size)
    frames = list(decode_video(str(path)))
    assert [frame.shape for frame in frames] == [(size[1], size[0], 3)] * 4
    assert [frame.dtype for frame in frames] == [np.uint8] * 4
    assert [read_code(frame) for frame in frames] == [0, 1, 2, 3]
    if pixels == "gray":
        luma = coded_frame(0, *size) @ [0.299, 0.587, 0.114]
        assert np.abs(frames[0] - luma[..., None]).mean() < 2
    else:
        assert worst_error(path, size) < bound


@pytest.mark.parametrize(
    ("name", "codec"), [("v.mp4", "libx264"), ("v.avi", "mpeg4"), ("v.mpg", "mpeg2video")]
)
def test_frames_equal_those_of_opencv(tmp_path, name, codec):
    path = write_coded(tmp_path / name, range(20), codec)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for frame in decode_video(str(path)):
        assert np.abs(capture.read()[1].astype(int) - frame).mean() <= 1
    assert not capture.read()[0]


def two_sizes(folder: Path) -> Path:
    """Twenty frames of 96x64, then twenty of 192x128."""
    settings = {"codec": "mjpeg", "pixels": "yuvj420p"}
    head = write_coded(folder / "head.mjpeg", range(20), **settings)
    tail = write_coded(folder / "tail.mjpeg", range(20, 40), size=(192, 128), **settings)
    path = folder / "v.mjpeg"
    path.write_bytes(head.read_bytes() + tail.read_bytes())
    return path


def test_frames_are_of_the_size_of_the_first(tmp_path):
    path = two_sizes(tmp_path)
    report = Report()
    frames = list(decode_video(str(path), report=report))
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert [read_code(frame) for frame in frames] == list(range(40))
    assert report.rescaled == 20
    assert report.remarks() == "20 frames of another size than the first, scaled to it"
    index = index_frames(str(path))
    assert next(read_frames(str(path), index, [30])).shape == (*index.size, 3) == (64, 96, 3)


def test_pixels_that_are_not_square_are_stretched_with_the_short_side(tmp_path):
    path = write_coded(tmp_path / "v.mp4", range(3), sample_aspect_ratio=Fraction(4, 3))
    for short_side, shape in ((32, (32, 64, 3)), (None, (64, 96, 3))):
        made = make_frames(Video("a/v", str(path)), Options(("rgb",), short_side=short_side))
        assert {cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape for _, jpeg in made} == {shape}


def test_faults_are_concealed_and_counted(tmp_path):
    path = write_coded(tmp_path / "v.mp4", range(60), gop_size=20, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    for start, length in packets(path)[20:60:20]:
        data[start + length // 2 : start + length] = bytes(length - length // 2)
    path.write_bytes(data)
    report = Report()
    assert len(list(decode_video(str(path), report=report))) == 60
    assert report.concealed >= 2
    assert report.lost == 0


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.avi", "mjpeg")])
def test_an_error_does_not_end_a_video(tmp_path, name, codec):
    pixels = {"pixels": "yuvj420p"} if codec == "mjpeg" else {}
    path = spoil(write_coded(tmp_path / name, range(60), codec, gop_size=10, **pixels), range(46, 50))
    report = Report()
    frames = list(decode_video(str(path), report=report))
    assert (len(frames), report.frames, report.lost) == (56, 56, 4)
    assert report.remarks() == "4 frames that cannot be decoded"
    spoil(path, range(20, 30))
    assert "is damaged: 14 of its 60 frames cannot be decoded" in reason(path)


def test_a_conversion_that_fails_is_a_fault(tmp_path, monkeypatch):
    path = two_sizes(tmp_path)
    build = VideoFile._converter

    def fails_for_large_frames(self, frame, kind):
        if frame.width > 96:
            raise av.InvalidDataError(1, "no conversion")
        return build(self, frame, kind)

    monkeypatch.setattr(VideoFile, "_converter", fails_for_large_frames)
    found: list[int] = []
    with pytest.raises(BrokenVideo, match="is damaged: 20 of its 40"):
        found.extend(read_code(frame) for frame in decode_video(str(path)))
    assert found == list(range(20))


@example(steps=[1, 1, 1], rate=Fraction(2, 3))  # tick 1 lies between two frames
@given(steps=st.lists(st.integers(1, 50), max_size=30), rate=st.fractions(Fraction(1, 60), Fraction(2)))
def test_the_frame_nearest_to_each_tick(steps, rate):
    times = list(itertools.accumulate(steps, initial=0))
    expected = []
    for tick in range(int(times[-1] * rate) + 1):
        distances = [abs(time * rate - tick) for time in times]
        nearest = max(place for place, distance in enumerate(distances) if distance == min(distances))
        expected += [] if nearest in expected else [nearest]
    chosen = list(nearest_to_ticks(zip(times, itertools.count(), strict=False), rate))
    assert chosen == expected


def test_fps_goes_by_the_time_of_each_frame(tmp_path):
    times = [40 * t for t in range(30)] + [1200 + 120 * t for t in range(10)]
    path = write_coded(tmp_path / "v.mkv", times=times)
    assert codes(path, fps=5) == [0, 5, 10, 15, 20, 25, 30, 32, 33, 35, 37, 38]
    assert codes(path, fps=1000) == list(range(40))


def test_the_rate_that_a_file_announces_does_not_matter(tmp_path):
    path = write_coded(tmp_path / "v.webm", range(50), "libvpx", rate=1000, times=[40 * t for t in range(50)])
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 1000
    assert codes(path) == list(range(50))
    assert codes(path, fps=5) == list(range(0, 50, 5))


def test_time_stamps_that_begin_anew(tmp_path):
    head = write_coded(tmp_path / "head.mpg", range(50), "mpeg2video")
    tail = write_coded(tmp_path / "tail.mpg", range(50, 70), "mpeg2video")
    path = tmp_path / "v.mpg"
    path.write_bytes(head.read_bytes() + tail.read_bytes())
    assert codes(path) == list(range(70))
    assert codes(path, fps=5) == list(range(0, 70, 5))


def test_what_precedes_the_first_key_frame_is_not_missed(tmp_path):
    whole = write_coded(tmp_path / "whole.webm", range(60), "libvpx-vp9", gop_size=20)
    path = copy_from(whole, tmp_path / "v.webm", 9)
    report = Report()
    assert codes(path, report=report) == list(range(20, 60))
    assert report.lost == 0


def test_a_gap_between_frames_beside_sound(tmp_path):
    times = [40 * t for t in range(25)] + [100_000 + 40 * t for t in range(25)]
    path = write_coded(tmp_path / "v.mp4", range(50), times=times, sound=102)
    assert codes(path) == list(range(50))
    assert codes(path, fps=1) == [0, 24, 25]


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("v.mp4", "libx264", {"movflags": "faststart"}),
        ("v.mkv", "libx264", {}),
        ("v.webm", "libvpx", {}),
        ("v.avi", "mpeg4", {}),
        ("v.wmv", "wmv2", {}),
    ],
)
def test_what_is_cut_short(tmp_path, name, codec, container):
    path = write_coded(tmp_path / name, range(200), codec, container=container, gop_size=100)
    assert len(codes(shorten(path, 0.99))) > 190
    assert "is cut short" in reason(shorten(path, 0.6))


def test_an_index_that_a_cut_took_away(tmp_path):
    path = shorten(write_coded(tmp_path / "v.mp4"), 0.6)
    assert "it is cut short, before its index" in reason(path)


@pytest.mark.parametrize("container", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_sound_that_goes_on_does_not_make_a_video_short(tmp_path, container):
    path = write_coded(tmp_path / "v.mp4", sound=10, container=container)
    assert codes(path) == list(range(40))


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_an_avi_whose_recorder_did_not_finish_it(tmp_path, length):
    path = write_coded(tmp_path / "v.avi", codec="mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    for field, value in {
        4: length,
        data.index(b"avih") + 24: 1 << 31,
        data.index(b"strh") + 40: 1 << 31,
    }.items():
        struct.pack_into("<I", data, field, value)
    path.write_bytes(data)
    assert codes(path) == list(range(40))
    assert len(list(decode_video(str(spoil(path, range(7, 9)))))) == 38


def test_chunks_without_data_are_no_frames(tmp_path):
    times = [40 * t for t in (0, 1, 2, 3, 10, 20, 30, 31, 32, 33)]
    path = write_coded(tmp_path / "v.avi", range(10), "mpeg4", times=times)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames > 20
    assert codes(path) == list(range(10))


def test_lengths_that_parts_of_files_announce(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"ab")
    assert announced_size(path, lambda head: 7) == 7
    assert announced_size(path, lambda head: 0) == 2
    assert announced_size(path, lambda head: 1 << 60) == 2


def test_a_codec_without_a_decoder_is_named_with_a_remedy(tmp_path):
    path = write_coded(tmp_path / "v 1.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"evc1"))
    level = av.logging.get_level()
    said = reason(path)
    assert f"no frame of {path} can be decoded (codec evc" in said
    assert f"ffmpeg -i '{path}' -an -c:v libx264 -crf 18 OUT.mp4" in said
    assert av.logging.get_level() == level


def test_files_that_are_no_videos(tmp_path):
    for name, content in {
        "text.avi": b"hello\n" * 1000,
        "empty.mp4": b"",
        "about.nfo": b"a film\n" * 999,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name).startswith(f"no frame of {tmp_path / name} can be decoded")
    assert "No such file" in reason(tmp_path / "gone.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as file:
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        file.mux(file.add_stream("pcm_s16le", rate=8000, layout="mono").encode(frame))
    assert reason(tmp_path / "sound.mkv").endswith("can be decoded: no video in it, but audio")
    assert "fewer than two frames" in reason(write_coded(tmp_path / "one.mp4", [7]))


@pytest.mark.parametrize(
    ("name", "codec", "options", "keys"),
    [
        ("v.mp4", "libx264", {"sc_threshold": "0"}, 6),
        ("v.webm", "libvpx-vp9", {}, 6),
        ("v.avi", "mpeg4", {}, 6),
        ("v.ts", "libx264", {"sc_threshold": "0"}, 6),
        ("v.mp4", "libsvtav1", {"preset": "8", "crf": "20"}, 1),
    ],
)
def test_reading_from_key_frames_on_equals_decoding_all(tmp_path, monkeypatch, name, codec, options, keys):
    path = write_coded(tmp_path / name, range(60), codec, gop_size=10 if keys > 1 else 60, options=options)
    frames = [frame.copy() for frame in decode_video(str(path))]
    index = index_frames(str(path))
    assert (len(index.pts), len(index.keys), index.size) == (60, keys, (64, 96))
    opened = []
    enter = VideoFile.__enter__
    monkeypatch.setattr(VideoFile, "__enter__", lambda self: (opened.append(self), enter(self))[1])
    for numbers in ([0], [59], [9, 10], [20, 23, 59], [35, 36, 37, 38]):
        read = list(read_frames(str(path), index, numbers))
        assert all(np.array_equal(frames[number], frame) for number, frame in zip(numbers, read, strict=True))
        assert len(opened) == 1
        opened.clear()


def test_a_damaged_video_is_read_as_it_is_decoded(tmp_path):
    settings = {"size": (320, 240), "gop_size": 20, "options": {"bf": "3", "crf": "10"}}
    path = write_coded(tmp_path / "v.mp4", range(60), **settings)
    data = bytearray(path.read_bytes())
    for start, length in packets(path)[20:60:20]:
        data[start + length // 2 : start + length // 2 + 12] = bytes(range(1, 13))
    path.write_bytes(data)
    frames = [frame.copy() for frame in decode_video(str(path))]
    index = index_frames(str(path))
    for number in range(0, 60, 3):
        assert np.array_equal(next(read_frames(str(path), index, [number])), frames[number])


def test_reading_does_not_decode_from_the_beginning(tmp_path):
    path = write_coded(tmp_path / "v.mp4", range(60), gop_size=10)
    index = index_frames(str(path))
    spoil(path, range(0, 30))
    assert [read_code(frame) for frame in read_frames(str(path), index, [45, 46])] == [45, 46]


def test_frames_keep_their_numbers_where_time_stamps_changed(tmp_path):
    path = write_coded(tmp_path / "v.mkv", range(60), gop_size=10)
    index = index_frames(str(path))
    write_coded(path, range(60), gop_size=10, rate=30)
    assert [read_code(frame) for frame in read_frames(str(path), index, [45, 46])] == [45, 46]


def test_an_index_of_another_file_is_noticed(tmp_path):
    index = index_frames(str(write_coded(tmp_path / "long.mp4", range(60), gop_size=10)))
    path = write_coded(tmp_path / "short.mp4", range(20))
    with pytest.raises(BrokenVideo, match="make the index anew"):
        list(read_frames(str(path), index, [55]))


def test_nothing_reaches_the_terminal_and_no_thread_is_started(tmp_path):
    damaged = spoil(write_coded(tmp_path / "a.mp4", range(60), gop_size=10), range(40, 44))
    path = write_coded(tmp_path / "b.webm", range(60), "libvpx-vp9")
    program = (
        "import os, sys\n"
        "from dataset.decode import decode_video\n"
        "threads = len(os.listdir('/proc/self/task'))\n"
        "for path in sys.argv[1:]:\n"
        "    for _ in decode_video(path):\n"
        "        assert len(os.listdir('/proc/self/task')) == threads\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(damaged), str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

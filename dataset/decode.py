"""Video files to frames, as FFmpeg shows them: upright, in order, none repeated or dropped. One thread.

What FFmpeg decodes is what counts: frames that an edit list hides are not shown, what a decoder conceals is
shown and counted, announced numbers of frames and rates are not believed. Interlaced video stays as it is,
two fields in a frame.
"""

import contextlib
import math
import os
import re
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.stream import Disposition

from dataset.source import BrokenVideo

TIMED = ("mov", "matroska", "flv", "asf")  # containers whose duration does not follow from what is there
TEXT_ART = ("tty", "bin", "xbin", "adf", "idf")  # what FFmpeg takes notes beside videos for
ENOUGH = 0.9  # a video of which a smaller share decodes is left out
SEGMENT = b"\x18\x53\x80\x67"  # what holds everything else in a Matroska file
SEEK_BEFORE = Fraction(1, 2)  # seconds: in MPEG streams, seeking finds the key frame after the time given
LONGEST = 1 << 40  # bytes of a part of a file; what says more is damaged


@dataclass
class Report:
    """What one pass over a video file met."""

    frames: int = 0  # shown
    lost: int = 0  # packets or frames of which no picture could be made
    concealed: int = 0  # frames in which the decoder concealed faults
    rescaled: int = 0  # frames of another size than the first, scaled to it
    pixel_aspect: Fraction = Fraction(1)  # width by height of a pixel, upright

    def remarks(self) -> str:
        """What is to be said of the video, if anything."""
        faults = {
            "with faults that the decoder concealed": self.concealed,
            "that cannot be decoded": self.lost,
            "of another size than the first, scaled to it": self.rescaled,
        }
        remarks = [f"{count} frames {what}" for what, count in faults.items() if count]
        if self.pixel_aspect != 1:
            remarks.append(f"pixels of {self.pixel_aspect} (width by height), square with --short_side")
        return "; ".join(remarks)


def decode_video(path: str, fps: float | None = None, report: Report | None = None) -> Iterator[np.ndarray]:
    """Frames that a video file shows: BGR, uint8 [H, W, 3], of the size of the first.

    Args:
        fps: give the frame nearest to each tick of this rate, by their time stamps, none twice; None: every
            frame.
        report: filled in on the way.

    Raises BrokenVideo if nothing can be decoded or, once the frames that can are given, if they are fewer
    than two or than 90 % of those that the file would show, with those that a cut took away.
    """
    with VideoFile(path, report) as video:
        frames = video.frames()
        if fps is not None:
            frames = nearest_to_ticks(video.with_times(), Fraction(fps) * video.stream.time_base)
        for frame in frames:
            picture = video.picture(frame)
            if picture is not None:
                yield picture
        video.check()


@dataclass(frozen=True)
class FrameIndex:
    """Where the frames of a video file are.

    Args:
        pts: time stamps of the frames in order, int64 [N]; -1 where decoding must begin at the first frame.
        keys: numbers of the frames at which decoding can begin, int64 [K]; the first is 0.
        size: (height, width) of every frame.
    """

    pts: np.ndarray
    keys: np.ndarray
    size: tuple[int, int]

    def is_timed(self) -> bool:
        """Whether every frame has a time stamp of its own, which rise."""
        return bool((np.diff(self.pts) > 0).all()) and -1 not in self.pts


def index_frames(path: str, report: Report | None = None) -> FrameIndex:
    """Index of the frames that ``decode_video(path)`` gives; raises BrokenVideo where that does.

    Decodes the whole file: which frames it shows, and whether they can be decoded, is not known without.
    """
    with VideoFile(path, report) as video:
        frames = [(frame.pts, frame.key_frame) for frame in video.frames()]
        video.check()
    pts = np.array([-1 if pts is None else pts for pts, _ in frames], np.int64)
    keys = np.array([number for number, (_, key) in enumerate(frames) if key or number == 0])
    index = FrameIndex(pts, keys, video.size)
    if index.is_timed() and video.report.lost + video.report.concealed == 0:
        return index
    return FrameIndex(np.full_like(pts, -1), keys[:1], video.size)  # concealment depends on all before it


def read_frames(path: str, index: FrameIndex, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames ``numbers``, which rise, as ``decode_video`` counts and gives them: decodes from a key frame on.

    Raises BrokenVideo if the file has not the frames of ``index``.
    """
    wanted = list(numbers)
    for seek in (True, False) if index.is_timed() else (False,):  # where seeking fails, from the beginning
        with VideoFile(path, size=index.size) as video:
            numbered = video.with_numbers(index, wanted) if seek else enumerate(video.frames())
            for number, frame in numbered:
                if number < wanted[0]:
                    continue
                picture = video.picture(frame) if number == wanted[0] else None
                if picture is None:  # it was passed over, or there is no picture of it
                    break
                yield picture
                del wanted[0]
                if not wanted:
                    return
    raise BrokenVideo(path, f"frame {wanted[0]} of {path} is not where its index says; make the index anew")


def nearest_to_ticks(frames: Iterable[tuple[int, av.VideoFrame]], ticks: Fraction) -> Iterator[av.VideoFrame]:
    """Those of the (time, frame) pairs nearest to tick 0, 1, ..., none twice; of two as near the later one.

    Args:
        ticks: per unit of the times, which do not fall; the first of them is 0.
    """
    previous, tick = None, 0  # tick: the first that has no frame yet
    for pair in frames:
        if previous is not None:
            middle = (previous[0] + pair[0]) * ticks / 2
            if tick < middle:
                yield previous[1]
                tick = math.ceil(middle)
        previous = pair
    if previous is not None and tick <= previous[0] * ticks:
        yield previous[1]


class VideoFile:
    """A video file opened for one pass. Raises BrokenVideo if it is none, or FFmpeg has no decoder for it.

    Args:
        size: (height, width) of all pictures; None: that of the first frame, upright.
    """

    def __init__(self, path: str, report: Report | None = None, size: tuple[int, int] | None = None):
        self.path = path
        self.size = size
        self.report = report or Report()
        self._start: int | None = None  # time stamp of the first frame
        self._end: int | None = None  # and of the end of the last
        self._begun = False
        self._fault = ""  # the last
        self._torn = False  # reading failed before the end
        self._needed: set[int] | None = None  # time stamps of the frames that are asked for, if not all are
        self._graph = self._graph_input = None
        with _messages(av.logging.ERROR) as messages:
            try:
                self.container = av.open(os.path.abspath(path), metadata_errors="replace")
            except av.FFmpegError as error:
                cut = any("moov atom not found" in message for _, _, message in messages)
                reason = "it is cut short, before its index (moov)" if cut else error.strerror
                raise BrokenVideo(path, f"no frame of {path} can be decoded: {reason}") from error
        self.stream = self._best_stream()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    def _best_stream(self) -> av.VideoStream:
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or self.container.format.name in TEXT_ART:
            kinds = ", ".join(stream.type for stream in self.container.streams)
            reason = f"no frame of {self.path} can be decoded: no video in it, but {kinds}"
            raise BrokenVideo(self.path, reason)
        best = self.container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            with _messages(av.logging.INFO):
                described = re.search(r"Video: ([^,]+)", self.container.dumps_format())
            raise self._undecodable(described[1] if described else "unknown")
        stream.thread_count = 1
        stream.thread_type = "NONE"
        return stream

    def _undecodable(self, codec: str) -> BrokenVideo:
        fault = f"no frame of {self.path} can be decoded (codec {codec}{self._fault})"
        remedy = f"ffmpeg -i {shlex.quote(self.path)} -an -c:v libx264 -crf 18 OUT.mp4"
        return BrokenVideo(self.path, f"{fault}; a full FFmpeg may convert it: {remedy}")

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in the order shown, as they are decoded; faults are counted."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield from self._decode(packet)
        except av.InvalidDataError:
            self._torn = True
        except av.FFmpegError as error:
            raise BrokenVideo(self.path, f"reading {self.path} failed: {error.strerror}") from error
        yield from self._decode(av.Packet())  # what the decoder holds back

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        self._begun |= packet.is_keyframe  # what precedes the first key frame nobody can show
        if self._needed is not None:  # of the others those are decoded that others follow from
            is_needed = packet.pts is None or packet.pts in self._needed
            self.stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            self._fault = f": {error.strerror}"
            self.report.lost += self._begun and not packet.is_discard
            return []
        for frame in frames:
            self.report.frames += 1
            self.report.concealed += frame.is_corrupt
            if self.size is None:
                self._describe(frame)
        if frames and frames[-1].pts is not None:
            self._end = frames[-1].pts + (frames[-1].duration or self._ticks_per_frame())
        return frames

    def _describe(self, first: av.VideoFrame) -> None:
        aspect = Fraction(self.stream.sample_aspect_ratio or 1)
        *_, transposed = _orientation(first)
        self.size = (first.width, first.height) if transposed else (first.height, first.width)
        self.report.pixel_aspect = 1 / aspect if transposed else aspect
        self._start = first.pts

    def _ticks_per_frame(self) -> int:
        rate = self.stream.guessed_rate or self.stream.average_rate
        return round(1 / (rate * self.stream.time_base)) if rate else 1

    def with_times(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """``frames`` with their time in ticks of the stream; where time stamps begin anew, time goes on."""
        time, previous, step = 0, None, 0
        for frame in self.frames():
            pts = frame.pts
            if previous is not None:
                rises = pts is not None and pts > previous
                time += pts - previous if rises else step
            previous = pts if pts is not None else (previous or 0) + step
            step = frame.duration or self._ticks_per_frame()
            yield time, frame

    def with_numbers(self, index: FrameIndex, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers in ``index``, from the key frame before the ``wanted`` ones on.

        Ends at a frame that is not in the index.
        """
        key = index.keys[np.searchsorted(index.keys, wanted[0], "right") - 1]
        if self.stream.codec_context.name != "libdav1d":  # which reads skip_frame but once
            self._needed = set(index.pts[list(wanted)].tolist())
        if key > 0:
            before = SEEK_BEFORE if self.container.format.name.startswith("mpeg") else 0
            self.container.seek(int(index.pts[key] - before / self.stream.time_base), stream=self.stream)
        for frame in self.frames():
            number = -1 if frame.pts is None else int(np.searchsorted(index.pts, frame.pts))
            if not 0 <= number < len(index.pts) or index.pts[number] != frame.pts:
                return
            yield number, frame

    def picture(self, frame: av.VideoFrame) -> np.ndarray | None:
        """A frame as BGR, uint8 [H, W, 3], upright, of the first's size; None, and counted, if that fails."""
        kind = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
        kind += f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        try:
            if kind != self._graph_input:
                self._graph, self._graph_input = self._converter(frame, kind), kind
            self._graph.push(frame)
            picture = self._graph.pull()
        except av.FFmpegError as error:
            self._fault, self._graph_input = f": {error.strerror}", None
            self.report.frames -= 1
            self.report.lost += 1
            return None
        self.report.rescaled += not self._keeps_size
        return picture.to_ndarray()

    def _converter(self, frame: av.VideoFrame, kind: str) -> av.filter.Graph:
        """The filters by which FFmpeg's own command turns frames upright and into bgr24."""
        across, down, transposed = _orientation(frame)
        upright = (frame.width, frame.height) if transposed else (frame.height, frame.width)
        self._keeps_size = self.size == upright
        height, width = self.size
        filters = [
            (True, "buffer", kind),
            (transposed, "transpose", "cclock_flip"),
            (across < 0, "hflip", None),
            (down < 0, "vflip", None),
            (True, "scale", f"{width}:{height}"),
            (True, "format", "bgr24"),
            (True, "buffersink", None),
        ]
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(*(graph.add(name, given) for is_needed, name, given in filters if is_needed))
        graph.configure()
        return graph

    def check(self) -> None:
        """Raise BrokenVideo unless enough frames were shown, now that all that can be decoded were."""
        shown, lost = self.report.frames, self.report.lost
        if shown == 0:
            raise self._undecodable(self.stream.codec_context.name)
        if shown == 1:
            raise BrokenVideo(self.path, f"{self.path} shows fewer than two frames")
        there = self._share_there()
        if there < ENOUGH:
            raise BrokenVideo(self.path, f"{self.path} is cut short: about {there:.0%} of it is there")
        if shown < ENOUGH * (shown + lost):
            damage = f"{lost} of its {shown + lost} frames cannot be decoded"
            raise BrokenVideo(self.path, f"{self.path} is damaged: {damage}")

    def _share_there(self) -> float:
        """How much there is of a file that ends before its parts do, or where reading failed; else 1.0."""
        container = self.container.format.name.split(",")[0]
        size = os.path.getsize(self.path)
        announced = announced_size(self.path, PART_LENGTHS[container]) if container in PART_LENGTHS else size
        if not (self._torn or self.report.lost or announced > size):
            return 1.0
        duration = (self.stream.duration or 0) * self.stream.time_base
        if not duration and len(self.container.streams) == 1:
            duration = Fraction(self.container.duration or 0, av.time_base)
        if duration and container in TIMED and self._start is not None:
            return float((self._end - self._start) * self.stream.time_base / duration)
        return size / announced


@contextlib.contextmanager
def _messages(level: int) -> Iterator[list]:
    """What FFmpeg says meanwhile, which is otherwise dropped."""
    before = av.logging.get_level()
    av.logging.set_level(level)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(before)


def _orientation(frame: av.VideoFrame) -> tuple[int, int, bool]:
    """Signs of the axes of a frame as shown (across, down), and whether they are exchanged first."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return 1, 1, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(frame.side_data["DISPLAYMATRIX"]))
    return (c, b, True) if abs(b) + abs(c) > abs(a) + abs(d) else (a, d, False)


def announced_size(path: str, part_length: Callable[[bytes], int]) -> int:
    """Bytes that the top-level parts of a file say there are; those there are where they do not say."""
    size, position = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            length = part_length(file.read(24).ljust(24, b"\0"))
            if not 0 < length < LONGEST:
                break
            position += length
    return max(position, size)


def _box_length(head: bytes) -> int:
    """Length of an MP4 box by its first bytes; 0 if it does not say."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return length if head[4:8].isalnum() and length >= 8 else 0


def _chunk_length(head: bytes) -> int:
    """Of a RIFF chunk of AVI; a recorder that was stopped leaves 0 or the largest number."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length if head.startswith(b"RIFF") and 0 < length < 0xFFFFFFFF else 0


def _object_length(head: bytes) -> int:
    """Of an ASF object: after a GUID."""
    return int.from_bytes(head[16:24], "little")


def _element_length(head: bytes) -> int:
    """Of a Matroska element; its head alone for a segment that does not say: its clusters are looked at."""
    name = 9 - head[0].bit_length()  # bytes: the zero bits in front say how many follow
    digits = 9 - head[name % 9].bit_length()
    if name > 8 or digits > 8:
        return 0
    largest = (1 << 7 * digits) - 1
    length = int.from_bytes(head[name : name + digits], "big") & largest
    if length < largest:
        return name + digits + length
    return name + digits if head.startswith(SEGMENT) else 0


PART_LENGTHS = {"mov": _box_length, "avi": _chunk_length, "asf": _object_length, "matroska": _element_length}

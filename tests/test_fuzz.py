"""Any bytes where a file of ours is read: a valid result or a clear error; no crash, hang, foreign code."""

import io
import pickle
from pathlib import Path

import cv2
import lmdb
import msgpack
import numpy as np
import pytest
import torch
from databases import jpeg, write_database
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset.jpeg import decode
from dataset.splits import find_split, read_classes
from dataset.store import BrokenVideo, VideoStore
from eval.features import load_features, read_provenance
from eval.merge_2stream_prob import read_probabilities
from eval.records import read_json, read_records
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

few = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def one_clear_line(error: Exception, where: Path) -> None:
    assert str(where) in str(error)
    assert "\n" not in str(error)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """``whole`` with some bytes changed, a stretch of it overwritten or left out, or its end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(content) - 1)) if content else 0
        match draw(st.sampled_from(["byte", "header", "zeros", "noise", "leave out", "cut"])):
            case "byte":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "header":
                start = at // 4096 * 4096 + draw(st.integers(0, 31))
                content[start : start + 1] = draw(st.binary(min_size=1, max_size=1))
            case "zeros":
                content[at : at + 5000] = bytes(len(content[at : at + 5000]))
            case "noise":
                content[at : at + 64] = draw(st.binary(max_size=64))
            case "leave out":
                del content[at : at + 1000]
            case "cut":
                del content[at:]
    return bytes(content)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.lmdb"
    frames = [np.random.default_rng(0).bytes(300) for _ in range(40)]
    write_database(path, {f"c/{i}": frames[: 1 + i % 40] for i in range(150)})
    return path.read_bytes()


@few
@given(data=st.data())
def test_store(database, tmp_path, data):
    path = tmp_path / "a.lmdb"
    path.write_bytes(data.draw(damaged(database)))
    try:
        store = VideoStore(path)
    except UserError as error:
        one_clear_line(error, path)
        return
    store.frame_counts()
    for position in range(len(store)):
        try:
            frames = store.read_frames(position, range(min(store.num_frames(position), 100)))
            assert all(isinstance(frame, bytes) for frame in frames)
        except BrokenVideo as error:
            one_clear_line(error, path)


@few
@given(
    order=st.recursive(
        st.none() | st.integers(0, 9) | st.binary(max_size=9) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=5), inner),
    ),
    raw=st.binary(max_size=40),
)
def test_store_with_other_lists(tmp_path, order, raw):

    path = tmp_path / "a.lmdb"
    path.unlink(missing_ok=True)
    with lmdb.open(str(path), subdir=False, lock=False, sync=False) as env, env.begin(write=True) as txn:
        txn.put(b"__order__", msgpack.packb(order))
        txn.put(b"__vlen__", msgpack.packb(order))
        txn.put(b"__keys__", raw)
    try:
        store = VideoStore(path)
    except UserError:
        return
    assert isinstance(order, list)
    assert len(store) == len(order) == len(store.frame_counts())


lines = st.lists(
    st.sampled_from(["Class/v.avi 1", "v.avi 2", "a,train", '"', "a,test", "\x00", "é", "", " ", "a b 3"])
    | st.text(max_size=12),
    max_size=6,
).map(lambda found: "\n".join(found).encode("utf-8", "replace"))


@few
@given(
    content=lines | st.binary(max_size=60),
    name=st.sampled_from(
        ["trainlist01.txt", "testlist01.txt", "a_test_split1.txt", "split.csv", "classes.txt"]
    ),
)
def test_splits(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("lists")
    (folder / name).write_bytes(content)
    try:
        assert all(isinstance(label, str) for label in read_classes(folder, ["Class/v"]))
        parts, _ = find_split("mine", folder, ["Class/v"], 1)
        assert parts.keys() == {"train", "test"}
        assert all(isinstance(video, str) for names in parts.values() for video in names)
    except UserError as error:
        one_clear_line(error, folder)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


CHECKPOINT = {
    "epoch": 3,
    "state_dict": {"module.a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]},
    "best_acc": np.float64(0.5),
    "iteration": 9,
}


class Code:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@few
@given(data=st.data())
def test_checkpoint(tmp_path, data):
    whole = data.draw(
        st.sampled_from([saved(CHECKPOINT), saved(CHECKPOINT, _use_new_zipfile_serialization=False)])
    )
    path = tmp_path / "a.pth.tar"
    path.write_bytes(
        data.draw(damaged(whole)) if data.draw(st.booleans()) else data.draw(st.binary(max_size=200))
    )
    try:
        assert all(isinstance(key, str) for key in load_checkpoint(path)["state_dict"])
    except UserError as error:
        one_clear_line(error, path)


def test_checkpoint_whose_content_is_code(tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "a.pth.tar"
    for content in (Code(ran), {"state_dict": {"a": Code(ran)}}):
        for data in (
            saved(content),
            saved(content, _use_new_zipfile_serialization=False),
            pickle.dumps(content),
        ):
            assert b"touch" in data or b"getattr" in data
            path.write_bytes(data)
            with pytest.raises(UserError, match="not a readable checkpoint"):
                load_checkpoint(path)
    assert not ran.exists()


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "mean_prob", "what", "numbers", "dataset", "label"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@few
@given(
    content=json_like.map(lambda value: str(value).replace("'", '"').encode("utf-8", "replace"))
    | st.binary(max_size=40)
)
@example(content=b"[" * 100_000)
@example(content=b'{"a": {"mean_prob": [1' + b"0" * 5000 + b"]}}")
def test_json(tmp_path, content):
    path = tmp_path / "a_provenance.json"
    path.write_bytes(content)
    for read in (
        read_json,
        read_records,
        lambda path: read_probabilities(str(path), "a"),
        lambda path: read_provenance(path.parent, "a"),
    ):
        try:
            read(path)
        except UserError as error:
            one_clear_line(error, path)


@few
@given(data=st.data())
def test_features(tmp_path, data):
    files = {"feature": saved(torch.zeros(2, 3)), "label": saved(torch.zeros(2)), "names": b'["a/b", "a/c"]'}
    hit = data.draw(st.sampled_from(list(files)))
    other = st.sampled_from(
        [saved([1]), saved(torch.zeros(())), saved(torch.zeros(3, 2, 1)), b"[1, 2]", b"{}", b"3"]
    )
    files[hit] = data.draw(damaged(files[hit]) | other)
    for name, content in files.items():
        (tmp_path / f"d_test_{name}.{'json' if name == 'names' else 'pth.tar'}").write_bytes(content)
    try:
        found = load_features(tmp_path, "d", "test")
        assert found.features.shape[0] == len(found.labels)
    except UserError as error:
        one_clear_line(error, tmp_path)


PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PROGRESSIVE = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
HUGE = jpeg(PICTURE).replace(
    b"\x00\x18\x00\x20\x03", b"\xff\xff\xff\xff\x03", 1
)  # its header says 65535 x 65535


@few
@given(data=st.data())
def test_jpeg(data):
    content = data.draw(
        st.sampled_from([jpeg(PICTURE), PROGRESSIVE]).flatmap(damaged) | st.binary(max_size=50)
    )
    try:
        frame = decode(content)
    except ValueError:
        return
    assert frame.dtype == np.uint8
    assert frame.ndim == 3


def test_jpeg_that_claims_to_be_huge():
    assert HUGE != jpeg(PICTURE)
    with pytest.raises(ValueError, match="JPEG"):
        decode(HUGE)

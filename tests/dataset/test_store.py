import json
import multiprocessing
import os
import pickle
import tracemalloc
import uuid
from pathlib import Path

import cv2
import lmdb
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataset.store
from dataset.store import BrokenVideo, VideoStore, pack_frames, shuffled, write_store
from utils.errors import UserError

RELEASED = Path(__file__).parents[1] / "conformance" / "released_lmdb"
EXPECTED = json.loads((RELEASED / "expected.json").read_text())
NAMES = ["Hammering/b", "HammerThrow/a", "archery/c", "HammerThrow/ä 1"]


def put(path: Path, values: dict, subdir: bool = False) -> Path:
    """An LMDB with these raw values."""
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 26, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
    return path


def with_records(folder: Path, records: list[bytes]) -> VideoStore:
    names = [f"c/{i}" for i in range(len(records))]
    values = {b"__order__": msgpack.packb(names), **{b"%09d" % i: record for i, record in enumerate(records)}}
    return VideoStore(put(folder / f"{uuid.uuid4()}.lmdb", values))  # LMDB opens a file once per process


def frames_of(name: str, count: int = 5) -> list[bytes]:
    return [f"{name} {i} ".encode() * 50 for i in range(count)]


def write_names(path: Path, names: list[str] = NAMES) -> VideoStore:
    write_store(path, names, lambda name: (pack_frames(frames_of(name)), 5))
    return VideoStore(path)


@pytest.mark.parametrize(
    ("file", "counts"), [("ucf101_frame", "rgb_frames"), ("ucf101_tvl1_frame", "flow_frames")]
)
def test_reads_released_database(file, counts):
    store = VideoStore(RELEASED / f"{file}.lmdb")
    assert store.names == EXPECTED["order"]
    assert dict(zip(store.names, store.frame_counts().tolist(), strict=True)) == EXPECTED[counts]
    assert [store.num_frames(i) for i in range(18)] == store.frame_counts().tolist()
    for position, name in enumerate(store.names):
        number, last = sorted(store.names).index(name), EXPECTED[counts][name] - 1
        (jpeg,) = store.read_frames(position, [last])
        color = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean(axis=(0, 1))[::-1]
        y, x = 20 + 10 * (number % 20), 40 + 3 * last
        assert np.abs(color - ([200, y, x] if counts == "rgb_frames" else [128, x, y])).max() < 2


def test_writes_the_layout_that_the_original_reads(tmp_path):
    write_store(tmp_path / "a.lmdb", NAMES, lambda name: (pack_frames(frames_of(name)), 5))
    path = str(tmp_path / "a.lmdb")
    with lmdb.open(
        path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, meminit=False
    ) as env:
        with env.begin() as transaction:
            values = {key: msgpack.unpackb(value, raw=True) for key, value in transaction.cursor()}
    order = [name.decode() for name in values[b"__order__"]]
    assert order == shuffled(NAMES)
    assert values[b"__len__"] == 4
    assert values[b"__vlen__"] == [5] * 4
    # Hammering before HammerThrow: case does not count
    in_class_order = [order[int(key)] for key in values[b"__keys__"]]
    assert in_class_order == ["archery/c", "Hammering/b", "HammerThrow/a", "HammerThrow/ä 1"]
    assert all(values[b"%09d" % i] == frames_of(name) for i, name in enumerate(order))
    assert (tmp_path / "a.lmdb-order").read_text(encoding="utf-8").splitlines() == order
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lmdb", "a.lmdb-order"]


def test_record_is_packed_as_by_msgpack_0_6():
    # array16 and raw16, never bin: msgpack 0.6 wrote bytes as strings
    record = pack_frames([b"x" * 300] * 20)
    assert record[:6] == b"\xdc\x00\x14\xda\x01\x2c"
    assert pack_frames([b"y" * 40])[:3] == b"\x91\xda\x00"


def test_same_bytes_for_any_order_of_names_and_the_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.store, "BATCH_BYTES", 1 << 20)
    big = {
        name: pack_frames([name.encode() * 100_000]) for name in NAMES
    }  # in batches and a first map of 1 MB
    write_store(tmp_path / "a.lmdb", NAMES, lambda name: (big[name], 1))
    write_store(tmp_path / "b.lmdb", NAMES[::-1], lambda name: (big[name], 1))
    assert (tmp_path / "a.lmdb").read_bytes() == (tmp_path / "b.lmdb").read_bytes()
    store = VideoStore(tmp_path / "a.lmdb")
    assert sum(map(store.record_size, range(4))) == sum(map(len, big.values())) > 4 << 20
    assert store.read_frames(2, [0]) == [store.names[2].encode() * 100_000]


def test_writing_holds_a_batch_in_memory_not_the_database(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.store, "BATCH_BYTES", 4 << 20)
    tracemalloc.start()
    write_store(tmp_path / "a.lmdb", [f"c/{i}" for i in range(30)], lambda name: (bytes(1 << 20), 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_shuffled_is_fixed_and_not_the_class_order():
    names = [f"{label}/{i}" for label in "abc" for i in range(3)]
    order = ["a/2", "c/2", "b/2", "a/1", "b/1", "b/0", "a/0", "c/0", "c/1"]
    assert shuffled(names) == shuffled(names[::-1]) == order


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 31, 32, 255, 256, 65535, 65536]), min_size=1, max_size=20),
    use_bin=st.booleans(),
    data=st.data(),
)
def test_reads_just_these_frames_of_any_msgpack(tmp_path, sizes, use_bin, data):
    frames = [bytes([i]) * size for i, size in enumerate(sizes)]
    store = with_records(tmp_path, [msgpack.packb(frames, use_bin_type=use_bin)])
    indices = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=8))
    assert store.read_frames(0, indices) == [frames[i] for i in indices]
    assert store.num_frames(0) == len(frames)


def test_repeated_indices_share_one_object(tmp_path):
    store = with_records(tmp_path, [pack_frames(frames_of("v"))])
    a, b, c = store.read_frames(0, [3, 1, 3])
    assert a is c
    assert a != b


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(st.binary(max_size=300), max_size=20),
    use_bin=st.booleans(),
    garbage=st.binary(max_size=40),
    where=st.floats(0, 1),
    cut=st.floats(0, 1),
)
def test_any_bytes_are_frames_or_a_broken_video(tmp_path, frames, use_bin, garbage, where, cut):
    record = bytearray(msgpack.packb(frames, use_bin_type=use_bin))
    at = int(where * len(record))
    record[at : at + len(garbage)] = garbage
    records = [bytes(record), bytes(record[: int(cut * len(record))]), garbage]
    store = with_records(tmp_path, records)
    for position, value in enumerate(records):
        try:
            unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
            unpacker.feed(value)
            truth = unpacker.unpack()
        except (ValueError, TypeError, msgpack.OutOfData):
            truth = None
        if isinstance(truth, list) and truth and isinstance(truth[-1], bytes):
            assert store.read_frames(position, [len(truth) - 1]) == truth[-1:]
        if isinstance(truth, list) and truth and all(isinstance(frame, bytes) for frame in truth):
            assert store.read_frames(position, range(len(truth))) == truth
        else:
            with pytest.raises(BrokenVideo):
                store.read_frames(position, range(min(max(1, store.num_frames(position)), 99)))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"", "not a list"),
        (b"\xc0", "not a list"),
        (b"\xdd\x00\x00", "not a list"),
        (msgpack.packb({"a": 1}), "not a list"),
        (msgpack.packb([b"a", 7]), "a frame is not a string of bytes"),
        (b"\xdd\xff\xff\xff\xff", "ends before the end of frame 0 of 4294967295"),
        (b"\x92\xa1a\xc6\xff\xff\xff\xffa", "ends before the end of frame 1 of 2"),
        (b"\x92\xa1a\xda\x00", "ends"),
    ],
)
def test_broken_record_names_video_and_reason(tmp_path, record, says):
    store = with_records(tmp_path, [record])
    with pytest.raises(BrokenVideo, match=says) as caught:
        store.read_frames(0, [min(1, max(0, store.num_frames(0) - 1))])
    assert caught.value.name == "c/0"
    assert str(caught.value).startswith("c/0: ")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("index", [5, -1])
def test_index_out_of_range_is_a_broken_video(tmp_path, index):
    store = with_records(tmp_path, [pack_frames(frames_of("v"))])
    with pytest.raises(BrokenVideo, match=f"frame {index} asked of a record of 5"):
        store.read_frames(0, [0, index])


def test_frame_counts_without_vlen_come_from_the_records(tmp_path):
    values = {
        b"__order__": msgpack.packb(["c/0", "c/1", "c/2", "c/3"]),
        b"000000000": pack_frames([b"a"] * 3),
        b"000000001": msgpack.packb("text"),
        b"000000003": pack_frames([b"a"] * 70000),
    }
    store = VideoStore(put(tmp_path / "a.lmdb", values))
    assert store.frame_counts().dtype == np.int64
    assert store.frame_counts().tolist() == [3, 0, 0, 70000]
    with pytest.raises(BrokenVideo, match=r"c/2: .*no record 000000002"):
        store.num_frames(2)


def test_frame_counts_follow_keys_not_order(tmp_path):
    keys = [b"000000002", b"000000000", b"000000001"]
    values = {
        b"__order__": msgpack.packb(["c/0", "c/1", "c/2"]),
        b"__keys__": msgpack.packb(keys),
        b"__vlen__": msgpack.packb([10, 20, 30]),
    }
    assert VideoStore(put(tmp_path / "a.lmdb", values)).frame_counts().tolist() == [20, 30, 10]
    values[b"__vlen__"] = msgpack.packb([10, 20])  # does not fit: not trusted, and there are no records
    assert VideoStore(put(tmp_path / "b.lmdb", values)).frame_counts().tolist() == [0, 0, 0]


def test_database_in_a_folder(tmp_path):
    put(
        tmp_path / "folder",
        {b"__order__": msgpack.packb(["c/0"]), b"000000000": pack_frames([b"x"])},
        subdir=True,
    )
    assert VideoStore(tmp_path / "folder").read_frames(0, [0]) == [b"x"]


def test_unusable_paths_are_named(tmp_path):
    write_names(tmp_path / "whole.lmdb")
    (tmp_path / "text.lmdb").write_text("not an LMDB\n" * 1000)
    (tmp_path / "empty.lmdb").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.lmdb").write_bytes((RELEASED / "ucf101_frame.lmdb").read_bytes()[:300_000])
    put(tmp_path / "bare.lmdb", {b"000000000": pack_frames([b"x"])})
    put(tmp_path / "odd.lmdb", {b"__order__": msgpack.packb({"a": 1})})
    for name, says in {
        "missing": "no database at",
        "text": "not an LMDB",
        "empty": "not an LMDB",
        "cut": "cut short",
        "bare": "lacks a list __order__",
        "odd": "lacks a list __order__",
    }.items():
        with pytest.raises(UserError, match=says) as caught:
            VideoStore(tmp_path / f"{name}.lmdb")
        assert str(tmp_path / f"{name}.lmdb") in str(caught.value)
    with pytest.raises(UserError, match="not an LMDB"):
        VideoStore(tmp_path / "folder")


def read_all(store: VideoStore) -> dict[str, list[bytes]]:
    store.frame_counts()
    return {name: store.read_frames(i, range(store.num_frames(i))) for i, name in enumerate(store.names)}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_store_works_in_child_processes_and_still_in_the_parent(tmp_path, method):
    store, same = write_names(tmp_path / "a.lmdb"), VideoStore(tmp_path / "a.lmdb")
    truth = {name: frames_of(name) for name in NAMES}
    assert read_all(store) == read_all(same) == truth
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [store, same, store]) == [truth] * 3
    assert read_all(store) == truth


def test_replaced_file_is_read_anew(tmp_path):
    write_names(tmp_path / "a.lmdb")
    assert write_names(tmp_path / "a.lmdb", ["z/new"]).read_frames(0, [1]) == [frames_of("z/new")[1]]

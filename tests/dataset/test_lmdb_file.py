"""The reader of LMDB files against the LMDB library."""

import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest

from dataset.lmdb_file import LmdbFile


def write(path: Path, values: dict[bytes, bytes], subdir: bool = False) -> Path:
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 28, lock=False) as environment:
        for keys in np.array_split(sorted(values), 5):  # several transactions: pages are freed and used again
            with environment.begin(write=True) as transaction:
                for key in keys:
                    transaction.put(bytes(key), values[bytes(key)])
    return path


def some_values(count: int, seed: int = 0) -> dict[bytes, bytes]:
    """Values from none to several pages, in a tree of ``count`` keys."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 1, 40, 900, 2000, 5000, 20_000], count, p=[0.05, 0.2, 0.4, 0.2, 0.05, 0.05, 0.05])
    return {b"%d" % key: rng.bytes(int(n)) for key, n in zip(rng.permutation(count), sizes, strict=True)}


@pytest.mark.parametrize("count", [1, 30, 3000])
@pytest.mark.parametrize("subdir", [False, True])
def test_every_value_is_found(tmp_path, count, subdir):
    values = some_values(count)
    file = LmdbFile(str(write(tmp_path / "a", values, subdir)))
    for key, value in values.items():
        found = file.find(key)
        assert found.size == len(value)
        assert found.read() == value
        assert found.read() == b""
    for absent in (b"", b"-1", b"99999", b"zzz", b"\xff" * 60):
        assert file.find(absent) is None


def test_a_value_is_read_in_parts(tmp_path):
    file = LmdbFile(str(write(tmp_path / "a", {b"k": bytes(range(256)) * 100})))
    value = file.find(b"k")
    parts = [value.read(1000), value.read(0), value.read(24_590), value.read(100), value.read(5)]
    assert b"".join(parts) == bytes(range(256)) * 100
    assert [len(part) for part in parts] == [1000, 0, 24_590, 10, 0]


def test_deleted_and_changed_values(tmp_path):
    values = some_values(500)
    path = write(tmp_path / "a", values)
    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as change,
    ):
        for key in list(values)[::3]:
            change.delete(key)
            del values[key]
        for key in list(values)[::5]:
            values[key] = b"changed" * 700
            change.put(key, values[key])
    file = LmdbFile(str(path))
    assert {key: file.find(key).read() for key in values} == values
    assert all(file.find(key) is None for key in some_values(500).keys() - values.keys())


def test_empty_database(tmp_path):
    with lmdb.open(str(tmp_path / "a"), subdir=False, lock=False):
        pass
    assert LmdbFile(str(tmp_path / "a")).find(b"k") is None


@pytest.mark.parametrize("content", [b"", b"text" * 2000, bytes(9000)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"header|ends before"):
        LmdbFile(str(tmp_path / "a"))


def test_cut_short(tmp_path):
    """When it is opened, and in use: never the end of the interpreter, as of one who maps the file."""
    values = some_values(300)
    path = write(tmp_path / "a", values)
    opened, size = LmdbFile(str(path)), path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(ValueError, match="cut short"):
        LmdbFile(str(path))
    failed = 0
    for key, value in values.items():
        try:
            assert opened.find(key).read() == value
        except ValueError as error:
            failed += "cut short" in str(error)
    assert failed > 10


def test_damaged_pages_are_an_error_or_other_values(tmp_path):
    values = some_values(300)
    path = write(tmp_path / "a", values)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        damaged = whole.copy()
        for at in rng.integers(8192, len(whole), 10_000):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        file = LmdbFile(str(path))
        for key in list(values)[:20]:
            try:
                found = file.find(key)
                if found is not None:
                    found.read()
            except ValueError:
                told += 1
    assert told > 100


def test_a_file_whose_name_another_takes_is_read_on_but_not_opened_again(tmp_path):
    """The names of videos that go with it are those of the old one."""
    old = LmdbFile(str(write(tmp_path / "a", {b"k": b"old"})))
    pickled = pickle.dumps(old)
    assert pickle.loads(pickled).find(b"k").read() == b"old"
    write(tmp_path / "b", {b"k": b"newer"}).replace(tmp_path / "a")
    assert old.find(b"k").read() == b"old"
    with pytest.raises(OSError, match="a was replaced while it was in use; start again"):
        pickle.loads(pickled)


def test_without_advice_to_the_system(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")  # as on macOS
    assert LmdbFile(str(write(tmp_path / "a", {b"k": b"value"}))).find(b"k").read() == b"value"

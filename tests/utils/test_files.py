"""Atomic writes, locks and downloads, on disks that fail and beside other processes."""

import errno
import fcntl
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from file_server import serving

from utils.errors import UserError
from utils.files import download, lock, write_atomically


def test_written_whole_into_a_folder_that_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with write_atomically(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError, KeyboardInterrupt]
)
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    expected = UserError if isinstance(error, OSError) else error

    def fail():
        with write_atomically(path, "make room") as file:
            file.write(b"half")
            raise error

    with pytest.raises(expected) as caught:
        fail()
    if expected is UserError:
        assert str(caught.value).startswith(f"cannot write {path}: No space left on device (")
        assert str(caught.value).endswith("MB of disk are left); make room")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write \S+/file/b: .*choose another place"):
        with write_atomically(tmp_path / "file" / "b"):
            pass


def test_writers_of_one_file_do_not_meet(tmp_path):
    path, together = tmp_path / "file", threading.Barrier(4)

    def write(number):
        with write_atomically(path) as file:
            together.wait()
            file.write(b"%d" % number * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    content = path.read_bytes()
    assert len(content) == 1000
    assert len(set(content)) == 1


HOLD = (
    "import sys; from utils.files import lock; file = lock(sys.argv[1]); print('held', flush=True); input()"
)


def test_one_process_holds_a_lock_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            lock(path, wait=False)
        other.kill()
        with lock(path) as file:
            assert file.write(b"appended")
    lock(path, wait=False).close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog, number):
    def flock(file, operation):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "coclr"), lock(tmp_path / "lock", wait=False) as file:
        file.write(b"appended")
    assert "no locks on this file system (not here)" in caplog.text
    assert (tmp_path / "lock").read_bytes() == b"appended"


def test_another_error_of_a_lock_is_not_hidden(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken disk"):
        lock(tmp_path / "lock")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def check(path):
    if path.read_bytes() != b"whole":
        raise UserError("not whole")


def test_downloaded_once_by_several_that_ask_at_once(server, tmp_path):
    server.files = {"a": f"{server.address}/b", "b": b"whole"}
    path = tmp_path / "cache" / "a"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(f"{server.address}/a", path, check), range(4)))
    assert path.read_bytes() == b"whole"
    assert server.requests == ["a", "b"]
    assert {file.name for file in path.parent.iterdir()} == {"a", ".lock"}


@pytest.mark.parametrize(
    ("content", "promised", "message"),
    [(b"wh", 3, "not whole"), (b"<html>moved</html>", 0, "not whole"), (None, 0, "404")],
)
def test_what_is_not_whole_is_not_kept(server, tmp_path, content, promised, message):
    server.promised = promised
    server.files = {} if content is None else {"a": content}
    path = tmp_path / "cache" / "a"
    with pytest.raises(UserError, match=message):
        download(f"{server.address}/a", path, check)
    assert {file.name for file in path.parent.iterdir()} == {".lock"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "nonsense"])
def test_no_such_server(tmp_path, monkeypatch, url):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=rf"cannot download {url}: .*fetch it by hand to \S+/a$"):
        download(url, tmp_path / "a", check)

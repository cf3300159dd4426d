import threading

import msgpack
import pytest

from dataset import store
from dataset.footage import Video
from dataset.preparation import merge as merging
from dataset.preparation.merge import merge, read_record, wait_for_others
from dataset.preparation.write import done_path, write_note
from dataset.store import pack_frames, shuffled, write_store
from utils.errors import UserError

VIDEOS = {f"a/{i}": [b"frame %d" % t * (i + 1) for t in range(3 + 7 * i)] for i in range(5)}  # name -> frames


def finish(folder, *names: str) -> dict[str, dict]:
    """Finished videos in the folder; their notes."""
    notes = {}
    folder.mkdir(exist_ok=True)
    for name in names:
        body = b"".join(msgpack.packb(frame, use_bin_type=False) for frame in VIDEOS[name])
        done_path(folder, name, "rgb").write_bytes(body)
        made = {"records": {"rgb": {"frames": len(VIDEOS[name]), "bytes": len(body)}}}
        notes[name] = write_note(folder, Video(name, ""), made)
    return notes


def expected_bytes(path) -> bytes:
    """The database of all videos, written at once."""
    write_store(path, list(VIDEOS), lambda name: (pack_frames(VIDEOS[name]), len(VIDEOS[name])))
    return path.read_bytes()


@pytest.mark.parametrize("frames", [1, 15, 16, 65535, 65536])
def test_record_of_a_file_of_frames(tmp_path, frames):
    (tmp_path / "x").write_bytes(msgpack.packb(b"f", use_bin_type=False) * frames)
    assert read_record(tmp_path / "x", frames) == pack_frames([b"f"] * frames)


def test_finished_videos_become_the_database_that_is_written_at_once(tmp_path):
    notes = finish(tmp_path / "unfinished", *VIDEOS)
    merge(shuffled(list(VIDEOS)), notes, tmp_path / "unfinished", tmp_path / "rgb.lmdb", "rgb")
    assert (tmp_path / "rgb.lmdb").read_bytes() == expected_bytes(tmp_path / "other.lmdb")


def test_new_videos_are_added_and_changed_ones_replaced(tmp_path):
    path, folder = tmp_path / "rgb.lmdb", tmp_path / "unfinished"
    old = {"a/0": VIDEOS["a/0"], "a/1": [b"of a file that has changed"], "a/2": VIDEOS["a/2"]}
    write_store(path, list(old), lambda name: (pack_frames(old[name]), len(old[name])))
    notes = finish(folder, "a/1", "a/3", "a/4")
    for _ in range(2):  # merged once more after a kill: those that were new are in the database as well
        merge(shuffled(list(VIDEOS)), notes, folder, path, "rgb")
        assert path.read_bytes() == expected_bytes(tmp_path / "other.lmdb")


def test_a_damaged_old_database_is_told(tmp_path):
    path = tmp_path / "rgb.lmdb"
    write_store(path, ["a/0"], lambda name: (b"no list of frames", 3))
    with pytest.raises(
        UserError, match=r"a/0: .*rgb\.lmdb.*; remove .*rgb\.lmdb to have all videos prepared"
    ):
        merge(["a/0"], {}, tmp_path, path, "rgb")


def test_what_cannot_be_read_back_replaces_nothing(tmp_path, monkeypatch):
    path, folder = tmp_path / "rgb.lmdb", tmp_path / "unfinished"
    notes = finish(folder, *VIDEOS)
    path.write_text("the old one")
    commit = store._commit

    def lose_one(environment, batch):
        batch.pop(0)
        commit(environment, batch)

    monkeypatch.setattr(store, "_commit", lose_one)
    with pytest.raises(UserError, match=r"cannot write .*rgb\.lmdb: .*; make room"):
        merge(shuffled(list(VIDEOS)), notes, folder, path, "rgb")
    assert path.read_text() == "the old one"
    assert {file.name for file in tmp_path.iterdir()} == {"rgb.lmdb", "unfinished"}


def test_videos_of_other_processes_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "POLL_SECONDS", 0.01)
    videos = [Video(name, "") for name in VIDEOS]
    notes = finish(tmp_path, "a/0", "a/1")
    monkeypatch.setattr(merging, "PATIENCE_SECONDS", 0)
    with pytest.raises(UserError, match=r"3 videos are not prepared yet, e\.g\. a/2; start"):
        wait_for_others(videos, tmp_path)
    monkeypatch.setattr(merging, "PATIENCE_SECONDS", 60)
    others = threading.Thread(target=lambda: notes.update(finish(tmp_path, "a/2", "a/3", "a/4")))
    others.start()
    assert wait_for_others(videos, tmp_path).keys() == VIDEOS.keys()
    others.join()
    assert wait_for_others(videos, tmp_path) == notes

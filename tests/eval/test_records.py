"""results.jsonl: records whole whatever happened before; places are tried out before the work."""

import fcntl
import json
import os
import threading

import pytest

from eval.records import append_record, check_folder, read_records
from utils.errors import UserError


def append(path, number):
    append_record(path, "retrieval", {"dataset": "tiny"}, videos=3, numbers={"R@1": number})


def test_record_goes_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "new folder/results.jsonl"
    for number in (1, 2):
        append(path, number)
    assert path.read_text().splitlines() == [
        f'{{"what": "retrieval", "dataset": "tiny", "videos": 3, "numbers": {{"R@1": {number}}}}}'
        for number in (1, 2)
    ]


@pytest.mark.parametrize("cut", [1, 2, 9, 76])
def test_line_that_was_cut_short_is_left_out_and_does_not_swallow_the_next(tmp_path, cut, caplog):
    path = tmp_path / "results.jsonl"
    append(path, 1)
    os.truncate(path, path.stat().st_size - cut)
    append(path, 2)
    append(path, 3)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["numbers"]["R@1"] for line in lines[-2:]] == [2, 3]
    assert len(lines) == 3
    kept = [record["numbers"]["R@1"] for record in read_records(path)]
    named = "line 1 was cut short" in caplog.text
    assert (kept, named) == (([1, 2, 3], False) if cut == 1 else ([2, 3], True))  # 1: the line feed alone


@pytest.mark.parametrize("line", ["{}", "no record", '{"what": 1, "numbers": {}}', '{"what": "retrieval"}'])
def test_line_that_is_corrupt_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"results.jsonl, line 1 is corrupt.*; remove that line"):
        read_records(path)


def test_waits_for_another_that_is_writing(tmp_path):
    path = tmp_path / "results.jsonl"
    with open(path, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=append, args=(path, 2))
        writer.start()
        writer.join(0.2)
        assert path.read_text() == ""
        other.write('{"what": "x", "numbers": {}}\n')
    writer.join(60)
    assert [record["what"] for record in read_records(path)] == ["x", "retrieval"]


def test_places_are_tried_and_nothing_is_left_there(tmp_path):
    (tmp_path / "a file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    check_folder(tmp_path / "missing/folder", "--out_dir")
    for check, named in (
        (lambda: check_folder(tmp_path / "a file", "--out_dir"), "a file: Not a directory; .*--out_dir"),
        (lambda: check_folder(tmp_path / "a file/b", "--out_dir"), "a file: Not a directory; .*--out_dir"),
    ):
        with pytest.raises(UserError, match=named):
            check()
    assert sorted(tmp_path.rglob("*")) == before

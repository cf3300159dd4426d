"""Scalars in a file and in tensorboard's events."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from utils.errors import UserError
from utils.scalars import Scalars


def events(folder):
    """Events of all files, by tensorboard's record format: length, checksum, event, checksum."""
    found = []
    for path in sorted(folder.glob("img/events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_lines_and_events(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "scalars.jsonl").write_text('{"iteration": 4}\n')
    scalars = Scalars(tmp_path, first_step=5)
    scalars.add_line(iteration=5, loss=0.5)
    scalars.add("train", {"loss": 0.5, "top1": 0.25}, 5)
    scalars.flush()
    scalars.close()
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert lines == [{"iteration": 4}, {"iteration": 5, "loss": 0.5}]
    found = events(tmp_path)
    values = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert values == [(5, "train/loss", 0.5), (5, "train/top1", 0.25)]
    # tensorboard drops what an earlier run wrote from here on
    assert [event.step for event in found if event.session_log.status == SessionLog.START] == [5]


def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "img").mkdir()
    scalars = Scalars(tmp_path, 0)
    scalars._lines = open("/dev/full", "w")
    scalars.add_line(loss=1.0)
    with pytest.raises(UserError, match=rf"cannot write to {tmp_path}: No space left .*--resume auto"):
        scalars.flush()
    scalars.close()

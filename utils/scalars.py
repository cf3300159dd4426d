"""The scalars of a run, in a file and for tensorboard; not in log.py, as tensorboardX imports torch."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from utils.errors import UserError


class Scalars:
    """The scalars of a run: scalars.jsonl, and events for tensorboard in img/.

    The calling thread writes, at once: a full disk raises UserError in ``flush``.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        self._lines = open(folder / "scalars.jsonl", "a", encoding="utf-8")
        self._events = EventsWriter(str(folder / "img" / "events"))
        # START: tensorboard drops what an earlier run wrote from here on
        self._pending = [
            Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START))
        ]

    def add(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Show ``values`` in tensorboard as GROUP/NAME at ``step``."""
        self._pending += [
            Event(wall_time=time.time(), step=step, summary=scalar(f"{group}/{name}", value))
            for name, value in values.items()
        ]

    def add_line(self, **record: float) -> None:
        """Append a line to scalars.jsonl."""
        self._pending.append(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Write what was added; UserError where that fails."""
        try:
            for item in self._pending:
                if isinstance(item, str):
                    self._lines.write(item)
                else:
                    self._events.write_event(item)
            self._lines.flush()
            self._events.flush()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; the checkpoints stand: make room, then "
                "the same command with --resume auto goes on from the last"
            ) from error
        self._pending.clear()

    def close(self) -> None:
        """Close the files; what was not flushed is lost."""
        for file in (self._lines, self._events):
            with contextlib.suppress(OSError):
                file.close()

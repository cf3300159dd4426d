"""One logger, on rank 0, to the console and the run's log file; the scalars of a run."""
import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from utils.errors import UserError


class _TqdmHandler(logging.Handler):
    """Writes lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging(is_main: bool) -> logging.Logger:
    """The project's logger; other ranks show warnings only."""
    log = logging.getLogger("coclr")
    log.handlers.clear()
    logging.raiseExceptions = False  # a full disk may cut the log short, but neither fills the console nor ends the run
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if is_main else logging.WARNING)
    log.propagate = False
    return log


def log_to_file(path: Path) -> None:
    """Copy the log to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("coclr").addHandler(handler)


class Scalars:
    """The scalars of a run: scalars.jsonl, and events for tensorboard in img/.

    The calling thread writes, at once: a full disk raises UserError in ``flush``.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        self._lines = open(folder / "scalars.jsonl", "a", encoding="utf-8")
        self._events = EventsWriter(str(folder / "img" / "events"))
        # START: tensorboard drops what an earlier run wrote from here on
        self._pending = [Event(step=first_step, session_log=SessionLog(status=SessionLog.START))]

    def add(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Show ``values`` in tensorboard as GROUP/NAME at ``step``."""
        self._pending += [Event(step=step, summary=scalar(f"{group}/{name}", value)) for name, value in values.items()]

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
                    item.wall_time = time.time()
                    self._events.write_event(item)
            self._lines.flush()
            self._events.flush()
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; the checkpoints stand: make room, then "
                            "the same command with --resume auto goes on from the last") from error
        self._pending.clear()

    def close(self) -> None:
        """Close the files; what was not flushed is lost."""
        for file in (self._lines, self._events):
            with contextlib.suppress(OSError):
                file.close()

"""One logger, on rank 0, to the console and the run's log file."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm


class _TqdmHandler(logging.Handler):
    """Writes lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """A full disk may cut its file short, but neither fills the console nor ends the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start_logging(is_main: bool) -> None:
    """Set up the project's logger; other ranks show warnings only."""
    log = logging.getLogger("coclr")
    log.handlers.clear()
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if is_main else logging.WARNING)
    log.propagate = False


def log_to_file(path: Path) -> None:
    """Copy the log to a file as well."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("coclr").addHandler(handler)

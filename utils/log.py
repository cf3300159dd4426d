"""One logger, on rank 0, to the console and the run's log file."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("coclr")


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
    log.addHandler(handler)


def progress(items: Iterable[Any], name: str, unit: str, is_main: bool, **counts: int) -> tqdm:
    """A bar over ``items`` with rate and time left, where there is a terminal; ``counts``: total, initial."""
    disable = None if is_main else True  # None: where it is not a terminal
    return tqdm(items, name, unit=unit, disable=disable, leave=False, dynamic_ncols=True, **counts)

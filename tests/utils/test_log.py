"""The logger: a line per message, on rank 0; a full disk neither ends a run nor covers the console."""

import logging

import pytest

from utils import log


@pytest.fixture(autouse=True)
def logger():
    logger = logging.getLogger("coclr")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_main_process_tells_all_and_others_warnings(logger, capsys):
    for is_main, expected in ((True, ["told", "warned"]), (False, ["warned"])):
        log.start_logging(is_main)
        logger.info("told")
        logger.warning("warned")
        assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == expected


def test_file_gets_the_lines_too(logger, tmp_path, capsys):
    log.start_logging(True)
    log.log_to_file(tmp_path / "log.txt")
    logger.info("told")
    assert (tmp_path / "log.txt").read_text().endswith(" told\n")
    assert capsys.readouterr().err.endswith(" told\n")


def test_a_full_disk_cuts_the_file_and_nothing_else(logger, tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log.start_logging(True)
    log.log_to_file(tmp_path / "log.txt")
    logger.info("told")
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert logging.raiseExceptions, "a setting of everybody's"

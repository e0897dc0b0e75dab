"""Logs that cannot be written hurt nobody."""

import errno
import io
import json
import logging
import sys

import pytest
import structlog

from headwater import logs


class Full(io.StringIO):
    """A file on a disk that is full for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_full_disk_under_the_log_raises_nothing_where_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room is lost; what comes later is there."""
    file, before = Full(), structlog.get_config()
    monkeypatch.setattr(sys, "stderr", file)
    try:
        logs.configure()
        structlog.get_logger().error("lost")
        logging.getLogger("faust").error("lost too")
        file.full = False
        structlog.get_logger().error("found", partition=3)
    finally:
        structlog.configure(**before)
        logging.basicConfig(force=True)
    (line,) = file.getvalue().splitlines()
    assert {"event": "found", "level": "error", "partition": 3}.items() <= json.loads(line).items()

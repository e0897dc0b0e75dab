"""Structured logs on stderr: JSON lines for machines, colours for a terminal. User ids are left out by default."""

import contextlib
import logging
import sys
from typing import TextIO

import structlog

__all__ = ["Unfailing", "configure"]


class Unfailing:
    """A file whose writers never hear that there is no room: a full disk under the log leaves no work half done.

    What cannot be written is lost; `logging` does the same of its own accord.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write, or lose it."""
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        """Flush, or keep it for the next time."""
        with contextlib.suppress(OSError):
            self._file.flush()


def configure(level: str = "info") -> None:
    """Send every log line to stderr.

    Args:
        level: debug, info, warning or error.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("kafka.net").setLevel(logging.ERROR)  # kafka-python tells of each 0.1 s that its loop had to wait
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(Unfailing(sys.stderr)),  # type: ignore[arg-type]  # all that it uses
        cache_logger_on_first_use=False,
    )

"""Workers as child processes: started with the same settings, ended together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from model_core.errors import HeadwaterError

__all__ = ["Child", "ChildFailedError"]

_STOP_S: Final = 12.0
_TAIL_BYTES: Final = 2_000


class ChildFailedError(HeadwaterError):
    """A worker that was started ended by itself."""


class Child:
    """A `headwater` command in a process of its own.

    Args:
        arguments: of the command.
        options: settings by `group.key`, handed over in the environment.
        log: where its stderr goes.
    """

    def __init__(self, arguments: list[str], options: Mapping[str, Any], log: Path) -> None:
        self.name = " ".join(arguments)
        self._log = log
        variables = {f"HEADWATER_{name.replace('.', '_').upper()}": str(value) for name, value in options.items()}
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
                [sys.executable, "-m", "headwater", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **variables},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def check(self) -> None:
        """Raise `ChildFailedError` where it has ended."""
        if self._process.poll() is not None:
            tail = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
            raise ChildFailedError(f"`headwater {self.name}` ended with {self._process.returncode}: {tail}")

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if it does not end in time; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

"""Named points at which a test may kill or stop the process; without one armed they cost a look at an empty dict."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Final, Literal, get_args

from model_core.errors import SettingsError

__all__ = ["Action", "arm", "disarm", "failpoint"]

Action = Literal["kill", "stop", "hang"]
"""`kill`: SIGKILL; `stop`: SIGSTOP, until someone continues the process; `hang`: sleep for a minute."""

_HANG_S: Final = 60.0


@dataclass
class _Armed:
    action: Action
    after: int


_armed: Final[dict[str, _Armed]] = {}


def arm(specification: str) -> None:
    """Arm failpoints: `name=action:n`, comma-separated; the n-th pass through the point acts.

    Raises:
        SettingsError: the text does not have that form.
    """
    for part in filter(None, specification.split(",")):
        name, _, rest = part.partition("=")
        action, _, after = rest.partition(":")
        if action not in get_args(Action) or not (after or "1").isdigit():
            raise SettingsError(f"failpoints = {part!r}: expected name=kill|stop|hang[:passes]")
        _armed[name.strip()] = _Armed(action, int(after or 1))  # type: ignore[arg-type]


def disarm() -> None:
    """Forget all."""
    _armed.clear()


def failpoint(name: str) -> None:
    """A point of this name is passed."""
    if not _armed or name not in _armed:
        return
    armed = _armed[name]
    armed.after -= 1
    if armed.after > 0:
        return
    del _armed[name]
    if armed.action == "hang":
        time.sleep(_HANG_S)
    else:
        os.kill(os.getpid(), signal.SIGKILL if armed.action == "kill" else signal.SIGSTOP)

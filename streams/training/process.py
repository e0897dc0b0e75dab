"""The parent's side of the child process: starts it, talks to it, and sees to it that it ends."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from model_core.errors import HeadwaterError
from streams.training.messages import (
    LENGTH_BYTES,
    Failed,
    FromChild,
    Ready,
    Start,
    Stop,
    Stopped,
    ToChild,
    decode_from_child,
    frame,
)

__all__ = ["CHILD", "TrainerDied", "TrainerProcess"]

CHILD: Final = (sys.executable, "-m", "streams.training.child")
"""The command of the child process."""

_STREAM_LIMIT_BYTES: Final = 2**22
_LAST_LINES: Final = 20
_EXIT_S: Final = 2.0


class TrainerDied(HeadwaterError):  # noqa: N818 - it is what happened
    """The child process ended without being asked to; the message has its error."""


class TrainerProcess:
    """One child process and the two pipes to it.

    Args:
        on_message: takes each message in order, `Ready` and `Stopped` included; must not block.
        on_stderr: takes each line the child or a library of it writes.
        command: what to run.
    """

    def __init__(
        self,
        on_message: Callable[[FromChild], None],
        on_stderr: Callable[[str], None],
        *,
        command: Sequence[str] = CHILD,
    ) -> None:
        self._on_message = on_message
        self._on_stderr = on_stderr
        self._command = command
        self._process: Process | None = None
        self._ended: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def pid(self) -> int | None:
        """Of the child, once started."""
        return self._process.pid if self._process else None

    async def start(self, start: Start) -> Ready:
        """Start the child and wait until its learner stands.

        Raises:
            TrainerDied: it could not start; the message says why.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_STREAM_LIMIT_BYTES
        )
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.create_task(self._run(self._process, ready), name="trainer-process")
        await self.send(start)
        waiting: set[asyncio.Future[Any]] = {ready, self._ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await self.wait()
            raise TrainerDied("the trainer process ended before it was ready")
        return ready.result()

    async def send(self, message: ToChild) -> None:
        """Send one message; waits while the pipe is full. A dead child shows in `wait`, not here."""
        stdin = self._stdin()
        with contextlib.suppress(ConnectionError):
            stdin.write(frame(message))
            await stdin.drain()

    async def wait(self) -> None:
        """Wait for the child's end.

        Raises:
            TrainerDied: it ended otherwise than by `Stopped`.
        """
        if self._ended is not None:
            await asyncio.shield(self._ended)

    async def stop(self, timeout_s: float) -> bool:
        """Ask the child to checkpoint and end; kill it when it has not in time. Returns whether it did.

        Raises:
            TrainerDied: it had ended, or ended, by an error.
        """
        if self._process is None or self._ended is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(Stop())
                await self.wait()
        except TimeoutError:
            await self.kill()
            return False
        return True

    async def kill(self) -> None:
        """End the child at once; what it has not checkpointed is learned again."""
        if self._process is None or self._ended is None:
            return
        _kill(self._process)
        with contextlib.suppress(TrainerDied):
            await self.wait()

    def _stdin(self) -> asyncio.StreamWriter:
        if self._process is None or self._process.stdin is None:
            raise TrainerDied("the trainer process was not started")
        return self._process.stdin

    async def _run(self, process: Process, ready: asyncio.Future[Ready]) -> None:
        stderr = asyncio.create_task(self._read_stderr(process))
        last: FromChild | None = None
        try:
            async for message in _messages(process):
                last = message
                if isinstance(message, Ready):
                    ready.set_result(message)
                self._on_message(message)
        finally:
            code = await _exit_status(process)
            await stderr
            self._stdin().close()
        if isinstance(last, Failed):
            raise TrainerDied(last.error)
        if not isinstance(last, Stopped):
            raise TrainerDied(" | ".join([f"the trainer process ended by {_how(code)}", *self._last_lines]))

    async def _read_stderr(self, process: Process) -> None:
        if process.stderr is None:
            return
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            self._on_stderr(text)


async def _messages(process: Process) -> AsyncIterator[FromChild]:
    stdout = process.stdout
    if stdout is None:
        return
    while True:
        try:
            length = int.from_bytes(await stdout.readexactly(LENGTH_BYTES), "big")
            yield decode_from_child(await stdout.readexactly(length))
        except asyncio.IncompleteReadError:
            return


async def _exit_status(process: Process) -> int:
    """Of a process that has closed its output: it ends by itself in a moment, or is ended."""
    try:
        return await asyncio.wait_for(process.wait(), _EXIT_S)
    except TimeoutError:
        _kill(process)
        return await process.wait()


def _kill(process: Process) -> None:
    # Not Process.kill(): it polls first, and so may take the exit status from asyncio's own watcher.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"

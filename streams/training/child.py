"""The child process: reads frames on its standard input, trains, and answers on its standard output.

`python -m streams.training.child`. It lives as long as its parent: the end of its input without a `Stop`
means that the parent is gone, and it exits at once, in the middle of whatever it does (checkpoints are
atomic). It ignores SIGINT and SIGTERM, which reach a whole process group: its parent decides when it
checkpoints and ends.
"""

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from model_core.errors import InvariantError
from streams.failpoints import arm
from streams.training.checkpoint import CheckpointStore
from streams.training.loop import TrainableLearner, TrainingLoop
from streams.training.messages import (
    LENGTH_BYTES,
    Failed,
    FromChild,
    Items,
    Start,
    Stop,
    Stopped,
    ToChild,
    Transitions,
    decode_to_child,
    frame,
)

__all__ = ["main"]

_TICK_S: Final = 0.1
_ORPHANED: Final = 3
_FAILED: Final = 1


class _Inbox:
    """Reads frames in a thread, so that a stop or the parent's end is seen while the learner trains."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._messages: queue.SimpleQueue[ToChild] = queue.SimpleQueue()
        self._stop = threading.Event()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def stopping(self) -> bool:
        """Whether a `Stop` has been read."""
        return self._stop.is_set()

    def next(self, timeout_s: float | None) -> ToChild | None:
        """The next message; None when none came in time."""
        try:
            return self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _read(self) -> None:
        while not self._stop.is_set():
            message = decode_to_child(self._exactly(int.from_bytes(self._exactly(LENGTH_BYTES), "big")))
            if isinstance(message, Stop):
                self._stop.set()
            self._messages.put(message)

    def _exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            part = os.read(self._descriptor, min(count - len(received), 1 << 20))
            if not part:
                os._exit(_ORPHANED)
            received += part
        return bytes(received)


class _Outbox:
    """Writes frames; nothing else may write to that descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, message: FromChild) -> None:
        unsent = memoryview(frame(message))
        while unsent:
            unsent = unsent[os.write(self._descriptor, unsent) :]


def main(make_learner: Callable[[Start], TrainableLearner]) -> int:
    """Serve one parent until it says stop; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    emit = _Outbox(answers)
    try:
        _serve(_Inbox(sys.stdin.fileno()), emit, make_learner)
    except BrokenPipeError:
        return _ORPHANED
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it and ends
        emit(Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        return _FAILED
    return 0


def _serve(inbox: _Inbox, emit: _Outbox, make_learner: Callable[[Start], TrainableLearner]) -> None:
    start = inbox.next(None)
    if not isinstance(start, Start):
        raise InvariantError(f"expected Start as the first message, got {type(start).__name__}")
    os.nice(start.trainer.niceness)
    arm(start.trainer.failpoints)
    store = CheckpointStore(Path(start.checkpoint_dir), keep=start.trainer.checkpoints_kept)
    store.acquire()
    loop = TrainingLoop(start, make_learner(start), store, emit, stopping=inbox.stopping)
    emit(loop.open())
    while not inbox.stopping():
        message = inbox.next(_TICK_S)
        if isinstance(message, Items | Transitions):
            loop.handle(message)
        elif message is None:
            loop.tick()
    loop.close()
    emit(Stopped())


def _learner(start: Start) -> TrainableLearner:
    """The real learner; torch is imported here, in the child alone."""
    from streams.training.learner import create  # noqa: PLC0415 - the parent must not import torch

    return create(start)


if __name__ == "__main__":
    sys.exit(main(_learner))

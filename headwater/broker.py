"""The embedded broker: a single node that speaks the Kafka protocol, for trying things out and for quick tests.

It is the binary of the wheel `noida-db`, an extra (`headwater[embedded]`). Truth is Apache Kafka.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from model_core.errors import HeadwaterError

__all__ = ["BrokerError", "EmbeddedBroker", "free_port"]

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_POLL_S: Final = 0.1


class BrokerError(HeadwaterError):
    """The embedded broker is not installed, or did not start."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedBroker:
    """Starts the broker, and ends it on exit.

    Args:
        data_dir: where it keeps its logs; a temporary folder that goes with it for None.
        port: to listen on; 0 picks a free one.

    Attributes:
        address: `host:port`, once started.
    """

    def __init__(self, data_dir: Path | None = None, *, port: int = 0) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="headwater-broker-") if data_dir is None else None
        self._data_dir = Path(self._temporary.name) if self._temporary else Path(str(data_dir))
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until it answers.

        Raises:
            BrokerError: it is not installed, or did not answer in time.
        """
        program = _program()
        port = self._port or free_port()
        self._data_dir.mkdir(parents=True, exist_ok=True)
        log = self._data_dir / "broker.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the program of an installed package
                [program, "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(self._data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.address = f"127.0.0.1:{port}"
        try:
            self._await(log)
        except BrokerError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the broker and its own child processes, and remove a temporary folder."""
        if self._process is not None:
            self._end(self._process)
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """SIGTERM to the process group, which is the broker's own, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)

    def wait(self) -> int:
        """Wait until the process ends; its exit status."""
        if self._process is None:
            raise BrokerError("the embedded broker was not started")
        return self._process.wait()

    def _await(self, log: Path) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                raise BrokerError(f"the embedded broker ended at its start: {log.read_text()[-500:]}")
            try:
                admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
                admin.list_topics(timeout=2.0)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise BrokerError(f"the embedded broker does not answer at {self.address}: {error}") from error
                time.sleep(_POLL_S)
            else:
                return


def _program() -> str:
    """Path of the broker's program."""
    found = importlib.util.find_spec("noida_db")
    if found is not None and found.submodule_search_locations:
        for folder in (*map(str, found.submodule_search_locations), str(Path(sys.executable).parent)):
            program = Path(folder) / "noida-db"
            if program.is_file():
                return str(program)
    raise BrokerError("the embedded broker is not installed: pip install 'headwater[embedded]', or name a --broker")

"""How each peer is brought and started; what it needs beside the project's own packages is fetched once, into `.cache`.

Kafka Streams comes as jars, like the tests' broker. Quix Streams refuses the confluent-kafka that the project needs:
its packages, by the hashes of quix.lock, lie in a folder that stands before the others on that one process's path.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.kafka_cluster import CACHE, ROOT, jars

__all__ = ["PEERS", "Peer", "Place", "prepare"]

_HERE: Final = Path(__file__).parent
_POM: Final = _HERE / "pom.xml"
_JAVA: Final = _HERE / "BareJob.java"
_QUIX: Final = _HERE / "quix.lock"
_THREADS: Final = 2
"""Of Kafka Streams: one for each core that the figures were taken on."""


class Place(NamedTuple):
    """Where a peer works.

    Attributes:
        broker: its address.
        source: topic, or topics with commas between, that it reads.
        output: topic that it writes to.
        name: of its own: group, application, prefix of its topics.
        folder: of its own, for its state.
    """

    broker: str
    source: str
    output: str
    name: str
    folder: Path


class Peer(NamedTuple):
    """How a peer is started.

    Attributes:
        before: the command, up to the five words of its place.
        after: what follows them.
        quix: whether the packages of Quix Streams stand before the project's.
    """

    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    quix: bool = False

    def start(self, place: Place, log: Path) -> "subprocess.Popen[bytes]":
        """Start it in a process group of its own."""
        environment = dict(os.environ)
        if self.quix:
            environment["PYTHONPATH"] = os.pathsep.join((str(_quix()), str(ROOT)))
        with log.open("ab") as output:
            return subprocess.Popen(
                [*self._command(), *(str(word) for word in place), *self.after],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        if self.before[0] == "java":
            return ["java", "-Xmx1g", "-cp", f"{_streams()}{os.pathsep}{jars(_POM)}/*", *self.before[1:]]
        return [sys.executable, "-m", *self.before]


def _quix_peer(job: str, guarantee: str) -> Peer:
    return Peer(("benchmarks.peers.quix", job, guarantee), quix=True)


PEERS: Final = {
    "headwater": Peer(("benchmarks.peers.headwater",)),
    "kafka_streams": Peer(("java", "BareJob"), ("exactly_once_v2", str(_THREADS))),
    "kafka_streams_at_least_once": Peer(("java", "BareJob"), ("at_least_once", str(_THREADS))),
    "quix": _quix_peer("bare", "exactly-once"),
    "quix_at_least_once": _quix_peer("bare", "at-least-once"),
    "faust": Peer(("benchmarks.peers.plain_faust",)),
    "loop": Peer(("benchmarks.peers.loop",)),
    "quix_full": _quix_peer("full", "exactly-once"),
    "quix_full_at_least_once": _quix_peer("full", "at-least-once"),
}
"""All peers, and ourselves, by name."""


def prepare() -> None:
    """Fetch and compile what the peers need."""
    _streams()
    _quix()


@contextlib.contextmanager
def _made(path: Path) -> Iterator[Path | None]:
    """A folder to fill that becomes `path`; None where it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            filled = Path(folder) / "filled"
            filled.mkdir()
            yield filled
            filled.rename(path)


def _streams() -> Path:
    """The folder with our Kafka Streams program, compiled."""
    path = CACHE.parent / "peers" / f"streams-{_digest(_POM, _JAVA)}"
    with _made(path) as folder:
        if folder is not None:
            subprocess.run(["javac", "-cp", f"{jars(_POM)}/*", "-d", str(folder), str(_JAVA)], check=True)
    return path


def _quix() -> Path:
    """The folder with Quix Streams and what it stands on."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    path = CACHE.parent / "peers" / f"quix-{version}-{_digest(_QUIX)}"
    with _made(path) as folder:
        if folder is not None:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--target", str(folder)]
            subprocess.run([*install, "-r", str(_QUIX)], check=True, capture_output=True)
    return path


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]

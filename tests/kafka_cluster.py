"""A real Apache Kafka for tests: one KRaft node or several, from its Maven jars, each in a process group of its own."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata

ROOT: Final = Path(__file__).resolve().parents[1]
POM: Final = ROOT / "tests" / "broker" / "pom.xml"
CACHE: Final = ROOT / ".cache" / "kafka"

_FETCH_S: Final = 300.0
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.1
_LOOPBACK: Final = "127.0.0.1"
_STORE_PASSWORD: Final = "a-key-store-of-a-test"  # noqa: S105 - of a store that lives for a test

_LOGGING: Final = """\
Configuration:
  Appenders:
    Console: {name: out, target: SYSTEM_OUT, PatternLayout: {pattern: "%d %p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: out}}
"""


class ClusterError(Exception):
    """Kafka could not be fetched, or did not start."""


def missing() -> list[str]:
    """What this machine lacks to run Apache Kafka."""
    return [program for program in ("java", "mvn") if shutil.which(program) is None]


def jars(pom: Path = POM) -> Path:
    """The folder of the jars that a pom names, Kafka's own by default; fetched once, by one process at a time."""
    wanted = CACHE / hashlib.sha256(pom.read_bytes()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                fetched = Path(folder) / "jars"
                options = ["-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
                _run(["mvn", *options], _FETCH_S)
                fetched.rename(wanted)
    return wanted


class _Started(ABC):
    """What is started on entering and closed on leaving, also where the start failed."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class KafkaBroker(_Started):
    """Broker and controller in one process, on free ports of the loopback interface.

    Its data lie in a temporary folder that goes with it; between `stop` and `start` they stay.

    Args:
        heap: of the JVM.
        port: to listen on; 0 picks a free one.
        properties: in place of its own, or beside them.
        controller: port of its own controller; 0 picks a free one.
        cluster_id: of the cluster that it belongs to; one of its own for None.
        users: passwords of those who may come in by a second listener, which takes TLS with SCRAM-SHA-512 alone.

    Attributes:
        address: `host:port`.
        secure_address: of the second listener; there where there are users.
    """

    def __init__(
        self,
        *,
        heap: str = "512m",
        port: int = 0,
        properties: dict[str, str] | None = None,
        controller: int = 0,
        cluster_id: str | None = None,
        users: dict[str, str] | None = None,
    ) -> None:
        port, controller, secure = _free_ports(port, controller, 0)
        self._cluster_id = cluster_id or _cluster_id()
        self.address = f"{_LOOPBACK}:{port}"
        self.secure_address = f"{_LOOPBACK}:{secure}"
        self._folder = Path(tempfile.mkdtemp(prefix="headwater-kafka-"))
        self._heap = heap
        self._process: subprocess.Popen[bytes] | None = None
        self._users = users or {}
        self._properties = _properties(self._folder / "data", port, controller)
        if self._users:
            self._properties |= _secured(self._properties, self.secure_address, self._folder / "keystore.p12")
        self._properties |= properties or {}

    @property
    def ca_file(self) -> Path:
        """The certificate, PEM, that clients of the second listener have to trust."""
        return self._folder / "ca.pem"

    def start(self) -> None:
        """Start, and wait until it answers; the first time, format the data folder.

        Raises:
            ClusterError: it was not to be had, or did not answer in time.
        """
        properties = self._folder / "server.properties"
        if not properties.exists():
            properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties.items()))
            (self._folder / "log4j2.yaml").write_text(_LOGGING)
            if self._users:
                _make_certificate(self._folder / "keystore.p12", self.ca_file)
            scram = [f"SCRAM-SHA-512=[name={name},password={word}]" for name, word in self._users.items()]
            known = [part for one in scram for part in ("--add-scram", one)]
            storage = self._java(
                "kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(properties), *known
            )
            _run(storage, _START_S)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(properties)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._await()

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the broker; its data stay."""
        if self._process is None:
            return
        for each in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
                break
        self._process = None

    def close(self) -> None:
        """End the broker and remove its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "broker.log"

    def _java(self, *arguments: str) -> list[str]:
        options = [f"-Xmx{self._heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.yaml'}"
        return ["java", *options, logging, "-cp", f"{jars()}/*", *arguments]

    def _await(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ClusterError(f"Kafka ended at its start: {self._log.read_text()[-2_000:]}")
            try:
                listed = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=2.0)
            except KafkaException as error:
                refused: object = error
            else:
                if listed.brokers:
                    return
                refused = "no broker is registered"
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Kafka does not answer at {self.address}: {refused}\n{self._log.read_text()[-2_000:]}"
                )
            time.sleep(_POLL_S)


class KafkaCluster(_Started):
    """Several brokers, each a controller too: three replicas of everything, of which two have to be in step.

    Args:
        advertised: where clients are told to find each of them, instead of at its own address.
        heap: of each JVM.

    Attributes:
        brokers: by their number, from 0.
    """

    def __init__(self, nodes: int, *, advertised: Sequence[str] = (), heap: str = "384m") -> None:
        ports = _free_ports(*[0] * (3 * nodes))
        plain, controllers, inner = (ports[start::3] for start in range(3))
        voters = ",".join(f"{number + 1}@{_LOOPBACK}:{port}" for number, port in enumerate(controllers))
        cluster_id = _cluster_id()
        self.brokers = [
            KafkaBroker(
                heap=heap,
                port=plain[number],
                controller=controllers[number],
                cluster_id=cluster_id,
                properties=_one_of(number, nodes, voters, [plain[number], inner[number]], advertised),
            )
            for number in range(nodes)
        ]

    def start(self) -> None:
        """Start those that are not running, side by side: each needs the others to answer."""
        with ThreadPoolExecutor(len(self.brokers)) as pool:
            list(pool.map(KafkaBroker.start, [broker for broker in self.brokers if not broker.running]))
        deadline = time.monotonic() + _START_S
        while len(self._metadata().brokers) < len(self.brokers):
            if time.monotonic() > deadline:
                raise ClusterError("not all brokers have found each other")
            time.sleep(_POLL_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End all of them; their data stay."""
        for broker in self.brokers:
            broker.stop(number)

    def close(self) -> None:
        """End all of them, which cannot take leave of one another in turn, and remove their data."""
        self.stop(signal.SIGKILL)
        for broker in self.brokers:
            broker.close()

    def kill_leader(self, topic: str, partition: int) -> None:
        """SIGKILL for the broker that leads a partition; `start` brings it back."""
        leader = self._metadata().topics[topic].partitions[partition].leader
        self.brokers[leader - 1].stop(signal.SIGKILL)

    def _metadata(self) -> ClusterMetadata:
        addresses = ",".join(broker.address for broker in self.brokers)
        return AdminClient({"bootstrap.servers": addresses, "log_level": 0}).list_topics(timeout=_START_S)


def _one_of(number: int, nodes: int, voters: str, ports: Sequence[int], advertised: Sequence[str]) -> dict[str, str]:
    """What tells a broker of a cluster from one that is alone; brokers have a listener among themselves."""
    controller = voters.split(",")[number].partition("@")[2]
    port, inner = ports
    client = advertised[number] if advertised else f"{_LOOPBACK}:{port}"
    few = str(min(nodes, 3))
    most = str(min(nodes, 3) // 2 + 1)
    return {
        "node.id": str(number + 1),
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://{_LOOPBACK}:{port},INNER://{_LOOPBACK}:{inner},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{client},INNER://{_LOOPBACK}:{inner}",
        "inter.broker.listener.name": "INNER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "offsets.topic.replication.factor": few,
        "transaction.state.log.replication.factor": few,
        "transaction.state.log.min.isr": most,
        "min.insync.replicas": most,
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
    }


def _run(command: Sequence[str], within_s: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    if done.returncode:
        raise ClusterError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}")


def _cluster_id() -> str:
    return uuid.uuid4().hex[:22]


def _free_ports(*wanted: int) -> list[int]:
    """Ports nobody listens on, all different; those that are named stay."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in wanted:
            probe = stack.enter_context(socket.socket())
            if not port:
                probe.bind((_LOOPBACK, 0))
                port = probe.getsockname()[1]  # noqa: PLW2901 - the free one in its place
            found.append(port)
        return found


def _make_certificate(keystore: Path, certificate: Path) -> None:
    """A key and a certificate of its own for the loopback interface; keytool comes with Java."""
    common = ["-keystore", str(keystore), "-storetype", "PKCS12", "-storepass", _STORE_PASSWORD, "-alias", "broker"]
    kind = ["-keyalg", "EC", "-validity", "2", "-dname", "CN=headwater-test", "-ext", f"san=ip:{_LOOPBACK}"]
    _run(["keytool", "-genkeypair", *common, *kind, "-ext", "bc:c=ca:true"], _START_S)
    _run(["keytool", "-exportcert", *common, "-rfc", "-file", str(certificate)], _START_S)


def _secured(plain: dict[str, str], address: str, keystore: Path) -> dict[str, str]:
    """What a second listener takes: TLS, and SCRAM over it."""
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    listener = {
        "ssl.keystore.location": str(keystore),
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.password": _STORE_PASSWORD,
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "scram-sha-512.sasl.jaas.config": login,
    }
    return {
        **{f"listener.name.sasl_ssl.{key}": value for key, value in listener.items()},
        "listeners": f"{plain['listeners']},SASL_SSL://{address}",
        "advertised.listeners": f"{plain['advertised.listeners']},SASL_SSL://{address}",
        "listener.security.protocol.map": f"{plain['listener.security.protocol.map']},SASL_SSL:SASL_SSL",
    }


def _properties(data: Path, port: int, controller: int) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{_LOOPBACK}:{controller}",
        "listeners": f"PLAINTEXT://{_LOOPBACK}:{port},CONTROLLER://{_LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{_LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "log.segment.bytes": str(64 << 20),
        "num.network.threads": "2",
        "num.io.threads": "4",
    }

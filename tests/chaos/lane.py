"""A deployment under load and under faults, from its first record to the verdict on it."""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams.tasks import ROLE
from streams.topics import CHANGELOG, partition_for
from tests.broker.traffic import ITEMS, JOIN, Sent, generate
from tests.chaos.plan import DAMAGED, Strike
from tests.chaos.proxy import Network
from tests.chaos.views import Verdict, compare
from tests.kafka_cluster import KafkaCluster
from tests.shell.streams_harness import Deployment, Worker, last_opened, wait_for

USERS: Final = 60
EVENTS_A_STRIKE: Final = 80
PARTITIONS: Final = 6
PATIENCE_S: Final = 150.0
_REACH_S: Final = 30.0
"""A point that was not reached in this time is not reached at all: the worker is killed where it is."""

FULL_BYTES: Final = 40_000
"""What a file of a worker may have on a full disk: some batches' worth of RocksDB's log."""

_PIECE: Final = 12
_PAUSE_S: Final = 0.1
_BATCH: Final = 150
_RESTARTS: Final = 3


class Lane:
    """Topics, a load and workers of their own; strikes come one after the other.

    Args:
        kafka: the brokers, which other lanes share.
        network: everybody's way to it.
        outage: held by whoever takes either away.
        directory: for data directories and logs.
        seed: of traffic and of what happens to directories.
        strikes: the faults.

    Attributes:
        kills: SIGKILLs that struck.
        faults: how often each struck.
    """

    def __init__(
        self,
        kafka: KafkaCluster,
        network: Network,
        outage: threading.Lock,
        directory: Path,
        seed: int,
        strikes: Sequence[Strike],
    ) -> None:
        self.kills = 0
        self.faults: Counter[str] = Counter()
        self._kafka, self._network, self._outage, self._strikes = kafka, network, outage, strikes
        self._rng = random.Random(seed)
        self._traffic = generate(seed, EVENTS_A_STRIKE * (len(strikes) + 2), USERS)
        self._made = Deployment(
            network.address,
            directory,
            partitions=PARTITIONS,
            replication_factor=min(3, len(kafka.brokers)),
            max_batch_records=_BATCH,
            standby_replicas=seed % 3,
        )
        self._made.options["join"] = JOIN
        self._producer = Producer(
            {"bootstrap.servers": network.address, "linger.ms": 5, "enable.idempotence": True, "log_level": 0}
        )
        self._watch = Consumer(
            {"bootstrap.servers": network.address, "group.id": self._made.settings.group(ROLE), "log_level": 0}
        )
        self._struck = 0
        self._over = threading.Event()
        self._unloaded: BaseException | None = None

    def run(self) -> Verdict:
        """All strikes under load, then the rest of the load, then the comparison."""
        load = threading.Thread(target=self._load, daemon=True)
        try:
            self._catalogue()
            load.start()
            for strike in self._strikes:
                began = time.monotonic()
                getattr(self, f"_{strike.kind}")(strike)
                self._struck += 1
                self._copy()
                sys.stderr.write(f"{time.monotonic() - began:6.1f} s  {strike}\n")
            self._struck += len(self._strikes)
            load.join(PATIENCE_S)
            if self._unloaded is not None:
                raise self._unloaded
            assert not load.is_alive(), "the load did not end"
            return self._finish()
        finally:
            self._over.set()
            self._made.close()
            self._watch.close()

    # The load.

    def _catalogue(self) -> None:
        for item in ITEMS:
            self._send(Sent("items", item, json.dumps({"item_id": item, "categories": [item[-1]]}).encode()))
        self._flush()

    def _load(self) -> None:
        """Publish piece by piece, not further ahead than the strikes have come."""
        records, sent = self._traffic.records, 0
        try:
            while sent < len(records) and not self._over.wait(_PAUSE_S):
                allowed = min(EVENTS_A_STRIKE * (self._struck + 1), len(records))
                if self._struck > len(self._strikes):
                    allowed = len(records)
                piece = records[sent : min(sent + _PIECE, allowed)]
                for record in piece:
                    self._send(record)
                self._flush()
                sent += len(piece)
        except BaseException as error:  # noqa: BLE001 - the lane's own thread raises it
            self._unloaded = error

    def _send(self, record: Sent) -> None:
        partitions = range(PARTITIONS)
        key = None if record.user is None else record.user.encode()
        for partition in partitions if key is None else (partition_for(key, PARTITIONS),):
            self._producer.produce(self._made.settings.topic(record.role), record.value, key, partition)

    def _flush(self) -> None:
        assert self._producer.flush(PATIENCE_S) == 0, "the load could not be published"

    # The strikes.

    def _killed(self, strike: Strike) -> None:
        """One worker, killed at a point or at a moment."""
        self._spoil(strike.directory)
        worker = self._start("w0", f"{strike.point}=kill:{strike.passes}" if strike.point else "")
        within_s = _REACH_S if strike.point else strike.moment_s
        for _ in range(_RESTARTS):
            _until(lambda worker=worker: worker.process.poll() is not None, within_s)  # type: ignore[misc]
            if worker.process.poll() != 1:
                break
            self._failed(worker)
            worker = self._start("w0")
            within_s = strike.moment_s
        self._kill(worker, strike.point)

    def _crowd(self, strike: Strike) -> None:
        """One worker, then three under load; two are killed, and the one that stays has it all."""
        self._spoil(strike.directory)
        names = ["w0", "w1", "w2"]
        workers = {name: self._start(name) for name in names}
        self._wait(lambda: _shared([self._alive(workers, name) for name in names]), "three workers share")
        _until(lambda: False, strike.moment_s)
        for name in names[1:]:
            self._kill(workers[name])
        self._wait(lambda: len(_opened(self._alive(workers, "w0"))) == PARTITIONS, "one worker has it all")
        self.faults["one worker, three, one"] += 1
        self._end(workers["w0"])

    def _moved(self, strike: Strike) -> None:
        """A worker killed at a point of a rebalance that another one caused by coming or going."""
        struck = self._start("w0", f"{strike.point}=kill:{2 if strike.point == 'revoked' else 1}")
        _until(lambda: bool(_opened(struck)) or struck.process.poll() is not None, PATIENCE_S)
        other = self._start("w1")
        _until(lambda: bool(_opened(other)) or struck.process.poll() is not None, _REACH_S)
        self._end(other)
        _until(lambda: struck.process.poll() is not None, _REACH_S)
        if struck.process.poll() == 1:  # Of an outage that another lane made meanwhile.
            self._failed(struck)
            struck = self._start("w0")
        self._kill(struck, strike.point)

    def _zombie(self, strike: Strike) -> None:
        """Stopped until another worker has taken everything over, then woken: it fails, or begins anew."""
        self._spoil(strike.directory)
        workers = {"w0": self._start("w0", f"{strike.point}=stop:{strike.passes}" if strike.point else "")}
        _until(lambda: _stopped(workers["w0"]), _REACH_S if strike.point else strike.moment_s + 3)
        zombie = self._alive(workers, "w0")
        zombie.process.send_signal(signal.SIGSTOP)
        self._wait(lambda: _stopped(zombie), "the worker stops")
        before = _assignments(zombie)
        workers["w1"] = self._start("w1")
        self._wait(lambda: len(_opened(self._alive(workers, "w1"))) == PARTITIONS, "another worker takes over")
        consumed = self._consumed()
        self._wait(lambda: self._consumed() > consumed or not self._behind(), "the other worker goes on")
        zombie.process.send_signal(signal.SIGCONT)
        self._wait(lambda: zombie.process.poll() is not None or _assignments(zombie) > before, "the zombie's end")
        assert zombie.process.poll() in (None, 1), zombie.said()[-4_000:]
        self.faults["stopped past its session and woken"] += 1
        self._end(zombie)
        self._end(workers["w1"])

    def _broker(self, strike: Strike) -> None:
        """The broker killed under load, and started again after a while."""
        self._outlive(strike, "the broker killed", lambda: self._kafka.stop(signal.SIGKILL), self._kafka.start)

    def _leader(self, strike: Strike) -> None:
        """The broker that leads a partition killed under load, and started again after a while."""
        topic, partition = self._made.settings.topic(CHANGELOG), self._rng.randrange(PARTITIONS)
        self._outlive(
            strike,
            "the leader of a partition killed",
            lambda: self._kafka.kill_leader(topic, partition),
            self._kafka.start,
        )

    def _full(self, strike: Strike) -> None:
        """A worker whose disk is full: it ends, says why, and its directory is found whole or made anew."""
        self._spoil(strike.directory)
        worker = self._made.worker("w0", file_bytes=FULL_BYTES)
        self._wait(lambda: worker.process.poll() is not None or not self._behind(), "the disk is full, or all is done")
        if (code := worker.process.poll()) is None:
            self._end(worker)
            return
        log = worker.said()
        assert code == 1, f"{code}: {log[-4_000:]}"
        if "File too large" in log:
            self.faults["disk full"] += 1
        else:
            self._failed(worker)  # Of an outage that another lane made meanwhile.

    def _cut(self, strike: Strike) -> None:
        """Every connection broken and none to be had for a while."""
        self._outlive(strike, "the network cut", self._network.cut, self._network.restore)

    def _held(self, strike: Strike) -> None:
        """Nothing arrives for a while, and then all of it."""
        self._outlive(strike, "the network held", self._network.hold, self._network.restore)

    def _outlive(self, strike: Strike, name: str, away: Callable[[], None], back: Callable[[], None]) -> None:
        self._spoil(strike.directory)
        workers = {"w0": self._start("w0")}
        self._wait(lambda: _opened(self._alive(workers, "w0")), "a worker")
        with self._outage:
            away()
            _until(lambda: False, strike.moment_s)
            back()
        self.faults[name] += 1
        self._caught_up(workers)
        self._end(self._alive(workers, "w0"))

    # What strikes need.

    def _start(self, name: str, failpoints: str = "") -> Worker:
        return self._made.worker(name, failpoints=failpoints)

    def _alive(self, workers: dict[str, Worker], name: str) -> Worker:
        """The worker of this name, started again where it has failed."""
        if (code := workers[name].process.poll()) is not None:
            assert code == 1, workers[name].said()[-4_000:]
            self._failed(workers[name])
            workers[name] = self._start(name)
        return workers[name]

    def _failed(self, worker: Worker) -> None:
        self.faults["a worker ended with 1 and was started again"] += 1
        assert self.faults["a worker ended with 1 and was started again"] < 10 + len(self._strikes), worker.said()[
            -4_000:
        ]

    def _kill(self, worker: Worker, point: str = "") -> None:
        """SIGKILL, unless the point did it."""
        reached = worker.process.poll() is not None
        worker.kill()
        assert worker.process.returncode == -signal.SIGKILL, worker.said()[-4_000:]
        self.kills += 1
        self.faults[f"killed at {point}" if reached and point else "killed at a moment"] += 1

    def _end(self, worker: Worker) -> None:
        if worker.process.poll() is None:
            code = worker.terminate(PATIENCE_S)  # By the signal itself where it was still being loaded.
            assert code in (0, 1, -signal.SIGTERM), f"{code}: {worker.said()[-4_000:]}"

    def _spoil(self, what: str) -> None:
        """Do to the first worker's data directory what its name says, where there is one."""
        path, copy = self._made.directory / "w0", self._made.directory / "w0-copy"
        if what == "kept" or not path.exists() or (what == "stale" and not copy.exists()):
            return
        if what in DAMAGED:
            files = sorted(file for file in path.glob(f"{ROLE}/*/*") if file.stat().st_size)
            _damage(self._rng.choice(files), what)
        else:
            shutil.rmtree(path)
        if what == "stale":
            copy.rename(path)
        self.faults[f"data directory {what}"] += 1

    def _copy(self) -> None:
        """Keep a copy of the first worker's directory, to come back as a stale one."""
        path, copy = self._made.directory / "w0", self._made.directory / "w0-copy"
        if path.exists() and not copy.exists():
            shutil.copytree(path, copy)

    def _positions(self) -> tuple[int, int]:
        """Records consumed, and records there are; unknown while another lane has the broker down."""
        parts = [
            TopicPartition(self._made.settings.topic(role), number)
            for role in ("impressions", "clicks")
            for number in range(PARTITIONS)
        ]
        try:
            committed = sum(max(0, at.offset) for at in self._watch.committed(parts, 10))
            return committed, sum(self._watch.get_watermark_offsets(part, 10)[1] for part in parts)
        except KafkaException:
            return -1, 0

    def _consumed(self) -> int:
        return self._positions()[0]

    def _behind(self) -> bool:
        consumed, there = self._positions()
        return not 0 <= consumed == there

    def _caught_up(self, workers: dict[str, Worker]) -> None:
        self._wait(lambda: _opened(self._alive(workers, "w0")) and not self._behind(), "everything is consumed")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait; a failure has the ends of the newest logs, which go with the lane's directory."""
        try:
            wait_for(condition, what, PATIENCE_S)
        except AssertionError as error:
            newest = sorted(self._made.directory.glob("*.log"), key=lambda log: log.stat().st_mtime)[-2:]
            ends = "\n".join(f"{log.name}: {log.read_text()[-4_000:]}" for log in newest)
            raise AssertionError(f"{error}\n{ends}") from error

    def _finish(self) -> Verdict:
        workers = {"w0": self._start("w0")}
        self._caught_up(workers)
        assert workers["w0"].terminate(PATIENCE_S) == 0, workers["w0"].said()[-4_000:]
        early = sum(log.read_text().count("changelog-behind-group") for log in self._made.directory.glob("*.log"))
        if early:
            self.faults["the end of a changelog told too early, and asked again"] += early
        with self._outage:
            return compare(self._made, self._traffic, self._made.directory / "w0")


def _until(condition: Callable[[], bool], within_s: float) -> bool:
    """Wait for a condition, but not for longer than this; whether it came to hold."""
    deadline, never = time.monotonic() + within_s, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        never.wait(0.02)
    return True


def _stopped(worker: Worker) -> bool:
    flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return worker.process.poll() is None and os.waitid(os.P_PID, worker.process.pid, flags) is not None


def _opened(worker: Worker) -> list[int]:
    return last_opened(worker.said())


def _assignments(worker: Worker) -> int:
    return worker.said().count('"assigned"')


def _shared(workers: Sequence[Worker]) -> bool:
    opened = [_opened(worker) for worker in workers]
    return all(opened) and sorted(number for each in opened for number in each) == [*range(PARTITIONS)]


def _damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    for place in range(len(content) // 2, len(content), 1_000) if how == "corrupted" else ():
        content[place] ^= 0x10
    file.write_bytes(content)

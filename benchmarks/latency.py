"""Click → fresh slate at 1 000 events a second, exactly once, beside a bare round trip and Kafka Streams' bare job.

    python -m benchmarks.latency [--quick] [--seed N] [--json] [--keep]

All of them are up on one Apache Kafka and have taken a backlog; then each has the load in turn, round by round, and is
read as it is committed. Broker, workers, load and measurement share the machine. Java and Maven bring the broker.
"""

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from benchmarks.contest import Log, benchmark_broker, create, running
from benchmarks.load import BareLoad, Load
from benchmarks.peers.headwater import settings as bare_settings
from benchmarks.peers.start import PEERS, Place, prepare
from benchmarks.profile import keep_profile
from benchmarks.report import Figure, main, median
from headwater.processes import Child
from headwater.settings import load
from streams.assigned import Assigned
from streams.recovery import Reader
from streams.settings import StreamSettings
from streams.topics import declare

_RATE: Final = 1_000
_WARM_S: Final = 3.0
_GRACE_S: Final = 30.0
_BARE_BACKLOG: Final = 60_000
_FULL_BACKLOG: Final = 30_000
_USERS: Final = 5_000
"""Of the full job: its backlog leaves each with some five impressions that are still open."""
_PROFILE_S: Final = 8
_OVER: Final[Hashable] = object()

Percentiles = tuple[float, float]
"""The median and the 99th, in ms."""


class _Slate(msgspec.Struct):
    user_id: str
    event_time_ms: int


class _Live(NamedTuple):
    """One who can be measured.

    Attributes:
        events: sends so many; yields what each waits for, None for what nobody waits for.
        found: what a record of the output answers, of those who wait.
        settings: of the topics.
        output: the topic that is read.
    """

    events: Callable[[int], Iterator[Hashable]]
    found: Callable[[Any, Iterable[Hashable]], Hashable]
    settings: StreamSettings
    output: str


def percentiles(live: _Live, seconds: float) -> Percentiles:
    """From sending an event to reading what it caused."""
    reader, asker = Assigned(live.settings, "benchmark"), Reader(live.settings, "benchmark")
    reader.assign({(live.output, part): asker.end(live.output, part) for part in range(live.settings.partitions)})
    asker.close()
    waiting: dict[Hashable, float] = {}
    taken: list[tuple[float, float]] = []
    began = time.monotonic()
    events = live.events(int(seconds * _RATE))
    sent, more = 0, True
    while more or waiting:
        while more and sent < (time.monotonic() - began) * _RATE:
            event = next(events, _OVER)
            if event is _OVER:
                more = False
                break
            sent += 1
            if event is not None:
                waiting.setdefault(event, time.monotonic())
        for message in reader.consume(1_000, 0.001):
            if message.error() is None and message.value() is not None:
                answered = live.found(message, waiting)
                if answered in waiting:
                    taken.append((time.monotonic(), waiting.pop(answered)))
        if time.monotonic() - began > seconds + _GRACE_S:
            raise TimeoutError(f"{len(waiting)} events without an answer")
    reader.close()
    warm = began + min(_WARM_S, seconds / 3)
    p50, p99 = np.percentile([(at - asked) * 1_000 for at, asked in taken if asked >= warm], (50, 99))
    return float(p50), float(p99)


class _Clicks:
    """A user's latest click that waits, and the slate that it, or a later record, has caused."""

    def __init__(self, backlog: Load) -> None:
        self._backlog = backlog
        self._asked: dict[str, int] = {}

    def events(self, count: int) -> Iterator[Hashable]:
        for role, user in self._backlog.events(count):
            if role == "clicks":
                self._asked.setdefault(user, self._backlog.now_ms)
                yield user
            else:
                yield None

    def found(self, message: Any, waiting: Iterable[Hashable]) -> Hashable:  # noqa: ARG002 - `_Live`'s
        slate = msgspec.json.decode(message.value(), type=_Slate)
        if slate.event_time_ms < self._asked.get(slate.user_id, sys.maxsize):
            return None
        del self._asked[slate.user_id]
        return slate.user_id


class _Counts:
    """The bare job's events: the n-th of a user is answered by the output n."""

    def __init__(self, backlog: BareLoad, before: Counter[bytes]) -> None:
        self._backlog = backlog
        self._sent = before

    def events(self, count: int) -> Iterator[Hashable]:
        for user, _ in self._backlog.events(count):
            self._sent[user] += 1
            yield user, self._sent[user]

    def found(self, message: Any, waiting: Iterable[Hashable]) -> Hashable:  # noqa: ARG002 - `_Live`'s
        return message.key(), int.from_bytes(message.value(), "big")


def _round_trip(broker: str, folder: Path, seed: int) -> _Live:
    settings = bare_settings(broker, "round-trip", "round-trip", folder)
    create(settings, "round-trip")
    backlog = BareLoad(settings, "round-trip", seed)
    return _Live(
        lambda count: (b"%d" % number for _, number in backlog.events(count)),
        lambda message, _: message.value().split(b",")[0].rpartition(b" ")[2],
        settings,
        "round-trip",
    )


def _bare(peer: str, broker: str, folder: Path, seed: int, share: float, stack: contextlib.ExitStack) -> _Live:
    name, source = f"bare-{peer}".replace("_", "-"), f"bare-{peer}-source"
    settings = bare_settings(broker, source, name, folder / name)
    create(settings, source)
    place = Place(broker, source, settings.topic("recommendations"), name, folder / name)
    if peer == "headwater":
        declare(settings)
    else:
        create(settings, place.output)
    backlog, count = BareLoad(settings, source, seed), int(share * _BARE_BACKLOG)
    sent = Counter(user for user, _ in backlog.events(count))
    backlog.flush()
    process = stack.enter_context(running(PEERS[peer], place))
    log = Log(settings, place.output)
    log.read(process, count)
    log.close()
    counts = _Counts(backlog, sent)
    return _Live(counts.events, counts.found, settings, place.output)


def _full(broker: str, folder: Path, seed: int, share: float, stack: contextlib.ExitStack) -> tuple[_Live, Child]:
    given = {"streams.brokers": broker, "streams.data_dir": f"{folder}/full"}
    settings = load(given).settings.streams
    declare(settings)
    backlog, count = Load(settings, _USERS, seed), int(share * _FULL_BACKLOG)
    backlog.items()
    for _ in backlog.events(count):
        pass
    backlog.flush()
    ends = _ends(settings)
    worker = Child(["worker", "personalize"], given, folder / "full.log")
    stack.callback(worker.stop)
    _caught_up(settings, worker, ends)
    clicks = _Clicks(backlog)
    return _Live(clicks.events, clicks.found, settings, settings.topic("recommendations")), worker


def _ends(settings: StreamSettings) -> dict[int, dict[str, int]]:
    """By partition, where both topics end now."""
    reader = Reader(settings, "benchmark")
    topics = [settings.topic(role) for role in ("impressions", "clicks")]
    ends = {part: {topic: reader.end(topic, part) for topic in topics} for part in range(settings.partitions)}
    reader.close()
    return ends


def _caught_up(settings: StreamSettings, worker: Child, ends: dict[int, dict[str, int]]) -> None:
    """Wait until the group has committed so much."""
    reader = Reader(settings, settings.group("personalize"))
    for part, wanted in ends.items():
        while any(reader.committed(wanted, part).get(topic, 0) < end for topic, end in wanted.items()):
            worker.check()
            time.sleep(0.2)
    reader.close()


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Percentiles of each, and their ratios round by round."""
    prepare()
    share, rounds, seconds = (0.1, 1, 6.0) if options.quick else (1.0, 3, 10.0)
    found: dict[str, list[Percentiles]] = {}
    with tempfile.TemporaryDirectory() as name, benchmark_broker() as broker, contextlib.ExitStack() as stack:
        folder, address = Path(name), broker.address
        full, worker = _full(address, folder, options.seed, share, stack)
        lives = {
            "round_trip": _round_trip(address, folder, options.seed),
            "kafka_streams": _bare("kafka_streams", address, folder, options.seed, share, stack),
            "bare": _bare("headwater", address, folder, options.seed, share, stack),
            "full": full,
        }
        for _ in range(rounds):
            for who, live in lives.items():
                found.setdefault(who, []).append(percentiles(live, seconds))
                print(who, "p50 {:.1f} ms, p99 {:.1f} ms".format(*found[who][-1]), file=sys.stderr)
        if options.keep:
            watch = threading.Thread(target=keep_profile, args=("latency-full", worker.pid, _PROFILE_S))
            watch.start()
            percentiles(full, _PROFILE_S + 2)
            watch.join()
    yield from _figures(found)


def _figures(found: dict[str, list[Percentiles]]) -> Iterator[Figure]:
    p50, p99 = ({who: [each[place] for each in rounds] for who, rounds in found.items()} for place in (0, 1))
    yield median("p50_ms", p50["full"])
    yield median("p99_ms", p99["full"], target=50, sense="<=")
    for peer, target in (("round_trip", 3.0), ("kafka_streams", 0.5)):
        ratios = [ours / theirs for ours, theirs in zip(p99["full"], p99[peer], strict=True)]
        yield median(f"p99_vs_{peer}", ratios, target=target, sense="<=", peer=peer)
    for who in ("bare", "kafka_streams", "round_trip"):
        yield median(f"{who}_p50_ms", p50[who])
        yield median(f"{who}_p99_ms", p99[who])


if __name__ == "__main__":
    main("latency", __doc__, measure)

"""Events a second, exactly once, beside the peers: the bare job and the full job, on one Apache Kafka.

    python -m benchmarks.throughput [--quick] [--seed N] [--part PEER]... [--json] [--keep]

Each pair is one run of ours and one of a peer, one after the other, on the same broker and from the same backlog; a
figure is the median of its pairs' ratios. Broker, worker and measurement share the machine. Java and Maven bring the
broker.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contest import Log, Process, benchmark_broker, check, create, rate, running
from benchmarks.load import BareLoad, Load
from benchmarks.peers.headwater import settings as bare_settings
from benchmarks.peers.start import PEERS, Place, prepare
from benchmarks.profile import keep_profile
from benchmarks.report import Figure, main, median
from headwater.processes import Child
from headwater.settings import Settings, load
from model_core.records import Step
from streams.topics import declare

__all__ = ["PARTS", "Field"]

_BACKLOG: Final = 400_000
_FULL: Final = 40_000
_USERS: Final = 5_000
"""Of the full job."""

_LIMITS: Final = {
    "headwater": 250_000,
    "loop": 250_000,
    "quix": 100_000,
    "quix_at_least_once": 100_000,
    "faust": 6_000,
    "quix_full": 5_000,
    "quix_full_at_least_once": 5_000,
}
"""Events after which a peer has been seen long enough; who has most to warm up takes the whole backlog."""

_QUICK: Final = 0.1
"""Share of all of these in a quick run."""

_PAIRS: Final = 5
_FEW_PAIRS: Final = 3
_ENOUGH_S: Final = 70.0
"""A part that has taken so long is content with the few pairs."""
_PROFILE_S: Final = 4
_PROFILES: Final = "profiles"
"""The part that keeps where our two jobs spend their time."""

PARTS: Final = {
    "kafka_streams": ("bare_vs_kafka_streams", ("kafka_streams",), 1.0),
    "quix": ("bare_vs_quix", ("quix", "quix_at_least_once"), 3.0),
    "faust": ("bare_vs_faust", ("faust",), 30.0),
    "loop": ("bare_vs_loop", ("loop",), 0.85),
    "full": ("full_vs_quix", ("quix_full", "quix_full_at_least_once"), 5.0),
}
"""By part: its figure, the peers of which the faster one counts, the target."""


class Field:
    """The broker and the backlogs of a run.

    Attributes:
        peak_bytes: the largest that our worker of the full job has been in memory.
    """

    def __init__(self, broker: str, folder: Path, seed: int, share: float) -> None:
        self._broker = broker
        self._folder = folder
        self._seed = seed
        self._share = share
        self._numbers = itertools.count()
        self._settings = bare_settings(broker, "bare", "backlog", folder)
        self._filled = False
        self.peak_bytes = 0
        self._full: tuple[Settings, dict[str, str]]

    def _limit(self, peer: str, backlog: int) -> int:
        return int(self._share * _LIMITS.get(peer, backlog))

    def _place(self, peer: str, source: str) -> Place:
        name = f"{peer}-{next(self._numbers)}".replace("_", "-")
        return Place(self._broker, source, f"{name}-recommendations", name, self._folder / name)

    def bare(self, peer: str, seen: Callable[[Process], None] | None = None) -> float:
        """Events a second of one run of the bare job."""
        if not self._filled:
            create(self._settings, "bare")
            backlog = BareLoad(self._settings, "bare", self._seed)
            for _ in backlog.events(int(self._share * _BACKLOG)):
                pass
            backlog.flush()
            self._filled = True
        place = self._place(peer, "bare")
        if peer == "headwater":
            declare(bare_settings(*place[:2], place.name, place.folder))
        else:
            create(self._settings, place.output, f"{place.name}-changelog")
        return self._outputs(peer, place, self._limit(peer, _BACKLOG), seen, counts=True)

    def _outputs(
        self, peer: str, place: Place, limit: int, seen: Callable[[Process], None] | None = None, *, counts: bool
    ) -> float:
        with running(PEERS[peer], place) as process:
            log = Log(self._settings, place.output)
            if seen is not None:
                log.wait(process, 1)
                seen(process)
            messages = log.read(process, limit)
            log.close()
        if counts:
            check(messages)
        found = rate([message.timestamp()[1] for message in messages], [1] * len(messages), limit=limit)
        print(f"{place.name}: {found:,.0f} events/s", file=sys.stderr)
        return found

    def full(self, seen: Callable[[Process], None] | None = None) -> float:
        """Events a second of one run of the full job, by its `steps`; its backlog is new, and stays for `full_peer`."""
        name = f"full-{next(self._numbers)}"
        given = {
            "streams.brokers": self._broker,
            "streams.data_dir": str(self._folder / name),
            "streams.topic_prefix": f"{name}-",
            "streams.group_prefix": f"{name}-",
        }
        settings = load(given).settings
        declare(settings.streams)
        backlog, events = Load(settings.streams, _USERS, self._seed), int(self._share * _FULL)
        backlog.items()
        for _ in backlog.events(events):
            pass
        backlog.flush()
        self._full = settings, given
        worker = Child(["worker", "personalize"], given, self._folder / f"{name}.log")
        try:
            log = Log(settings.streams, settings.streams.topic("steps"))
            if seen is not None:
                log.wait(worker, 1)
                seen(worker)
            times: list[int] = []
            counts: list[int] = []
            while sum(counts) < events:
                for message in log.read(worker, 1):
                    times.append(message.timestamp()[1])
                    offsets = msgspec.json.decode(message.value(), type=Step).offsets
                    counts.append(sum(end - first for first, end in offsets.values()))
            log.close()
            self.peak_bytes = max(self.peak_bytes, _peak_bytes(worker.pid))
        finally:
            worker.stop()
        found = rate(times, counts, limit=events)
        print(f"{name}: {found:,.0f} events/s", file=sys.stderr)
        return found

    def full_peer(self, peer: str) -> float:
        """The same of a peer, from the backlog of the last `full`; each of its events has one slate."""
        settings, _ = self._full
        sources = ",".join(settings.streams.topic(role) for role in ("impressions", "clicks"))
        place = self._place(peer, sources)
        create(self._settings, place.output)
        return self._outputs(peer, place, self._limit(peer, _FULL), counts=False)


def _peak_bytes(pid: int) -> int:
    """The largest resident set that a process has had; 0 where there is no /proc to say so."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1_024 for line in lines if line.startswith("VmHWM"))


def _pairs(field: Field, part: str, pairs: int) -> tuple[list[float], list[float]]:
    """Events a second of ours, and of the peer at its faster setting."""
    _, peers, _ = PARTS[part]
    ours, theirs = [], []
    began = time.monotonic()
    for pair in range(pairs):
        if pair >= _FEW_PAIRS and time.monotonic() - began > _ENOUGH_S:
            break
        if part == "full":
            ours.append(field.full())
            theirs.append(max(field.full_peer(peer) for peer in peers))
        else:
            ours.append(field.bare("headwater"))
            theirs.append(max(field.bare(peer) for peer in peers))
    return ours, theirs


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """The ratios of the chosen parts, and events a second of both jobs."""
    prepare()
    rates: dict[str, list[float]] = {"bare": [], "full": []}
    with tempfile.TemporaryDirectory() as folder, benchmark_broker() as broker:
        field = Field(broker.address, Path(folder), options.seed, _QUICK if options.quick else 1.0)
        for part in (part for part in PARTS if part in options.part):
            figure, peers, target = PARTS[part]
            ours, theirs = _pairs(field, part, 1 if options.quick else _PAIRS)
            rates["full" if part == "full" else "bare"] += ours
            yield median(figure, [a / b for a, b in zip(ours, theirs, strict=True)], target=target, peer=peers[0])
            yield median(f"{part}_peer_events_per_s", theirs, peer=peers[0])
        for job, found in rates.items():
            if found:
                yield median(f"{job}_events_per_s", found)
        if _PROFILES in options.part and options.keep:
            for job in rates:
                _profile(field, job)


def _profile(field: Field, job: str) -> None:
    """One run more, which is watched and so not counted."""

    def seen(process: Process) -> None:
        keep_profile(f"throughput-{job}", process.pid, _PROFILE_S)

    if job == "full":
        field.full(seen)
    else:
        field.bare("headwater", seen)


if __name__ == "__main__":
    main("throughput", __doc__, measure, parts=(*PARTS, _PROFILES))

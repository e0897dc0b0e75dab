"""Which faults strike, in which order: a function of seed and number of kills alone."""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

BATCH: Final = (
    "before-load",
    "after-step",
    "before-commit",
    "in-transaction",
    "offsets-sent",
    "before-end-transaction",
    "after-commit",
    "store-write",
    "after-store",
)
"""Failpoints that every batch passes."""

OPENING: Final = ("assigned", "id-fenced", "recovered")
"""Those that every assignment passes."""

RECOVERY: Final = ("recovery-batch",)
"""Those of a recovery that has something to read."""

REBALANCE: Final = ("revoked", "drained")
"""Those of a worker whose partitions move."""

LOST: Final = ("wiped", "stale")
DAMAGED: Final = ("truncated", "corrupted")
DIRECTORIES: Final = ("kept", "kept", "kept", *LOST, *DAMAGED)
"""What may have become of a data directory when its worker starts; most often nothing."""


class Strike(NamedTuple):
    """One fault.

    Attributes:
        kind: `killed`: one worker at a point or at a moment; `crowd`: three workers under load, two of them killed,
            back to one; `moved`: killed while its partitions move; `zombie`: stopped past its session timeout, and
            woken; `broker`: the broker, or all of them, killed and started again; `leader`: the broker that leads a
            partition killed, and started again; `full`: no file of the worker may grow any more; `cut`, `held`: the
            network gone for a while.
        kills: SIGKILLs of workers in it.
        directory: what the first worker finds.
        point: where the worker is struck; empty for a moment.
        passes: through that point.
        moment_s: of a kill without a point, or how long the broker or the network is gone.
    """

    kind: str
    kills: int
    directory: str = "kept"
    point: str = ""
    passes: int = 1
    moment_s: float = 0.0


def plan(seed: int, kills: int) -> list[Strike]:
    """Strikes with this many kills: all points in turn, every fifth one of the other faults.

    Neighbouring seeds begin with different faults, so that a few lanes soon have all of them.
    """
    rng = random.Random(seed)
    strikes: list[Strike] = []
    points = _points(rng)
    others = _others(rng, seed)
    while (left := kills - sum(strike.kills for strike in strikes)) > 0:
        if len(strikes) % 5 == 1 and (other := next(others)).kills <= left:
            strikes.append(other)
        else:
            strikes.append(next(points))
    return strikes


def _points(rng: random.Random) -> Iterator[Strike]:
    while True:
        round_of = [*BATCH, *OPENING, *RECOVERY, "store-wiped", "", "", ""]
        rng.shuffle(round_of)
        round_of.sort(key=lambda point: point in RECOVERY)  # Last, when there is something to recover.
        for point in round_of:
            yield Strike("killed", 1, _directory(rng, point), point, rng.randint(1, 4), rng.uniform(1.0, 6.0))


def _others(rng: random.Random, seed: int) -> Iterator[Strike]:
    kinds = ("crowd", "zombie", "broker", "leader", *REBALANCE, "cut", "held", "full")
    while True:
        for place in range(len(kinds)):
            kind = kinds[(seed + place) % len(kinds)]
            directory, passes, moment_s = rng.choice(DIRECTORIES), rng.randint(1, 3), rng.uniform(0.5, 4.0)
            if kind in ("cut", "held"):
                yield Strike(kind, 0, directory, moment_s=4 * moment_s)
            elif kind in REBALANCE:
                yield Strike("moved", 1, point=kind)
            elif kind == "zombie":
                yield Strike(kind, 0, directory, rng.choice(("", *BATCH)), passes, moment_s)
            else:
                yield Strike(kind, 2 if kind == "crowd" else 0, directory, "", 1, moment_s)


def _directory(rng: random.Random, point: str) -> str:
    if point in RECOVERY:
        return "wiped"
    return "truncated" if point == "store-wiped" else rng.choice(DIRECTORIES)

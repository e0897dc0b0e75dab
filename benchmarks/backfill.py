"""How fast `headwater replay` takes a log from files: events a second of a core.

`events_per_s_per_core` has a slate for each user in a batch; `whole_events_per_s_per_core` one slate a user at the end
(`--slates last --no-transitions`): reading, join, heads, states and slates, and the start of the command.

    python -m benchmarks.backfill [--quick] [--seed N] [--json] [--keep]

The command itself runs, start and all, and is charged with every second of a core that it took, for whatever.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.load import impressions_and_clicks, items
from benchmarks.report import Figure, main, median

__all__ = ["replayed", "write_log"]

_EVENTS: Final = 100_000
_USERS: Final = 5_000
_WHOLE_EVENTS: Final = 400_000
_WHOLE_USERS: Final = 4_000
"""A hundred events a user, so that a slate a user is one for a hundred events."""
_WHOLE: Final = ("--slates", "last", "--no-transitions")
_STEP_MS: Final = 1_000
_ROUNDS: Final = 3


def write_log(folder: Path, events: int, users: int, seed: int) -> None:
    """A log of seeded impressions and clicks, a file a topic."""
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items()))
    with (folder / "impressions.jsonl").open("w") as impressions, (folder / "clicks.jsonl").open("w") as clicks:
        files = {"impressions": impressions, "clicks": clicks}
        log = impressions_and_clicks(np.random.default_rng(seed), users, _STEP_MS)
        for role, _, value in itertools.islice(log, events):
            files[role].write(json.dumps(value) + "\n")


def replayed(log: Path, out: Path, *options: str) -> float:
    """Seconds of a core that a replay takes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "headwater", "replay", str(log), "--out", str(out), "--json", *options]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Events a second of a core."""
    events, whole, rounds = (5_000, 5_000, 1) if options.quick else (_EVENTS, _WHOLE_EVENTS, _ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log", events, _USERS, options.seed)
        write_log(folder / "whole", whole, _WHOLE_USERS, options.seed)
        replayed(folder / "log", folder / "warm", *_WHOLE)  # The first start on a machine compiles.
        each = [events / replayed(folder / "log", folder / f"each-{turn}") for turn in range(rounds)]
        last = [whole / replayed(folder / "whole", folder / f"last-{turn}", *_WHOLE) for turn in range(rounds)]
    yield median("events_per_s_per_core", each, target=20_000)
    yield median("whole_events_per_s_per_core", last, target=200_000)


if __name__ == "__main__":
    main("backfill", __doc__, measure)

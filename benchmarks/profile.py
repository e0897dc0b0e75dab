"""Where a process spends its time: py-spy's samples as short tables, kept beside the figure.

Samples are of the thread that holds the interpreter's lock, for that is what a worker runs out of: what C does without
the lock (RocksDB, librdkafka, the disk) is not in them, and nor is waiting.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.report import RESULTS

__all__ = ["PROFILES", "keep_profile", "tables"]

PROFILES: Final = RESULTS / "profiles"
_ROWS: Final = 25
_SAMPLES_PER_S: Final = 100


def keep_profile(name: str, pid: int, seconds: int) -> None:
    """Watch a Python process for so long, and keep its busiest functions in benchmarks/results/profiles/NAME.txt.

    Raises:
        subprocess.CalledProcessError: py-spy may not look into the process, which on some machines takes root.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        command = ["record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_SAMPLES_PER_S)]
        program = Path(sys.executable).parent / "py-spy"
        subprocess.run(
            [str(program), *command, "--threads", "--gil", "--format", "raw", "--output", str(samples)],
            check=True,
            capture_output=True,
        )
        stacks = [line.rpartition(" ") for line in samples.read_text().splitlines()]
    PROFILES.mkdir(parents=True, exist_ok=True)
    found = tables([(stack.split(";"), int(count)) for stack, _, count in stacks])
    (PROFILES / f"{name}.txt").write_text(
        f"{name}: {seconds} s, {_SAMPLES_PER_S} samples a second, where somebody held the lock\n\n{found}"
    )


def tables(stacks: list[tuple[list[str], int]]) -> str:
    """Shares by thread, by function alone, and by function with what it calls.

    Args:
        stacks: frames from the outermost, the thread first, and how often they were seen.
    """
    threads: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for (thread, *frames), count in stacks:
        threads[thread.partition(": ")[2] or thread] += count
        names = [_short(frame) for frame in frames]
        if names:
            alone[names[-1]] += count
        within.update(dict.fromkeys(names, count))
    total = sum(threads.values())
    parts = (("threads", threads), ("in the function itself", alone), ("with what it calls", within))
    return "\n".join(f"{title}\n{_rows(counter, total)}" for title, counter in parts)


def _rows(counter: Counter[str], total: int) -> str:
    return "".join(f"  {count / total:6.1%}  {name}\n" for name, count in counter.most_common(_ROWS))


def _short(frame: str) -> str:
    """`function (file)`, without the line and without the folders of this machine."""
    function, _, place = frame.partition(" (")
    path = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    return f"{function} ({'/'.join(Path(path).parts[-2:])})"

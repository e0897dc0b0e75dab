"""`make poison`: bad records by the million among good ones; each refused for its reason, the good ones exact."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Final

from tests.poison.run import run

KEPT: Final = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "poison.json"
GROWTH_MB: Final = 64.0


def main() -> int:
    """Run, print what came of it, 1 where it is not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.poison", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="bad ones")
    parser.add_argument("--good", type=int, default=20_000, help="good ones among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the object alone, on one line")
    parser.add_argument("--keep", action="store_true", help=f"write the object to {KEPT.relative_to(Path.cwd())}")
    options = parser.parse_args()
    came = run(options.seed, options.records, options.good)
    result = {"command": " ".join(["python -m tests.poison", *sys.argv[1:]]), "python": platform.python_version()}
    result |= came._asdict()
    if options.keep:
        KEPT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=None if options.json else 2))  # noqa: T201 - its output
    right = not came.wrong and not came.different and came.states_equal and came.growth_mb <= GROWTH_MB
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Nothing lost, nothing twice, under faults: a run of `make chaos`, and what its plan and its views promise."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.plan import BATCH, OPENING, REBALANCE, RECOVERY, plan

KILLS = 21
KINDS = ("killed", "crowd", "moved", "zombie", "broker", "leader", "cut", "held", "full")


@pytest.mark.chaos
@pytest.mark.usefixtures("can_run_kafka")
def test_five_views_agree_after_kills_at_all_kinds_of_moments(tmp_path: Path) -> None:
    """Workers, broker and data directories are struck under load; oracle, outputs, changelog, RocksDB still agree."""
    result = run(1, KILLS, 3, tmp_path)
    assert (result["kills"], result["lost"], result["doubled"], result["views_equal"]) == (KILLS, 0, 0, True)
    assert result["events"] > 1_000


@pytest.mark.parametrize("kills", [1, 20, 67])
def test_a_plan_has_the_kills_that_were_asked_for_and_is_the_same_each_time(kills: int) -> None:
    """Seed and number alone decide."""
    assert sum(strike.kills for strike in plan(3, kills)) == kills
    assert plan(3, kills) == plan(3, kills) != plan(4, kills)


def test_a_long_plan_strikes_everywhere() -> None:
    """Every failpoint, every kind of fault, every fate of a directory."""
    strikes = plan(1, 60)
    points = Counter(strike.point for strike in strikes if strike.kills)
    assert points.keys() >= {*BATCH, *OPENING, *RECOVERY, *REBALANCE, "store-wiped", ""}
    assert {strike.kind for strike in strikes} == {*KINDS}
    assert {strike.directory for strike in strikes} == {"kept", "wiped", "stale", "truncated", "corrupted"}

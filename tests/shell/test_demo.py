"""What the demo does without its data, and what it shows."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from rich.console import Console

from headwater import demo
from headwater.cli import cli
from headwater.demo import Demo, DemoOptions, DemoSummary, Status
from headwater.view import LiveView, summary
from model_core.config import Algorithm
from producers.datasets import DatasetUnavailableError
from producers.scoring import Rate

RATES = {
    "headwater": Rate(value=0.2, low=0.18, high=0.22),
    "popularity": Rate(value=0.15, low=0.13, high=0.17),
    "random": Rate(value=0.05, low=0.04, high=0.06),
}


class Halves:
    """An A/A check's result."""

    difference = 0.001
    p_value = 0.8


def test_without_the_data_it_says_so_and_simulates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator's own people take the place of the real ones."""

    def unavailable(_: object) -> None:
        raise DatasetUnavailableError("no index answers")

    monkeypatch.setattr(demo, "fetch", unavailable)
    told: list[str] = []
    people = Demo(DemoOptions(), lambda status: told.append(status.phase))._people()
    assert any("no index answers" in phase and "simulator" in phase for phase in told)
    assert people.name != "MovieLens-100k"
    assert len(people.users) > 100


@pytest.mark.parametrize("learner", get_args(Algorithm))
def test_a_learner_by_name_reaches_the_trainer(
    learner: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are given the setting; a name that is none is refused by the command, with the names that are."""
    monkeypatch.setattr(demo, "require_broker", lambda *_: None)
    settings, options = Demo(DemoOptions(learner=learner))._settings("nowhere:1", tmp_path)
    assert settings.learner.algorithm == options["learner.algorithm"] == learner
    refused = CliRunner().invoke(cli, ["demo", "--learner", "dqn"])
    assert refused.exit_code == 2
    assert learner in refused.output


def test_the_live_view_shows_rates_model_loss_and_latency() -> None:
    """On a terminal all of it at once."""
    console = Console(force_terminal=True, width=140, record=True)
    status = Status(
        phase="live",
        counts=Counter(impressions=1_234, clicks=56),
        events_per_s=789.0,
        rates=RATES,
        model_version=3,
        metrics={"td_error_held_out": 0.41},
        latency_ms={"p50": 21.0, "p99": 84.0},
        rounds=2,
    )
    with LiveView(console) as view:
        view.show(status)
    text = console.export_text()
    for part in ("789 events/s", "1,234 impressions", "model 3", "0.410", "p99 84 ms", "headwater", "0.2000"):
        assert part in text, text


def test_elsewhere_the_view_tells_each_phase_once() -> None:
    """One line a phase, so that a log stays readable."""
    console = Console(force_terminal=False, width=100, record=True)
    with LiveView(console) as view:
        for phase in ("backfilling", "backfilling", "live"):
            view.show(Status(phase=phase))
    assert [line.split("] ")[1] for line in console.export_text().splitlines()] == ["backfilling", "live"]


def test_the_summary_tells_people_what_the_object_tells_programs() -> None:
    """Rates with intervals, gap, A/A check, dead letters."""
    given: dict[str, Any] = {
        "broker": "embedded", "data": "MovieLens-100k", "seconds": 60.0, "impressions": 10, "clicks": 2,
        "recommendations": 10, "transitions": 9, "corrections": 0, "dead_letters": 0, "users": 5, "model_version": 4,
        "events_per_s": 12.0, "latency_ms": {"p50": 20.0, "p99": 80.0}, "click_rate": RATES, "gap_closed": 0.21,
        "gap_closed_interval": Rate(value=0.21, low=0.1, high=0.3), "rated_click_rate": RATES,
        "few_clicks_rate": RATES,
        "popularity_by_count": RATES["popularity"], "oracle": Rate(value=0.4, low=0.38, high=0.42), "rounds": 6,
        "aa_check": Halves(), "people": {}, "counters": {}, "td_error_held_out": {"first": 0.5, "last": 0.4},
    }  # fmt: skip
    console = Console(width=140, record=True)
    console.print(summary(DemoSummary(**given)))
    text = console.export_text()
    for part in ("0 dead letters", "closes 21%", "10% – 30%", "p = 0.80", "0.1800 – 0.2200", "oracle"):
        assert part in text, text

"""`headwater tune`: searches on disk that go on where they stopped, and strategies for live traffic."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from headwater.settings import load
from headwater.simulation import Simulation, SimulationSettings
from headwater.tune import SPACES, Search, State, Tuned, described, next_arms, parameter, search_of, simulate
from model_core.errors import SettingsError
from model_core.records import Evaluation
from model_core.strategy.tuning import METHODS, Method, Parameter

SPACE = [Parameter(name="a", low=0.0, high=1.0), Parameter(name="b", low=0.1, high=10.0, log=True)]


def search(method: Method = "evolution", seed: int = 1) -> Search:
    return Search(where="simulation", method=method, seed=seed, space=SPACE)


def worth(parameters: dict[str, float], number: int) -> tuple[float, float]:
    return -((parameters["a"] - 0.3) ** 2) - 0.001 * number, 0.1


def drawn(told: Tuned) -> ET.Element:
    return ET.fromstring(Path(told.plot).read_text())  # noqa: S314 - what was just written


def failing(after: int) -> Callable[[dict[str, float], int], tuple[float, float]]:
    def told(parameters: dict[str, float], number: int) -> tuple[float, float]:
        if number == after:
            raise KeyboardInterrupt
        return worth(parameters, number)

    return told


@pytest.mark.parametrize("method", ["evolution", "random"])
def test_a_stopped_search_goes_on_as_if_it_had_not_been(tmp_path: Path, method: Method) -> None:
    """Wherever it stops, also in the middle of a line, the file ends up the same."""
    whole = State(tmp_path / "whole.jsonl", search(method))
    simulate(whole, 20, worth)
    path = tmp_path / "cut.jsonl"
    for after in (3, 11):
        with pytest.raises(KeyboardInterrupt):
            simulate(State(path, search(method)), 20, failing(after))
        with path.open("ab") as file:
            file.write(b'{"number":')
    told = simulate(State(path, search(method)), 20, worth)
    assert path.read_bytes() == whole.path.read_bytes()
    assert (told.trials, told.evaluated) == (20, 20)
    assert told.best is not None
    assert f"trial {told.best.number}" in described(told)


def test_a_file_of_another_search_is_refused(tmp_path: Path) -> None:
    """Trials of one space mean nothing in another; and what is no state is left as it is."""
    State(tmp_path / "a.jsonl", search())
    with pytest.raises(SettingsError, match="another search"):
        State(tmp_path / "a.jsonl", search(seed=2))
    (tmp_path / "b.jsonl").write_text("no state\n")
    with pytest.raises(SettingsError, match="expected the state of a search"):
        State(tmp_path / "b.jsonl", search())
    assert (tmp_path / "b.jsonl").read_text() == "no state\n"


def test_the_plot_shows_every_trial_in_every_picture(tmp_path: Path) -> None:
    """One picture by trial with the best so far, one for each parameter; before the first value it is empty."""
    state = State(tmp_path / "s.jsonl", search("random"))
    picture = drawn(state.tuned())
    assert not picture.findall(".//{*}circle")
    picture = drawn(simulate(state, 7, worth))
    assert len(picture.findall("{*}g")) == 3
    assert len(picture.findall(".//{*}circle")) == 21
    assert len(picture.findall(".//{*}polyline")) == 1
    titles = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"trial", "a", "b (log)"} <= titles


def evaluation(number: int, low: float | None, high: float | None, verdict: str = "supported: so") -> Evaluation:
    return Evaluation(
        policy=f"tune-{number}",
        estimator="rips",
        value=None if low is None or high is None else (low + high) / 2,
        low=low,
        high=high,
        effective_sample_size=500.0,
        mean_weight=1.0,
        largest_weight=2.0,
        verdict=verdict,
    )


def test_traffic_is_judged_by_the_lower_end_of_the_interval(tmp_path: Path) -> None:
    """The larger value with the wider interval loses; what is refused or unknown goes on running; the best stays."""
    state = State(tmp_path / "s.jsonl", Search(where="traffic", method="random", seed=1, space=SPACE))
    first = next_arms(state, {}, 2)
    assert list(first.arms) == ["tune-0", "tune-1"]
    assert next_arms(state, {}, 2).arms == first.arms
    refused = {"tune-0": evaluation(0, 0.2, 0.3), "tune-1": evaluation(1, 0.5, 0.6, "refused: thin")}
    second = next_arms(state, refused, 2)
    assert list(second.arms) == ["tune-0", "tune-1", "tune-2"]
    third = next_arms(state, {"tune-1": evaluation(1, 0.1, 0.9), "tune-2": evaluation(2, None, None)}, 2)
    assert third.best is not None
    assert third.best.number == 0
    assert list(third.arms) == ["tune-0", "tune-2", "tune-3"]
    assert state.trials[0].value == 0.2
    assert state.trials[0].error == pytest.approx(0.1 / 3.92, rel=1e-3)
    assert State(state.path, state.search).trials == state.trials
    assert "[strategies.arms.tune-3]" in described(third)


def test_the_named_strategies_are_settings_that_can_be_loaded(tmp_path: Path) -> None:
    """What it prints for headwater.toml is what the settings take."""
    state = State(tmp_path / "s.jsonl", search_of("traffic", "random", 1, []))
    lines = described(next_arms(state, {}, 2)).splitlines()
    file = tmp_path / "headwater.toml"
    file.write_text("\n".join(lines[lines.index("[strategies.arms.tune-0]") :]))
    arms = load(file=file, environment={}).settings.strategies.arms
    assert list(arms) == ["tune-0", "tune-1"]
    assert arms["tune-1"].temperature == pytest.approx(state.trials[1].parameters["temperature"], rel=1e-5)


def test_parameters_can_be_named() -> None:
    """With their range, by their logarithm where that is asked for."""
    assert parameter("policy.epsilon=0.01..0.5:log") == Parameter(name="policy.epsilon", low=0.01, high=0.5, log=True)
    assert parameter("x=-1..2") == Parameter(name="x", low=-1.0, high=2.0)
    for wrong in ("x", "x=1", "x=1..b", "=1..2", "x=1..2:exp", "x=2..1"):
        with pytest.raises(SettingsError):
            parameter(wrong)
    assert search_of("traffic", None, 1, []).method == "bayesian"
    assert search_of("simulation", None, 1, ["x=0..1"]).space == [parameter("x=0..1")]
    assert {search_of("simulation", method, 1, []).method for method in METHODS} == set(METHODS)


def test_a_simulation_tells_settings_apart() -> None:
    """The same trial is repeated exactly, another draw is near it, and showing items by chance is plainly worse."""
    size = SimulationSettings(users=50, items=120, rounds=2, training_steps=30)
    site = Simulation(lambda more: load(more, environment={}).settings, size, seed=1)
    usual = {one.name: getattr(load(environment={}).settings.policy, one.name[7:]) for one in SPACES["simulation"]}
    value, error = site.worth(usual, 0)
    assert site.worth(usual, 0) == (value, error)
    assert site.worth(usual, 1).value == pytest.approx(value, abs=6 * error)
    assert site.worth({**usual, "policy.epsilon": 1.0}, 0).value < value - 2 * error

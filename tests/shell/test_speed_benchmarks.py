"""The speed benchmarks' own machinery, and quick forms of the cheap ones, with bounds that only a regression breaks."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from benchmarks import growth, memory, trainer
from benchmarks.contest import PeerError, check, rate
from benchmarks.peers.bare_torch import BareTorch
from benchmarks.profile import tables
from benchmarks.report import RESULTS, kept_beside
from model_core.config import LearnerSettings


class _Output(NamedTuple):
    user: bytes
    number: int

    def key(self) -> bytes:
        return self.user

    def value(self) -> bytes:
        return self.number.to_bytes(8, "big")

    def topic(self) -> str:
        return "outputs"

    def offset(self) -> int:
        return 0


def test_outputs_that_count_each_event_once_pass() -> None:
    """Users count for themselves, interleaved as they may be."""
    check([_Output(b"a", 1), _Output(b"b", 1), _Output(b"a", 2), _Output(b"b", 2), _Output(b"a", 3)])


@pytest.mark.parametrize("counts", [(1, 3), (1, 1), (2,)])
def test_a_peer_that_loses_or_doubles_an_event_has_no_figure(counts: tuple[int, ...]) -> None:
    """A gap and a repetition both end the run."""
    with pytest.raises(PeerError, match="counted wrong"):
        check([_Output(b"a", count) for count in counts])


def test_a_rate_leaves_out_the_warm_half_and_what_follows_the_limit() -> None:
    """Ten events a second while warm and after the limit, a thousand between; order of partitions does not matter."""
    times = [100 * n for n in range(50)] + [4_901 + n for n in range(51)] + [6_000 + 100 * n for n in range(50)]
    assert rate(times[::-1], [1] * len(times), limit=100) == pytest.approx(1_000, rel=0.05)


def test_a_profile_names_functions_without_this_machines_folders() -> None:
    """Shares alone and with what is called; a function that calls itself counts once."""
    walk = "walk (/somebody/streams/store.py:3)"
    table = tables([(["thread (1): compute", walk, walk], 3), (["thread (1): compute", "run (run.py:1)"], 1)])
    assert "75.0%  walk (streams/store.py)" in table
    assert "100.0%  compute" in table
    assert "somebody" not in table


def test_a_part_takes_the_place_of_its_own_figures_alone() -> None:
    """What another part measured stays, and so does the command that gives it."""
    before = {"command": "a --part x", "seconds": 1.0, "figures": [{"figure": "x", "value": 1}, {"figure": "y"}]}
    after = kept_beside(before, {"command": "a --part y", "seconds": 2.0, "figures": [{"figure": "y", "value": 2}]})
    assert after["figures"] == [{"figure": "x", "value": 1}, {"figure": "y", "value": 2}]
    assert (after["command"], after["seconds"]) == ("a --part x; a --part y", 3.0)


def test_bare_torch_takes_the_same_step_as_the_learner() -> None:
    """On the same rows, candidates and negatives both have the same losses, step after step."""
    settings = LearnerSettings(batch_size=32, candidates=40, negatives=40)
    learner = trainer.filled(300, 1, settings)
    bare = BareTorch(learner)
    columns = learner._buffer.columns
    places = np.flatnonzero(columns["used"] & ~columns["held_out"])
    rng = np.random.default_rng(2)
    for _ in range(3):
        rows = rng.integers(len(places), size=32)
        state = learner._rng.bit_generator.state
        candidates = learner._rng.choice(learner._offered_rows, 40, replace=False)
        negatives = learner._rng.choice(learner._offered_rows, 40)
        learner._rng.bit_generator.state = state
        ours = learner._step(places[rows])["loss"]
        theirs = bare.step(*(torch.from_numpy(drawn) for drawn in (rows, candidates, negatives)))
        assert ours == pytest.approx(theirs.item(), rel=1e-4)


def test_the_learner_keeps_up_with_bare_torch() -> None:
    """Half its rate at the very least, on however busy a machine: the aim is .9."""
    ours, theirs = trainer.rates(trainer.filled(600, 1), rounds=3, steps=4)
    assert np.median(np.divide(ours, theirs)) > 0.5


def test_a_users_record_does_not_grow() -> None:
    """With a full history and nothing open; the aim is 4 KB."""
    sizes = memory.record_bytes(5, seed=1)
    assert len(sizes) == 5
    assert np.median(sizes) < 5_600


def test_an_event_costs_about_the_same_with_more_users(tmp_path: Path) -> None:
    """Ten times the users in RocksDB; the aim is 1.3 at a thousand times."""
    few, many = growth.ratios(tmp_path, 100_000, seed=1, rounds=3, batches=3)
    assert np.median(np.divide(many, few)) < 2.5


@pytest.mark.parametrize("name", ["throughput", "skew"])
def test_kept_results_have_the_contracts_form(name: str) -> None:
    """What is kept is one object, named as its file, with its command and figures that have each a name and a value."""
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    assert kept["benchmark"] == name
    assert kept["command"].startswith(f"python -m benchmarks.{name}")
    fields = {"figure", "value", "low", "high", "target", "peer", "runs"}
    assert all(fields <= figure.keys() for figure in kept["figures"])

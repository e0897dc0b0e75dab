"""The replay buffer keeps the last revision of the latest transitions, and forgets whom it is told to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from model_core.records import Transition
from model_core.replay_buffer import ReplayBuffer, Rows
from tests.unit.learner_case import transition, transitions


def tokens(traits: Mapping[str, Any], context: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    del traits, context
    return [3, 5], [1.0, 0.5]


def buffer(capacity: int = 8, held_out: float = 0.0) -> ReplayBuffer:
    return ReplayBuffer(capacity, held_out, Rows(lambda item_id: int(item_id[1:]), tokens))


def filled(made: ReplayBuffer, several: list[Transition]) -> ReplayBuffer:
    for one in several:
        made.add(one)
    return made


def test_a_transition_becomes_a_row() -> None:
    """Slate, histories, tokens and times stand in the columns, in their order."""
    made = buffer()
    row = made.add(transition("u", "i", [("m4", 0.0), ("m7", 2.0)], ["m1", "m2"], terminated=True))
    assert row == made.row_of("u", "i") == 0
    columns = {name: column[0] for name, column in made.columns.items()}
    assert columns["slate"][:3].tolist() == [4, 7, 0]
    assert columns["slate_reward"][:2].tolist() == [0.0, 2.0]
    assert columns["slate_position"][:2].tolist() == [1, 2]
    assert columns["history"][: columns["history_length"]].tolist() == [1, 2]
    assert columns["append"][: columns["append_length"]].tolist() == [7]
    assert columns["tokens"][:3].tolist() == [3, 5, 0]
    assert columns["token_weight"][:3].tolist() == [1.0, 0.5, 0.0]
    assert (columns["elapsed_ms"], columns["event_time_ms"], columns["terminated"]) == (60_000, 1_000, True)


def test_the_oldest_make_room() -> None:
    """Beyond its capacity the buffer lets go of what came first."""
    made = filled(buffer(4), transitions(10))
    assert len(made) == 4
    assert [made.row_of(f"u{n}", f"i{n}") is not None for n in range(10)] == [False] * 6 + [True] * 4


def test_it_grows_up_to_its_capacity() -> None:
    """Rows that were there before it grew stay what they were."""
    made = filled(buffer(2_500), transitions(2_600, users=50))
    assert len(made) == len(made.rows(held_out=False)) == 2_500
    assert all(len(column) == 2_500 for column in made.columns.values())
    row = made.row_of("u49", "i149")
    assert row is not None
    assert made.columns["event_time_ms"][row] == 1_149


def test_a_higher_revision_replaces_and_a_lower_one_is_left_out() -> None:
    """The last revision stands, at the same row, whatever comes after it."""
    made = buffer()
    first = made.add(transition("u", "i", [("m1", 0.0), ("m2", 0.0)]))
    assert made.add(transition("u", "i", [("m3", 1.0)], revision=2)) == first
    assert made.add(transition("u", "i", [("m1", 5.0)], revision=1)) is None
    assert len(made) == 1
    length = made.columns["slate_length"][0]
    assert made.columns["slate"][0, :length].tolist() == [3]
    assert made.add(transition("u", "i", [("m1", 5.0)], revision=2)) is None
    assert made.left_out == {"older-revision": 2}


def test_what_cannot_be_learned_from_is_left_out_and_counted() -> None:
    """Provisional transitions and empty slates have their reasons."""
    made = buffer()
    assert made.add(transition("u", "a", [("m1", 1.0)], settled=False)) is None
    assert made.add(transition("u", "b", [])) is None
    assert len(made) == 0
    assert made.left_out == {"unsettled": 1, "empty-slate": 1}


def test_an_erased_user_leaves_no_row_and_no_bytes() -> None:
    """All of one user's transitions go, and nobody else's."""
    made = filled(buffer(40), transitions(24, users=4))
    assert made.erase("u1") == 6
    assert len(made) == 18
    assert made.row_of("u1", "i1") is None
    free = ~made.columns["used"]
    assert all(not column[free].any() for column in made.columns.values())
    assert made.erase("u1") == made.erase("nobody") == 0


def test_a_number_is_never_given_to_two_users() -> None:
    """After an erasure a new user gets a new number, also after a checkpoint."""
    made = filled(buffer(), [transition(user, "i", [("m1", 1.0)]) for user in ("a", "b", "c")])
    made.erase("a")
    restored = buffer()
    restored.restore(made.state())
    for one in (made, restored):
        filled(one, [transition(user, "i", [("m1", 1.0)]) for user in ("d", "a")])
        assert sorted(one.columns["user"][one.columns["used"]].tolist()) == [1, 2, 3, 4]


def test_a_user_of_whom_nothing_is_left_is_forgotten() -> None:
    """An evicted user's id stands in no checkpoint, also where the buffer was restored in between."""
    made = filled(buffer(4), [transition("passer-by", f"i{n}", [("m1", 1.0)]) for n in range(2)])
    assert b"passer-by" in made.state()["names"].tobytes()
    restored = buffer(4)
    restored.restore(made.state())
    for one in (made, restored):
        filled(one, [transition("regular", f"i{n}", [("m1", 1.0)]) for n in range(3)])
        assert b"passer-by" in one.state()["names"].tobytes()
        one.add(transition("regular", "i3", [("m1", 1.0)]))
        assert b"passer-by" not in one.state()["names"].tobytes()
        assert set(one.columns["user"].tolist()) == {1}


def test_held_out_rows_are_held_out_whatever_the_order() -> None:
    """The share is met, and who is held out is a function of the ids alone."""
    several = transitions(2_000, users=100)
    forward, backward = (filled(buffer(2_000, 0.1), order) for order in (several, several[::-1]))
    held = [
        {one.transition_id for one in several if made.columns["held_out"][made.row_of(one.user_id, one.transition_id)]}
        for made in (forward, backward)
    ]
    assert held[0] == held[1]
    assert 150 < len(held[0]) < 250
    assert len(forward.rows(held_out=True)) == len(held[0])
    assert not set(forward.rows(held_out=True)) & set(forward.rows(held_out=False))


def test_the_latest_are_latest_by_event_time() -> None:
    """Event time decides, not arrival."""
    made = filled(buffer(), [transition("u", str(t), [("m1", 1.0)], event_time_ms=t) for t in (50, 10, 40, 20)])
    assert made.columns["event_time_ms"][made.latest(2)].tolist() == [40, 50]
    assert len(made.latest(99)) == 4


@pytest.mark.parametrize("count", [0, 5, 30])
def test_a_restored_buffer_goes_on_as_the_one_it_was_taken_of(count: int) -> None:
    """Later additions and erasures have the same effect, to the bit."""
    made = filled(buffer(20), transitions(count, users=5))
    made.erase("u2")
    restored = buffer(20)
    restored.restore(made.state())
    for one in (made, restored):
        filled(one, transitions(12, users=7, seed=1))
        one.erase("u3")
    ours, theirs = made.state(), restored.state()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert made.left_out == restored.left_out

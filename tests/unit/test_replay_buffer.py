"""The replay buffer keeps the last revision of the latest transitions, and forgets whom it is told to."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from model_core.records import Candidates, NextItem, Transition
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


def keeping(capacity: int = 8, held_out: float = 0.0) -> ReplayBuffer:
    rows = Rows(lambda item_id: int(item_id[1:]), tokens)
    return ReplayBuffer(capacity, held_out, rows, keeps={"next-slate", "propensities"})


def chain(count: int) -> list[Transition]:
    """Transitions of one user, each naming the next."""
    made = []
    for n in range(count):
        one = transition("u", f"i{n}", [("m1", 0.0), ("m2", 1.0)], next_transition_id=f"i{n + 1}")
        slate = [msgspec.structs.replace(item, propensity=0.5) for item in one.slate]
        made.append(msgspec.structs.replace(one, slate=slate))
    return made


def test_a_transition_leads_to_the_one_that_followed() -> None:
    """Also after a restore; not where that is evicted, erased or never came."""
    made = filled(keeping(4), chain(6))
    rows = np.array([made.row_of("u", f"i{n}") for n in range(2, 6)])
    assert made.following(rows).tolist() == [*rows[1:].tolist(), -1]
    restored = keeping(4)
    restored.restore(made.state())
    assert restored.following(rows).tolist() == made.following(rows).tolist()
    filled(made, [msgspec.structs.replace(chain(1)[0], user_id="v", transition_id=f"j{n}") for n in range(2)])
    assert made.following(rows[2:]).tolist() == [rows[3], -1]
    made.erase("u")
    assert (made.following(np.arange(4)) == -1).all()


def test_a_held_out_transition_is_nobodys_next() -> None:
    """What is never trained on enters no return either."""
    made = filled(keeping(200, held_out=0.5), chain(100))
    held = made.columns["held_out"]
    following = made.following(made.rows(held_out=False))
    assert held.any()
    assert not held[following[following >= 0]].any()
    assert (following >= 0).any()


def test_candidates_beside_the_slate_are_kept_with_their_inclusion() -> None:
    """The slate's own are left out; a sample longer than the column becomes a smaller sample; none is unknown."""
    one = chain(1)[0]

    def row_with(candidates: Candidates) -> dict[str, Any]:
        made = keeping()
        state = msgspec.structs.replace(one.state, candidates=candidates)
        row = made.add(msgspec.structs.replace(one, state=state))
        return {name: column[row] for name, column in made.columns.items()}

    row = row_with(Candidates(ids=["m2", "m5", "m1"], inclusion_probability=[1.0, 0.25, 1.0], count=6))
    assert (row["candidates_length"], row["candidates"][0], row["inclusion"][0]) == (1, 5, 0.25)
    assert row["slate_propensity"][:3].tolist() == [0.5, 0.5, 0.0]
    many = row_with(Candidates(ids=[f"m{n}" for n in range(10, 74)], inclusion_probability=[0.5] * 64, count=130))
    assert (many["candidates_length"], many["inclusion"][0]) == (32, 0.25)
    assert row_with(Candidates())["candidates_length"] == -1
    assert row_with(Candidates(ids=["m5"], inclusion_probability=[0.0], count=3))["candidates_length"] == -1


def test_the_next_slate_is_kept_for_those_who_ask() -> None:
    """Rows of its items; without asking, no column of it."""
    made = keeping()
    shown = [NextItem(item_id="m3", position=1, propensity=None), NextItem(item_id="m1", position=2, propensity=None)]
    row = made.add(msgspec.structs.replace(chain(1)[0], next_slate=shown))
    assert made.columns["next_slate"][row, :3].tolist() == [3, 1, 0]
    assert made.columns["next_slate_length"][row] == 2
    assert "next_slate" not in buffer().columns

"""Logged histories, and how they are split into what is learned from, what is chosen by and what is tested on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.errors import SettingsError

__all__ = ["Example", "History", "Person", "Split", "by_time", "latest", "leave_one_out"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_LONGEST: Final = 200
"""Entries that a state is computed from when a model is measured: what is older no longer moves any encoder."""


@dataclass(frozen=True, slots=True)
class History:
    """What one person did, oldest first.

    Attributes:
        items: int64[L], rows of the catalogue.
        rewards: float32[L], of each.
        traits: of the person.
    """

    items: IntArray
    rewards: Float32Array
    traits: Mapping[str, Any] = field(default_factory=dict)

    def between(self, start: int, end: int) -> "History":
        """The entries from one place to before another."""
        return History(self.items[start:end], self.rewards[start:end], self.traits)


@dataclass(frozen=True, slots=True)
class Person:
    """A whole history with its times, int64[L] in milliseconds, ascending."""

    history: History
    times_ms: IntArray


@dataclass(frozen=True, slots=True)
class Example:
    """A history, the row of the item that followed it, with what reward, and whose it is: the person's place."""

    history: History
    item: int
    reward: float = 1.0
    person: int = 0


class Split(NamedTuple):
    """Histories to learn from, and examples to choose the best epoch by and to test on.

    Attributes:
        train: what comes first of each person.
        validation: what followed.
        test: what followed that.
        validation_ms: of a split by time, when validation begins.
        test_ms: of a split by time, when the test begins.
    """

    train: list[History]
    validation: list[Example]
    test: list[Example]
    validation_ms: int = 0
    test_ms: int = 0


def latest(history: History) -> History:
    """The last 200 entries."""
    return history.between(max(0, len(history.items) - _LONGEST), len(history.items))


def leave_one_out(people: Sequence[Person]) -> Split:
    """The last event of each person for the test, the one before for validation, the others to learn from."""
    train, validation, test = [], [], []
    for number, person in enumerate(people):
        count = len(person.history.items)
        train.append(person.history.between(0, max(0, count - 2)))
        if count > 1:
            validation.append(_example(person.history, count - 2, number))
        if count > 0:
            test.append(_example(person.history, count - 1, number))
    return Split(train, validation, test)


def by_time(
    people: Sequence[Person], *, validation: float = 0.1, test: float = 0.1, examples: int = 2_000, seed: int = 0
) -> Split:
    """What was earliest to learn from, then what validates, then what tests: nothing is told from its own future.

    Args:
        people: whose histories.
        validation: share of the events that validate.
        test: share of the events, the latest, that test.
        examples: of each of these two, drawn where there are more.
        seed: of the draw.

    Raises:
        SettingsError: there are no events, or the shares leave none to learn from.
    """
    times = np.concatenate([person.times_ms for person in people] or [np.zeros(0, np.int64)])
    if not len(times) or not (validation >= 0 and test >= 0 and validation + test < 1):
        raise SettingsError(f"{len(times)} events, {validation} to validate and {test} to test: expected some to learn")
    first_ms, second_ms = map(int, np.quantile(times, [1 - validation - test, 1 - test], method="higher"))
    train = [person.history.between(0, int(np.searchsorted(person.times_ms, first_ms))) for person in people]
    rng = np.random.default_rng(seed)
    validates, tests = (
        _drawn(list(_within(people, start_ms, end_ms)), examples, rng)
        for start_ms, end_ms in ((first_ms, second_ms), (second_ms, np.inf))
    )
    return Split(train, validates, tests, first_ms, second_ms)


def _within(people: Sequence[Person], start_ms: float, end_ms: float) -> Iterator[Example]:
    for number, person in enumerate(people):
        for place in np.flatnonzero((person.times_ms >= start_ms) & (person.times_ms < end_ms)).tolist():
            yield _example(person.history, place, number)


def _example(history: History, place: int, person: int) -> Example:
    return Example(history.between(0, place), int(history.items[place]), float(history.rewards[place]), person)


def _drawn(found: list[Example], count: int, rng: np.random.Generator) -> list[Example]:
    if len(found) <= count:
        return found
    return [found[place] for place in np.sort(rng.choice(len(found), count, replace=False)).tolist()]

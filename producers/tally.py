"""What the demo's people were shown and what they clicked."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from producers.people import People

__all__ = ["Tally"]

_NEVER: Final = -1


class Tally:
    """Counts for each person and round.

    Attributes:
        shown: int64[users, rounds], items shown; -1 where the round has not been.
        clicks: int64[users, rounds].
        rated_clicks: int64[users, rounds], clicks on pairs really rated as liked in the newer half.
        expected: float64[users, rounds], expected clicks of the slate under the response model.
    """

    def __init__(self, users: int, rounds: int) -> None:
        self.shown = np.full((users, rounds), _NEVER)
        self.clicks = np.zeros((users, rounds), dtype=np.int64)
        self.rated_clicks = np.zeros((users, rounds), dtype=np.int64)
        self.expected = np.zeros((users, rounds))

    def count(
        self, people: People, user: int, round_: int, slate: Sequence[int], clicked: NDArray[np.bool_]
    ) -> list[bool]:
        """Let the person answer the slate, and count it.

        Args:
            people: who answers.
            user: index of the person.
            round_: of the person, from 0.
            slate: item indices, by position.
            clicked: bool[items], what the person clicked before.

        Returns:
            Whether each place was clicked.
        """
        shown = np.array(slate, dtype=np.int64)
        asked = np.array([user]), shown[None, :]
        before = clicked[shown][None, :]
        answers = people.answers(asked[0], np.array([round_]), asked[1], before)[0]
        self.shown[user, round_] = len(shown)
        self.clicks[user, round_] = answers.sum()
        self.rated_clicks[user, round_] = people.liked_later()[user, shown[answers]].sum()
        self.expected[user, round_] = people.click_probability(*asked, before).sum()
        told: list[bool] = answers.tolist()
        return told

    def complete_rounds(self, share: float = 1.0) -> int:
        """How many rounds at least this share of the people have been through."""
        lacking = (self.shown != _NEVER).mean(axis=0) < share
        return int(np.argmax(lacking)) if lacking.any() else len(lacking)

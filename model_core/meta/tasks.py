"""Learning tasks: what each user did, in the order of time, cut into a support and a query.

An event is a shown item whose reward is known; one that nobody clicked is an event as well, of the weight with which
its place is looked at, and φ of every event stands on the history before it. So unlabelled behaviour is in the support.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Observations", "Tasks", "tasks"]

FloatArray = npt.NDArray[np.float64]


class Observations(NamedTuple):
    """Events of many users; those of each user in the order of time.

    Attributes:
        user: int64[N], numbers of the users.
        phi: [N, d].
        y: [N], targets.
        weight: [N]; the noise variance of a target is σ² / weight.
    """

    user: npt.NDArray[np.int64]
    phi: FloatArray
    y: FloatArray
    weight: FloatArray

    def of(self, users: npt.NDArray[np.bool_]) -> "Observations":
        """The events for which this is true; bool[N]."""
        return Observations(self.user[users], self.phi[users], self.y[users], self.weight[users])


class Tasks(NamedTuple):
    """One task a user, filled up with events of weight 0.

    Attributes:
        phi: [n, T, d].
        y: [n, T].
        weight: [n, T]; 0 where a user has fewer events.
    """

    phi: FloatArray
    y: FloatArray
    weight: FloatArray


def tasks(observed: Observations, events: int, least: int = 2) -> Tasks:
    """The first events of every user who has enough of them.

    Args:
        observed: of all users.
        events: T, the most that a task holds.
        least: events that a user has to have.
    """
    order = np.argsort(observed.user, kind="stable")
    _, start, count = np.unique(observed.user[order], return_index=True, return_counts=True)
    start, count = start[count >= least], count[count >= least]
    place = np.arange(events)
    present = place < count[:, None]
    rows = order[np.where(present, start[:, None] + place, 0)] if len(start) else np.zeros((0, events), np.int64)
    return Tasks(
        np.where(present[:, :, None], observed.phi[rows], 0.0),
        np.where(present, observed.y[rows], 0.0),
        np.where(present, observed.weight[rows], 0.0),
    )

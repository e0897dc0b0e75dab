"""New user or item: where the scores of a slate come from when nothing was observed yet.

A user whose head holds no event is served from the meta-learned prior; an item that the model's training never saw
shown is scored from its content, since the rows of its id are still zero. Both are branches that the engine counts.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.bandit.head import Posterior
from model_core.records import RecommendedItem
from model_core.serving import ServingModel

__all__ = ["ITEM_FROM_CONTENT", "USER_FROM_PRIOR", "count", "from_prior"]

USER_FROM_PRIOR: Final = "user-from-prior"
ITEM_FROM_CONTENT: Final = "item-from-content"


def from_prior(posterior: Posterior, model: ServingModel) -> npt.NDArray[np.bool_]:
    """Whose head is still the prior: every event adds to the precision of the bias at least; bool[B]."""
    own = np.einsum("bdd->bd", posterior.precision).astype(np.float32)
    same: npt.NDArray[np.bool_] = (own == np.diag(model.prior.precision).astype(np.float32)).all(axis=1)
    return same


def count(new: bool, slate: Sequence[RecommendedItem], model: ServingModel, counters: Counter[str]) -> None:  # noqa: FBT001 - what `from_prior` says
    """Count a slate's starts: its user's, and each of its items'."""
    counters[USER_FROM_PRIOR] += new
    counters[ITEM_FROM_CONTENT] += sum(place.item_id not in model.popularity for place in slate)

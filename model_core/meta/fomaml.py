"""First-order MAML: as ANIL, but the outer gradient is the query's at the adapted head, as if that were the start.

C. Finn, P. Abbeel and S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks" (2017, arXiv
1703.03400), section 5.2. See docs/algorithms/anil.md.
"""

import numpy as np

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings
from model_core.meta import anil
from model_core.meta.tasks import Tasks

__all__ = ["learn"]


def learn(made: Tasks, start: Prior, settings: LearnerSettings, rng: np.random.Generator) -> Prior:
    """The prior that stands for the learned start and step sizes; arguments as of `anil.learn`."""
    return anil.learn(made, start, settings, rng, first_order=True)

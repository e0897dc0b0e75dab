"""The real learner as the child's loop wants it; the one module of the shell that imports torch."""

from typing import cast

import torch

from model_core import model_file
from model_core.learner import Learner
from model_core.records import ModelManifest
from streams.training.loop import TrainableLearner
from streams.training.messages import Start

__all__ = ["PackingLearner", "create"]


class PackingLearner(Learner):
    """A learner whose models come packed for the wire."""

    def publish(self) -> tuple[ModelManifest, list[bytes]]:  # type: ignore[override]
        """The next version, as manifest and parts."""
        return model_file.pack(super().publish())


def create(start: Start) -> TrainableLearner:
    """A new learner under these settings, on as many threads as it may use."""
    torch.set_num_threads(start.trainer.threads)
    torch.set_num_interop_threads(1)
    learner = PackingLearner(
        start.learner,
        start.encoder,
        device=start.trainer.device,
        seed=start.trainer.seed,
        strategies=start.strategies,
        evaluation=start.evaluation,
    )
    return cast("TrainableLearner", learner)

"""The real learner as the child's loop wants it; the one module of the shell that imports torch."""

from pathlib import Path
from typing import cast

import torch

from model_core import model_file
from model_core.learner import Learner
from model_core.records import ModelManifest
from streams import model_files
from streams.text import enricher
from streams.training.loop import TrainableLearner
from streams.training.messages import Start

__all__ = ["PackingLearner", "create", "learner_of"]


class PackingLearner(Learner):
    """A learner whose models come packed for the wire."""

    def publish(self) -> tuple[ModelManifest, list[bytes]]:  # type: ignore[override]
        """The next version, as manifest and parts."""
        return model_file.pack(super().publish())


def create(start: Start) -> TrainableLearner:
    """A new learner under these settings, on as many threads as it may use."""
    torch.set_num_threads(start.trainer.threads)
    torch.set_num_interop_threads(1)
    return cast("TrainableLearner", learner_of(start))


def learner_of(start: Start) -> PackingLearner:
    """A new learner under these settings, with the weights of `trainer.start` where one is named.

    Raises:
        SettingsError: there are no model's files in that folder.
        ModelError: they are damaged, or of another shape.
    """
    learner = PackingLearner(
        start.learner,
        start.encoder,
        device=start.trainer.device,
        seed=start.trainer.seed,
        strategies=start.strategies,
        evaluation=start.evaluation,
        enrich=enricher(start.encoder),
    )
    if start.trainer.start:
        learner.start_from(model_files.read(Path(start.trainer.start)))
    return learner

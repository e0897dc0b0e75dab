"""The roles, put together from settings."""

from headwater.settings import Settings
from model_core.candidates import Catalogue
from model_core.engine import Engine, warm_up
from model_core.serving import ServingModel
from streams.app import run_worker
from streams.text import enricher

__all__ = ["engine_of", "personalize", "train"]


def engine_of(settings: Settings) -> Engine:
    """A new engine: an empty catalogue, and the untrained model that serves before the first."""
    catalogue = Catalogue(enricher(settings.encoder))
    return Engine(settings.engine, catalogue, ServingModel.initial(settings.encoder), seed=settings.general.seed)


def personalize(settings: Settings) -> int:
    """Run a personalize worker; its exit code."""
    engine = engine_of(settings)
    warm_up(engine)
    return run_worker(
        settings.streams,
        lambda: engine,
        configuration=settings.configuration(),
        seed=settings.general.seed,
        refresh_active_ms=settings.policy.refresh_active_ms,
    )


def train(settings: Settings) -> int:
    """Run the trainer; its exit code."""
    from streams.trainer import run_trainer  # noqa: PLC0415 - the personalize role needs none of it

    return run_trainer(
        settings.streams,
        settings.learner,
        settings.encoder,
        settings.trainer,
        strategies=settings.strategies,
        evaluation=settings.evaluation,
    )

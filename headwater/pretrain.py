"""`headwater pretrain`: the large model from a log, before the live loop; its files, and where wanted the topic."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch

from headwater.histories import Logged, logged
from headwater.reading import require_broker
from headwater.settings import Settings
from headwater.together import together
from model_core import model_file
from model_core.config import Depth, Objective
from model_core.encoder.fine_tuning import fine_tuned
from model_core.encoder.pretraining import Group, Pretraining
from model_core.errors import SettingsError
from model_core.evaluation.baselines import model_scores
from model_core.evaluation.histories import Example, Split, by_time
from model_core.evaluation.ranking import ndcg, ranks
from model_core.learner import resolve_device
from model_core.serving import ServingModel
from streams import model_files
from streams.training.publish import ModelPublisher

__all__ = ["PretrainOptions", "Pretrained", "described", "pretrain"]

CHECKPOINT: Final = "pretraining.checkpoint"
_RANKED: Final = 10


class PretrainOptions(NamedTuple):
    """What to pretrain on and what to do with it.

    Attributes:
        data: a feed's name.
        out: folder of the model's files and of the checkpoint; a run that was cut off goes on from there.
        start: folder of a model to start from.
        other_catalogue: the model to start from knows other items: its words are taken over, its ids are not.
        fine_tune: what to fine-tune for afterwards.
        depth: what of the model that changes.
        publish: put the model on `models`.
        seed: of weights, cuts, masks and dropout.
    """

    data: str
    out: Path
    start: Path | None = None
    other_catalogue: bool = False
    fine_tune: Objective | None = None
    depth: Depth = "last"
    publish: bool = False
    seed: int = 1


class Pretrained(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        data: the feed's name.
        kind: of the encoder.
        people: whose histories taught.
        items: of the catalogue.
        left_out: records of no use, by reason.
        epochs: done, in this run and those it went on from.
        best_epoch: whose weights these are.
        ndcg10_validation: of that epoch, among unseen items, without the table of what follows what.
        ndcg10_test: of the model as it serves, among unseen items; NaN is null.
        fine_tuned: validation loss before and after, where it was asked for.
        out: the folder.
        version: of the model.
        published: whether it is on `models`.
    """

    data: str
    kind: str
    people: int
    items: int
    left_out: dict[str, int]
    epochs: int
    best_epoch: int
    ndcg10_validation: float | None
    ndcg10_test: float | None
    fine_tuned: tuple[float, float] | None
    out: str
    version: int
    published: bool


def pretrain(
    settings: Settings, options: PretrainOptions, *, show: Callable[[str], None] = lambda _: None
) -> Pretrained | None:
    """Pretrain, fine-tune where asked, test, write and publish.

    Args:
        settings: `encoder`, `pretraining`, `join` and, to publish, `streams`.
        options: what to do.
        show: is told of each epoch.

    Returns:
        What came of it; None in all but the first of several processes.

    Raises:
        SettingsError: no such data, nothing in it to learn from, or the folder holds another run's checkpoint.
        ModelError: the model to start from is of another shape.
        BrokerAwayError: nobody answers where the model is to be published.
    """
    if options.publish:
        require_broker(settings.streams, settings.general.broker_wait_s)
    torch.set_num_threads(settings.trainer.threads)
    with together() as group:
        return _pretrained(settings, options, group, show)


def _pretrained(
    settings: Settings, options: PretrainOptions, group: Group, show: Callable[[str], None]
) -> Pretrained | None:
    log = logged(settings, options.data, seed=options.seed)
    split = by_time(log.people, seed=options.seed)
    run = Pretraining(
        settings.pretraining,
        settings.encoder,
        log.items,
        split.train,
        seed=options.seed,
        device=resolve_device(settings.trainer.device),
        group=group,
    )
    if options.start is not None:
        run.start_from(model_files.read(options.start), same_catalogue=not options.other_catalogue)
    _learn(run, split, _Checkpoint(options.out, _identity(settings, log, options), writes=group.rank == 0), show)
    if group.rank:
        return None
    model = run.model(metrics={"ndcg10_validation": run.best} if np.isfinite(run.best) else {})
    tuned = None
    if options.fine_tune is not None:
        taught, validation = _shown_examples(log, split)
        found = fine_tuned(
            model,
            log.items,
            taught,
            validation,
            settings.pretraining,
            objective=options.fine_tune,
            depth=options.depth,
            seed=options.seed,
        )
        show(f"fine-tuned in {found.epochs} epochs: {found.before:.4f} → {found.after:.4f}")
        model, tuned = found.model, (found.before, found.after)
    test = _ndcg(model, log, split.test)
    if test is not None:
        model.metrics["ndcg10_test"] = test
    if options.publish:
        model = _published(settings, model)
    model_files.write(options.out, model)
    return Pretrained(
        data=log.name,
        kind=settings.encoder.kind,
        people=len(split.train),
        items=len(log.items),
        left_out=dict(log.left_out),
        epochs=run.epoch,
        best_epoch=run.best_epoch,
        ndcg10_validation=run.best if np.isfinite(run.best) else None,
        ndcg10_test=test,
        fine_tuned=tuned,
        out=str(options.out),
        version=model.version,
        published=options.publish,
    )


def _identity(settings: Settings, log: Logged, options: PretrainOptions) -> bytes:
    """What a checkpoint has to have been taken of."""
    start = None if options.start is None else (options.start / model_files.MANIFEST).read_bytes().hex()
    about: list[Any] = [settings.encoder, settings.pretraining, options.seed, start, options.other_catalogue, log.items]
    digest = hashlib.sha256(msgspec.json.encode(about))
    for person in log.people:
        digest.update(person.history.items.tobytes() + person.history.rewards.tobytes() + person.times_ms.tobytes())
    return digest.digest()


class _Checkpoint(NamedTuple):
    """A run's file in the folder; of several processes the first writes it, all read it."""

    out: Path
    identity: bytes
    writes: bool

    def restore(self, run: Pretraining) -> bool:
        path = self.out / CHECKPOINT
        self.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return False
        stored = path.read_bytes()
        if not stored.startswith(self.identity):
            raise SettingsError(
                f"--out {self.out}: expected a checkpoint of the same data, settings and seed; "
                f"name another folder or remove {CHECKPOINT}"
            )
        run.restore(stored[len(self.identity) :])
        return True

    def write(self, run: Pretraining) -> None:
        if self.writes:
            model_files.replaced(self.out / CHECKPOINT, self.identity + run.checkpoint())


def _learn(run: Pretraining, split: Split, checkpoint: _Checkpoint, show: Callable[[str], None]) -> None:
    """Train to the end, from the checkpoint where there is one, writing one after each epoch."""
    if checkpoint.restore(run):
        show(f"goes on after epoch {run.epoch}")
    while not run.ended:
        metrics = run.train_epoch()
        if not metrics:
            raise SettingsError("pretraining: expected a person with an event before those that validate")
        value = run.validate(split.validation)
        show(f"epoch {run.epoch}: loss {metrics['loss']:.4f}, validation NDCG@10 {value:.4f}")
        checkpoint.write(run)


def _shown_examples(log: Logged, split: Split) -> tuple[list[Example], list[Example]]:
    """What was shown, to fine-tune on and to validate with: before what validates the encoder, and from there on.

    Where the log has no impressions, the clicks themselves, with their rewards.
    """
    if log.shown:
        taught = [example for time_ms, example in log.shown if time_ms < split.validation_ms]
        later = [example for time_ms, example in log.shown if split.validation_ms <= time_ms < split.test_ms]
        return taught, later
    taught = [
        Example(history.between(0, place), int(history.items[place]), float(history.rewards[place]))
        for history in split.train
        for place in range(len(history.items))
    ]
    return taught, split.validation


def _ndcg(model: ServingModel, log: Logged, examples: list[Example]) -> float | None:
    """NDCG@10 of the model as it serves, among unseen items."""
    if not examples:
        return None
    histories = [example.history for example in examples]
    item = np.array([example.item for example in examples], np.int64)
    rank = ranks(model_scores(model, log.items, histories), item, [history.items for history in histories])
    return float(ndcg(rank, _RANKED).mean())


def _published(settings: Settings, model: ServingModel) -> ServingModel:
    """Put the model on `models` as the next version of what is there."""
    publisher = ModelPublisher.of(settings.streams, "pretrained", versions_kept=settings.trainer.versions_kept)
    try:
        numbered = replace(model, version=publisher.open() + 1)
        publisher.publish(*model_file.pack(numbered))
    finally:
        publisher.close()
    return numbered


def described(found: Pretrained) -> str:
    """For people."""
    where = f"published as version {found.version}" if found.published else "not published"
    tuned = "" if found.fine_tuned is None else f"\nFine-tuned: {found.fine_tuned[0]:.4f} → {found.fine_tuned[1]:.4f}."
    return (
        f"{found.kind} of {found.people:,} people and {found.items:,} items of {found.data}: {found.epochs} epochs, "
        f"the {found.best_epoch}th kept.\nNDCG@10 among unseen items: validation {_figure(found.ndcg10_validation)}, "
        f"test {_figure(found.ndcg10_test)}.{tuned}\nWritten to {found.out}; {where}."
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"

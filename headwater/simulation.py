"""A site in memory: people, the workers' engine and a learner, to see in seconds or minutes what settings bring.

`Simulation` tells what policies are worth under one model: the past is taken in once and a model is trained on it once;
each trial begins there, with states, clock and catalogue as they were, and runs the closed loop of the demo for some
rounds under its own settings. Only draws differ from trial to trial, so that a value is as noisy as it would be live.

`lived` is the demo itself without broker, processes and clock: the learner goes on learning while the people go round,
at the pace of the live trainer, and everybody gets a slate of each new model. The same seed gives the same report.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from headwater.demo import JOIN_OPTIONS, ROUND_MS, START_MS, loop_settings, past_settings
from headwater.settings import Settings
from model_core import records
from model_core.candidates import Catalogue
from model_core.engine import Effects, Engine
from model_core.intake import Role, SourceRecord
from model_core.records import Cause, Recommendation, Transition
from model_core.serving import ServingModel
from producers.closed_loop import ClosedLoop
from producers.feeds.feed import FeedRecord
from producers.people import People
from producers.scoring import Report, score
from producers.simulate import PopulationSettings, simulated_people
from producers.warmup import warmup_feed
from streams.training.schedule import Schedule, ScheduleState

if TYPE_CHECKING:
    from model_core.learner import Learner

__all__ = ["Simulation", "SimulationSettings", "Worth", "lived"]

_STEP_MS: Final = 10_000
_BATCH: Final = 500
_CAUSE: Final = Cause(topic="models", partition=0, offset=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """How large the site is.

    Attributes:
        users: people.
        items: the catalogue.
        rounds: slates of each person in a trial.
        training_steps: of the model, on the past.
    """

    users: int = 200
    items: int = 600
    rounds: int = 6
    training_steps: int = 400


class Worth(NamedTuple):
    """What settings brought.

    Attributes:
        value: click rate of the shown items.
        error: its standard error, over people.
    """

    value: float
    error: float


class _Site:
    """One stream task's users in memory."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock: bytes | None = None
        self.states: dict[bytes, bytes] = {}
        self.due: dict[bytes, tuple[int | None, int | None]] = {}
        self.offsets: dict[Role, int] = {"impressions": 0, "clicks": 0, "users": 0}

    def copy(self, engine: Engine) -> "_Site":
        """The same users under another engine."""
        made = _Site(engine)
        made.clock, made.states, made.due = self.clock, dict(self.states), dict(self.due)
        made.offsets = dict(self.offsets)
        return made

    def take(self, happened: Iterable[FeedRecord]) -> Effects:
        """Run one batch, and what it makes due."""
        batch = []
        for record in happened:
            if record.role == "items":
                continue
            batch.append(
                SourceRecord(record.role, self.offsets[record.role], None, record.key_bytes, record.value_bytes)
            )
            self.offsets[record.role] += 1
        intake = self.engine.intake(self.clock, 0, batch)
        watermark_ms, impressions_ms = intake.clock.watermark_ms(), intake.clock.impressions_ms
        due = [
            key
            for key, (settle_ms, orphan_ms) in self.due.items()
            if (settle_ms is not None and watermark_ms > settle_ms)
            or (orphan_ms is not None and impressions_ms > orphan_ms)
        ]
        stored = {key: self.states.get(key) for key in [*intake.users, *due]}
        return self._landed(self.engine.step(intake, stored, due))

    def refresh(self) -> Effects:
        """A fresh slate for everybody."""
        return self._landed(self.engine.refresh(0, self.clock, self.states, _CAUSE))

    def _landed(self, effects: Effects) -> Effects:
        self.clock = effects.clock
        for key, state in effects.states.items():
            if state is None:
                self.states.pop(key, None)
            else:
                self.states[key] = state
        self.due |= {key: after for key, (_, after) in effects.due.items()}
        return effects


def lived(settings: Settings, people: People, *, rounds: int, seed: int) -> Report:
    """What the demo reports under these settings, which have its windows.

    Args:
        settings: of join, learner, trainer and policy.
        people: who click.
        rounds: slates of each person.
        seed: of past, learner and draws.
    """
    site = _Site(Engine(settings.engine, _catalogue(people), ServingModel.initial(settings.encoder), seed=seed))
    learner = _learner(settings, people, seed)
    schedule = Schedule(settings.trainer, settings.learner.batch_size, ScheduleState())

    def learn(effects: Effects) -> None:
        for transition in _transitions(effects):
            learner.add(transition)
            if not transition.settled:
                continue
            schedule.consume()
            while schedule.round_due():
                schedule.trained(learned=bool(learner.train(settings.trainer.steps_per_round)))

    loop = ClosedLoop(people, loop_settings(settings, rounds))
    for batch in _past(people, settings, seed):
        for record in batch:
            loop.observe_warmup(record)
        learn(site.take(batch))
    now_ms = published_ms = START_MS
    site.engine.model = learner.publish()
    _tell(loop, site.refresh())
    while not loop.done:
        now_ms += _STEP_MS
        effects = site.take(loop.next_impressions(now_ms))
        _tell(loop, effects)
        learn(effects)
        if now_ms - published_ms >= ROUND_MS:
            published_ms = now_ms
            site.engine.model = learner.publish()
            _tell(loop, site.refresh())
    return score(loop)


class Simulation:
    """Tells what settings are worth.

    Args:
        settings: with options by `group.key` on top of what every trial has; the windows of the demo are among them.
        size: of the site.
        seed: of people, model and draws.
    """

    def __init__(
        self, settings: Callable[[Mapping[str, Any]], Settings], size: SimulationSettings, *, seed: int
    ) -> None:
        self._settings = settings
        self._size = size
        self._seed = seed
        self._people = simulated_people(seed=seed, population=PopulationSettings(users=size.users, items=size.items))
        past = settings(JOIN_OPTIONS)
        self._catalogue = _catalogue(self._people)
        self._past = _Site(self._engine(past, ServingModel.initial(past.encoder), seed))
        self._model = self._trained(past)

    def worth(self, parameters: Mapping[str, float], number: int) -> Worth:
        """Click rate of the people under these settings; the number makes the draws."""
        settings = self._settings({**JOIN_OPTIONS, **parameters})
        site = self._past.copy(self._engine(settings, self._model, self._seed + number + 1))
        loop = ClosedLoop(self._people, replace(loop_settings(settings, self._size.rounds), arms=("headwater",)))
        _tell(loop, site.refresh())
        now_ms = START_MS
        while not loop.done:
            now_ms += _STEP_MS
            _tell(loop, site.take(loop.next_impressions(now_ms)))
        clicks, shown = loop.tally.clicks.sum(axis=1), loop.tally.shown.sum(axis=1)
        value = float(clicks.sum() / shown.sum())
        influence = (clicks - value * shown) / shown.mean()
        return Worth(value, float(influence.std(ddof=1) / np.sqrt(len(influence))))

    def _engine(self, settings: Settings, model: ServingModel, seed: int) -> Engine:
        return Engine(settings.engine, self._catalogue, model, seed=seed)

    def _trained(self, settings: Settings) -> ServingModel:
        """A model of the past, which the site takes in."""
        learner = _learner(settings, self._people, self._seed)
        for happened in _past(self._people, settings, self._seed):
            for transition in _transitions(self._past.take(happened)):
                learner.add(transition)
        learner.train(self._size.training_steps)
        return learner.publish()


def _learner(settings: Settings, people: People, seed: int) -> "Learner":
    """One that knows the catalogue."""
    from model_core.learner import Learner  # noqa: PLC0415 - torch, which the command's help does not need

    made = Learner(settings.learner, settings.encoder, device="cpu", seed=seed, strategies=settings.engine.strategies)
    for item in people.items:
        made.set_item(item)
    return made


def _catalogue(people: People) -> Catalogue:
    made = Catalogue()
    for item in people.items:
        made.set(item)
    return made


def _past(people: People, settings: Settings, seed: int) -> Iterator[list[FeedRecord]]:
    """The warm-up in batches, and at its end what settles it all."""
    feed = warmup_feed(people.users, people.items, people.history, past_settings(settings), seed=seed)
    settled = [
        FeedRecord(role, None, records.Heartbeat(heartbeat=True, event_time_ms=START_MS), START_MS)
        for role in ("impressions", "clicks")
    ]
    everything = itertools.chain(feed, settled)
    while batch := list(itertools.islice(everything, _BATCH)):
        yield batch


def _tell(loop: ClosedLoop, effects: Effects) -> None:
    for output in effects.outputs:
        if output.role == "recommendations" and output.value is not None:
            loop.on_recommendation(msgspec.json.decode(output.value, type=Recommendation))


def _transitions(effects: Effects) -> Iterator[Transition]:
    for output in effects.outputs:
        if output.role == "transitions" and output.value is not None:
            yield records.decode_as(Transition, output.value)

"""The engine: a batch of source records in; new user records, transitions, slates and dead letters out.

The Kafka workers, the file backfill and the simulator all run this. For each batch of a stream task the caller does

    intake = engine.intake(clock, partition, batch)
    effects = engine.step(intake, stored, due)

with the stored records of `intake.users` and of the `due` users, and lands the effects in one transaction. The engine
reads no clock, file or network. Its randomness is keyed by the seed and the record that caused a slate, so the same
batch gives the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from model_core import intake, policy, random, records
from model_core.bandit import head
from model_core.candidates import Catalogue, Embedded
from model_core.config import EncoderSettings, HeadSettings, JoinSettings, PolicySettings, StrategySettings
from model_core.errors import ModelError
from model_core.intake import Intake, Output, SourceRecord
from model_core.join import Clock, Sampled
from model_core.meta import starts
from model_core.online import Learned, learn
from model_core.records import DEFAULT_USER, Cause, Click, Impression, Item, Recommendation, SlateItem
from model_core.serving import ServingModel
from model_core.strategy.arms import arms, assigned
from model_core.user_state import Decision, UserState
from model_core.work import Due, Work

__all__ = ["Concluded", "Effects", "Engine", "EngineSettings", "warm_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """All settings that shape what the engine computes."""

    join: JoinSettings = field(default_factory=JoinSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    strategies: StrategySettings = field(default_factory=StrategySettings)

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        self.join.check()
        self.head.check()
        self.policy.check()
        self.strategies.check()
        self.strategies.check_with(self.policy)


class Effects(NamedTuple):
    """What a batch does; all of it lands, or nothing.

    Attributes:
        clock: of the task, for the next `intake`.
        states: new user records by user key; None deletes.
        due: by user key, what the due index holds and what it has to hold.
        outputs: records to write, in order.
        counters: outcomes by name.
        erased: by user key, the log time of the erasure, 0 where there is no log.
    """

    clock: bytes
    states: dict[bytes, bytes | None]
    due: dict[bytes, tuple[Due, Due]]
    outputs: list[Output]
    counters: Counter[str]
    erased: dict[bytes, int]


class Concluded(NamedTuple):
    """A user after whole logs, see `Engine.conclude`.

    Attributes:
        key: the user's key on every topic.
        state: the user's record.
        cause: of the slate; None for no slate.
        cause_ms: its event time.
    """

    key: bytes
    state: UserState
    cause: Cause | None
    cause_ms: int


class Engine:
    """Steps batches of users under one model and one catalogue; not thread-safe.

    Attributes:
        catalogue: what may be offered; change it between two batches.
    """

    def __init__(self, settings: EngineSettings, catalogue: Catalogue, model: ServingModel, *, seed: int) -> None:
        settings.check()
        self.settings = settings
        self.seed = seed
        self.catalogue = catalogue
        self.model = model

    @property
    def model(self) -> ServingModel:
        """The model that serves; assign to swap it between two batches.

        Raises:
            ModelError: it wants other text vectors than the catalogue's items get.
        """
        return self._model

    @model.setter
    def model(self, model: ServingModel) -> None:
        text = self.settings.encoder.text
        if model.settings.text != text:
            raise ModelError(
                f"model {model.version} was trained with encoder.text = {model.settings.text!r}, here it is {text!r}"
            )
        self._embedded = Embedded(self.catalogue, model, self.settings.policy)
        self._arms = arms(self.settings.policy, self.settings.strategies, model.strategies)
        self._model = model

    def intake(
        self,
        clock: bytes | None,
        partition: int,
        batch: Sequence[SourceRecord],
        *,
        topics: int = 0,
        erased: Mapping[bytes, int] | None = None,
    ) -> Intake:
        """Decode and check a batch; see `intake.take_in`."""
        return intake.take_in(clock, partition, batch, self.settings.join, topics=topics, erased=erased)

    def step(
        self,
        batch: Intake,
        stored: Mapping[bytes, bytes | None],
        due: Sequence[bytes] = (),
        *,
        cause: Cause | None = None,
    ) -> Effects:
        """Apply a batch.

        Args:
            batch: from `intake`.
            stored: record of each of `batch.users` and of `due`, None or absent for a user never seen.
            due: keys of users whose index entries lie before the batch's clock.
            cause: where given, every user gets a fresh slate because of it.

        Raises:
            StateError: a stored record is not what some known version wrote.
        """
        counters = Counter(batch.counters)
        works = []
        for key in dict.fromkeys([*batch.events, *due]):
            work = Work(key, stored.get(key), self.settings.join, self.settings.policy, counters)
            for event in batch.events.get(key, ()):
                work.apply(event, batch.partition, batch.topics)
            work.settle(batch.clock)
            if cause is not None:
                work.call(cause, batch.clock.watermark_ms())
            works.append(work)
        return self._finish(works, batch.clock, batch.dead, counters)

    def refresh(self, partition: int, clock: bytes | None, stored: Mapping[bytes, bytes], cause: Cause) -> Effects:
        """Fresh slates for these users, such as the active ones when a new model has arrived."""
        return self.step(self.intake(clock, partition, ()), stored, list(stored), cause=cause)

    def default_slate(self, partition: int, clock: bytes | None, cause: Cause) -> Effects:
        """What a user nobody has seen should get, under the reserved key; no record is kept of it."""
        effects = self.step(self.intake(clock, partition, ()), {}, [DEFAULT_USER.encode()], cause=cause)
        return effects._replace(states={}, due={})

    def conclude(self, partition: int, clock: bytes, users: Sequence[Concluded]) -> Effects:
        """Encode these users' records, with a slate for each who has a cause."""
        batch, counters = self.intake(clock, partition, ()), Counter[str]()
        works = []
        for user in users:
            work = Work(user.key, None, self.settings.join, self.settings.policy, counters)
            work.state = user.state
            if user.cause is not None:
                work.call(user.cause, user.cause_ms)
            works.append(work)
        return self._finish(works, batch.clock, (), counters)

    @property
    def embedded(self) -> Embedded:
        """The catalogue under the model, as it stands."""
        self._embedded.refresh()
        return self._embedded

    def _finish(self, works: Sequence[Work], clock: Clock, dead: Sequence[Output], counters: Counter[str]) -> Effects:
        self._embedded.refresh()
        if self._embedded.ignored_vectors:
            counters["vector-ignored"] += self._embedded.ignored_vectors
            self._embedded.ignored_vectors = 0
        if works:
            learned = learn(
                [work.state for work in works],
                [work.operations for work in works],
                catalogue=self.catalogue,
                embedded=self._embedded,
                model=self._model,
                settings=self.settings.head,
                join=self.settings.join,
                counters=counters,
            )
            self._recommend(works, learned, clock, counters)
        outputs = [*dead]
        for work in works:
            outputs.extend(work.outputs)
        return Effects(
            clock=msgspec.msgpack.encode(clock),
            states={work.key: work.stored() for work in works},
            due={work.key: (work.due_before, work.due_after()) for work in works},
            outputs=outputs,
            counters=counters,
            erased={work.key: work.erased_ms for work in works if work.erased_ms is not None},
        )

    def _recommend(self, works: Sequence[Work], learned: Learned, clock: Clock, counters: Counter[str]) -> None:
        """Publish a slate for each user whose batch calls for one."""
        places = [place for place, work in enumerate(works) if work.cause is not None]
        if not places:
            return
        posterior = head.Posterior(learned.posterior.precision[places], learned.posterior.information[places])
        epochs = [works[place].cause_ms // self.settings.strategies.epoch_ms for place in places]
        own = assigned(self.seed, [works[place].key for place in places], epochs, self._arms).tolist()
        asked = self._asked([works[place] for place in places], own, epochs)
        chosen = policy.choose(
            asked,
            posterior,
            self._model.user_vectors(
                learned.hidden[places],
                [works[place].state.traits for place in places],
                [works[place].context() for place in places],
            ),
            embedded=self._embedded,
            settings=self.settings.policy,
            among=self._arms,
        )
        new = starts.from_prior(posterior, self._model)
        for place, one, choice, start in zip(places, asked, chosen, new.tolist(), strict=True):
            self._publish(works[place], one.key, choice, clock)
            starts.count(start, choice.slate, self._model, counters)
            counters["recommended"] += 1

    def _asked(self, works: Sequence[Work], own: Sequence[int], epochs: Sequence[int]) -> list[policy.Asked]:
        seen = self._embedded.rows_of_keys([work.state.seen for work in works])
        follows = self._model.follows
        last = max(policy.LAST_ITEMS, 0 if follows is None else follows.reach)
        return [
            policy.Asked(self._key(work), work.last_items(last), rows, arm, epoch)
            for work, rows, arm, epoch in zip(works, seen, own, epochs, strict=True)
        ]

    def _key(self, work: Work) -> int:
        """Key of all randomness behind a slate: the seed, the user and the cause."""
        cause = work.required_cause()
        return random.event_key(self.seed, work.key, cause.topic.encode(), cause.partition, cause.offset)

    def _publish(self, work: Work, key: int, choice: policy.Chosen, clock: Clock) -> None:
        decision_id = f"{key:016x}"
        settings = self.settings.policy
        slim = msgspec.structs.replace(choice.candidates, ids=[], inclusion_probability=[])
        recommendation = Recommendation(
            decision_id=decision_id,
            user_id=work.user_id,
            event_time_ms=work.cause_ms,
            policy=settings.name,
            model_version=self._model.version,
            watermark_ms=clock.watermark_ms(),
            slate=choice.slate,
            candidates=slim,
            cause=work.required_cause(),
        )
        work.outputs.append(Output("recommendations", work.key, records.encode(recommendation), []))
        work.decide(
            Decision(
                decision_id,
                [place.item_id for place in choice.slate],
                [place.propensity for place in choice.slate],
                settings.name,
                self._model.version,
                Sampled.of(choice.candidates),
                choice.served,
            )
        )


def warm_up(engine: Engine) -> None:
    """Have the kernels compiled before anybody waits for them: somebody invented clicks on an invented item.

    The first start on a machine takes seconds, later ones load the machine code. The engine is left as it was.
    """
    catalogue = Catalogue()
    catalogue.set(Item(item_id="a"))
    twin = Engine(engine.settings, catalogue, engine.model, seed=engine.seed)
    kind = next(iter(engine.settings.join.weights))
    shown = Impression(impression_id="i", user_id="u", event_time_ms=0, slate=[SlateItem(item_id="a")])
    click = Click(click_id="c", impression_id="i", user_id="u", item_id="a", kind=kind, event_time_ms=0)
    batch = (
        SourceRecord("impressions", 0, None, b"u", records.encode(shown)),
        SourceRecord("clicks", 0, None, b"u", records.encode(click)),
    )
    twin.step(twin.intake(None, 0, batch), {})

"""A small world for tests of the engine: a catalogue, an untrained model, and a stream task kept in a dict."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from model_core import records
from model_core.candidates import Catalogue
from model_core.config import EncoderSettings, JoinSettings, PolicySettings, StrategySettings
from model_core.engine import Effects, Engine, EngineSettings
from model_core.intake import Output, Role, SourceRecord
from model_core.records import Click, Heartbeat, Impression, Item, Recommendation, SlateItem, Transition
from model_core.serving import ServingModel

T0 = 1_700_000_000_000
JOIN = JoinSettings(
    attribution_window_ms=60_000,
    allowed_lateness_ms=5_000,
    correction_horizon_ms=300_000,
    clock_skew_ms=1_000,
    session_gap_ms=120_000,
)


def items(count: int) -> list[Item]:
    return [Item(item_id=f"m{n}", title=f"Film {n}", categories=[f"c{n % 5}"]) for n in range(count)]


def engine(
    catalogue_size: int = 30,
    policy: PolicySettings | None = None,
    join: JoinSettings = JOIN,
    model: ServingModel | None = None,
    strategies: StrategySettings | None = None,
) -> Engine:
    encoder = EncoderSettings()
    catalogue = Catalogue()
    for item in items(catalogue_size):
        catalogue.set(item)
    settings = EngineSettings(
        join=join,
        policy=policy or PolicySettings(slate_size=4, candidates=20),
        encoder=encoder,
        strategies=strategies or StrategySettings(),
    )
    return Engine(settings, catalogue, model or ServingModel.initial(encoder), seed=7)


class Task:
    """One stream task over a dict, as the checkpoint protocol drives it."""

    def __init__(self, core: Engine) -> None:
        self.engine = core
        self.clock: bytes | None = None
        self.states: dict[bytes, bytes] = {}
        self.due: dict[bytes, tuple[int | None, int | None]] = {}
        self.outputs: list[Output] = []
        self.offsets: dict[Role, int] = {"impressions": 0, "clicks": 0, "users": 0}
        self.erased: dict[bytes, int] = {}

    def source(self, role: Role, key: str | None, value: Any, *, log_time_ms: int | None = None) -> SourceRecord:
        offset = self.offsets[role]
        self.offsets[role] += 1
        payload = value if value is None or isinstance(value, bytes) else records.encode(value)
        return SourceRecord(role, offset, log_time_ms, None if key is None else key.encode(), payload)

    def run(self, batch: Sequence[SourceRecord]) -> Effects:
        intake = self.engine.intake(self.clock, 0, batch, erased=self.erased)
        due = [key for key, at in self.due.items() if self._is_due(at, intake.clock)]
        effects = self.engine.step(intake, {key: self.states.get(key) for key in [*intake.users, *due]}, due)
        self.clock = effects.clock
        for key, stored in effects.states.items():
            if stored is None:
                self.states.pop(key, None)
            else:
                self.states[key] = stored
        for key, (before, after) in effects.due.items():
            assert self.due.get(key, (None, None)) == before
            self.due[key] = after
        self.outputs += effects.outputs
        self.erased |= effects.erased
        return effects

    @staticmethod
    def _is_due(at: tuple[int | None, int | None], clock: Any) -> bool:
        settle, orphan = at
        return (settle is not None and clock.watermark_ms() > settle) or (
            orphan is not None and clock.impressions_ms > orphan
        )

    def send(self, records_: Iterable[Impression | Click]) -> Effects:
        return self.run(
            [
                self.source("impressions" if isinstance(record, Impression) else "clicks", record.user_id, record)
                for record in records_
            ]
        )

    def heartbeat(self, time_ms: int) -> Effects:
        beat = Heartbeat(heartbeat=True, event_time_ms=time_ms)
        return self.run([self.source("impressions", None, beat), self.source("clicks", None, beat)])

    def transitions(self) -> list[Transition]:
        return [
            records.decode_as(Transition, output.value)
            for output in self.outputs
            if output.role == "transitions" and output.value is not None and b'"erased"' not in output.value
        ]

    def last_revisions(self) -> dict[tuple[str, str], Transition]:
        return {(one.user_id, one.transition_id): one for one in self.transitions()}

    def recommendations(self) -> list[Recommendation]:
        return [
            msgspec.json.decode(output.value, type=Recommendation)
            for output in self.outputs
            if output.role == "recommendations" and output.value is not None
        ]

    def dead(self) -> list[tuple[str, bytes | None]]:
        return [
            (dict(output.headers)["reason"].decode(), output.value)
            for output in self.outputs
            if output.role == "dead-letters"
        ]


def impression(user: str, name: str, time_ms: int, shown: Sequence[str], **more: Any) -> Impression:
    slate = [SlateItem(item_id=item, position=place) for place, item in enumerate(shown, start=1)]
    return Impression(impression_id=name, user_id=user, event_time_ms=time_ms, slate=slate, **more)


def click(user: str, name: str, of: str, item: str, time_ms: int, **more: Any) -> Click:
    return Click(click_id=name, impression_id=of, user_id=user, item_id=item, event_time_ms=time_ms, **more)

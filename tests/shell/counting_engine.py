"""A small engine at the seam: counts each user's events, says every count, and settles users by event time."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from model_core.records import Cause


class Output(NamedTuple):
    role: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Clock(msgspec.Struct, array_like=True):
    impressions_ms: int = -1
    clicks_ms: int = -1

    def watermark_ms(self) -> int:
        return min(self.impressions_ms, self.clicks_ms)


class Intake(NamedTuple):
    partition: int
    clock: Clock
    events: dict[bytes, list[Any]]
    dead: list[Output]

    @property
    def users(self) -> list[bytes]:
        return list(self.events)


class Effects(NamedTuple):
    clock: bytes
    states: dict[bytes, bytes | None]
    due: dict[bytes, tuple[Any, Any]]
    outputs: list[Output]
    counters: Counter[str]
    erased: dict[bytes, int]


class State(msgspec.Struct, array_like=True):
    count: int = 0
    settle_at: int | None = None
    applied: dict[str, int] = {}


def decode_state(stored: bytes) -> State:
    """A stored record without its filling."""
    return _state_decoder.decode(stored.split(_FILLING)[0])


class _Event(msgspec.Struct):
    event_time_ms: int = -1
    heartbeat: bool = False


@dataclass
class Model:
    version: int = 0


@dataclass
class CountingEngine:
    """Each event adds one; a transition says the count, once per event; a user settles `window_ms` later."""

    window_ms: int = 1_000
    state_bytes: int = 0
    model: Any = field(default_factory=Model)
    catalogue: Any = None

    def intake(
        self,
        clock: bytes | None,
        partition: int,
        records: Any,
        *,
        topics: int = 0,  # noqa: ARG002
        erased: Any = None,  # noqa: ARG002
    ) -> Intake:
        now = msgspec.msgpack.decode(clock, type=Clock) if clock else Clock()
        intake = Intake(partition, now, {}, [])
        for record in records:
            if record.value is None:
                intake.events.setdefault(record.key, []).append(record)
                continue
            try:
                event = _decoder.decode(record.value)
            except msgspec.DecodeError as error:
                headers = [("reason", b"not-json"), ("error", str(error).encode())]
                intake.dead.append(Output("dead-letters", record.key, record.value, headers))
                continue
            if record.role == "impressions":
                now.impressions_ms = max(now.impressions_ms, event.event_time_ms)
            elif record.role == "clicks":
                now.clicks_ms = max(now.clicks_ms, event.event_time_ms)
            if not event.heartbeat:
                intake.events.setdefault(record.key, []).append(record)
        return intake

    def step(self, intake: Intake, states: Any, due: Any) -> Effects:
        effects = Effects(msgspec.msgpack.encode(intake.clock), {}, {}, list(intake.dead), Counter(), {})
        for user in sorted({*intake.events, *due}):
            before = states[user]
            state = decode_state(before) if before else State()
            old = (state.settle_at, None)
            erased = False
            for record in intake.events.get(user, ()):
                if record.value is None:
                    erased = True
                    effects.erased[user] = record.log_time_ms or 0
                    break
                if state.applied.get(record.role, -1) >= record.offset:
                    raise AssertionError(f"{record.role} {record.offset} applied twice")
                state.count += 1
                state.applied[record.role] = record.offset
                state.settle_at = _decoder.decode(record.value).event_time_ms + self.window_ms
                effects.counters[record.role] += 1
            if erased:
                effects.states[user] = None
                effects.due[user] = (old, (None, None))
                effects.outputs.append(Output("recommendations", user, None, []))
                effects.counters["erased"] += 1
                continue
            if state.settle_at is not None and intake.clock.watermark_ms() > state.settle_at:
                state.settle_at = None
                effects.outputs.append(Output("transitions", user, b"%d" % state.count, []))
                effects.counters["settled"] += 1
            if user in intake.events:
                slate = b"%s:%d:%d" % (user, state.count, self.model.version)
                effects.outputs.append(Output("recommendations", user, slate, []))
            effects.states[user] = _state_encoder.encode(state) + _FILLING + bytes(self.state_bytes)
            effects.due[user] = (old, (state.settle_at, None))
        return effects

    def refresh(self, _partition: int, clock: bytes | None, states: Any, _cause: Cause) -> Effects:
        outputs = [
            Output("recommendations", user, b"%s:refreshed:%d" % (user, self.model.version), []) for user in states
        ]
        return Effects(clock or b"", dict(states), {}, outputs, Counter(refreshed=len(states)), {})

    def default_slate(self, _partition: int, clock: bytes | None, _cause: Cause) -> Effects:
        output = Output("recommendations", b"__default__", b"default:%d" % self.model.version, [])
        return Effects(clock or msgspec.msgpack.encode(Clock()), {}, {}, [output], Counter(), {})


_decoder = msgspec.json.Decoder(_Event)
_state_decoder = msgspec.json.Decoder(State)
_state_encoder = msgspec.json.Encoder()
_FILLING = b"|"

"""Whole logs as columns against the engine, one record a batch, on generated histories."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from model_core import join, records, user_state
from model_core.candidates import Catalogue
from model_core.config import EncoderSettings, HeadSettings, JoinSettings, PolicySettings
from model_core.engine import Engine, EngineSettings
from model_core.intake import Output, Role, SourceRecord
from model_core.join import Clock
from model_core.records import Cause, Item, Recommendation, Transition
from model_core.serving import ServingModel
from model_core.wholelogs import ROLES, Gathering, WholeTask
from model_core.wholelogs.apart import OF_SLATES
from tests.property import histories
from tests.property.histories import Disorder, History
from tests.property.test_join import DISORDERS, settings_of
from tests.unit.engine_case import Task as Reference

HISTORIES = 160
SEEN = 3
REACHED = (
    *("impression", "late-impression", "session-end", "late-session-end", "joined", "joined-late", "early"),
    *("duplicate", "settled", "default", "corrected", "time-out-of-range", "too-late", "impression-conflict"),
    *("click-conflict", "click-before-impression", "click-after-window", "item-not-in-slate", "orphan-click"),
    *("traits", "traits-unchanged", "unknown-item", "decision-expired", "decision-echoed", "decision-changed"),
    *("not-json", "schema", "unknown-kind", "key-mismatch", "too-large", "heartbeat"),
)


def engine_for(settings: JoinSettings, ring: int) -> Engine:
    """Four items, of which one is not there, under an untrained model whose states and values are not all zero."""
    catalogue = Catalogue()
    for name in "abcy":
        catalogue.set(Item(item_id=name, title=f"Film {name}"))
    encoder = EncoderSettings()
    model = ServingModel.initial(encoder)
    rng = np.random.default_rng(5)
    for name in ("value_in_bias", "value_out_bias", "user_taste_bias"):
        model.weights[name][:] = rng.normal(0.0, 0.3, model.weights[name].shape)
    model.examination[:] = np.linspace(1.0, 0.3, len(model.examination))
    own = EngineSettings(
        join=settings,
        head=HeadSettings(event_ring=ring),
        policy=PolicySettings(slate_size=2, candidates=4, seen_items=SEEN),
        encoder=encoder,
    )
    return Engine(own, catalogue, model, seed=7)


def log_of(history: History, seed: int) -> list[SourceRecord]:
    """One interleaving of both logs as they stand in topics, and beside them traits, echoes and what cannot be used."""
    rng = random.Random(f"columns {seed}")
    logs = {"impressions": history.impressions, "clicks": history.clicks}
    offsets: Counter[str] = Counter()
    log: list[SourceRecord] = []

    def add(role: Role, key: bytes | None, value: bytes | None, log_time_ms: int | None = None) -> None:
        log.append(SourceRecord(role, offsets[role], log_time_ms, key, value))
        offsets[role] += 1

    for batch in histories.interleavings(history, 3, seed)[seed % 3]:
        for topic, offset in batch:
            fields, log_time_ms = logs[topic][offset]
            fields = dict(fields)
            key = None if "heartbeat" in fields else str(fields["user_id"]).encode()
            if key is not None and rng.random() < 0.1:
                add("users", key, msgspec.json.encode({"user_id": key.decode(), "traits": {"n": rng.randint(0, 1)}}))
            if "slate" in fields and rng.random() < 0.15:
                fields["decision_id"] = "nobody's"
            if rng.random() < 0.08:
                add(*_unusable(rng, fields, topic))
            role: Role = "clicks" if topic == "clicks" else "impressions"
            add(role, key, msgspec.json.encode(fields), log_time_ms)
    return log


def _unusable(rng: random.Random, fields: dict[str, Any], topic: str) -> tuple[Role, bytes | None, bytes]:
    role: Role = "clicks" if topic == "clicks" else "impressions"
    value = msgspec.json.encode(fields)
    choices = (
        (role, b"ana", value[:-1]),
        (role, b"ana", b"[]"),
        (role, b"somebody else", value),
        (role, b"ana", b'{"pad":"' + b"x" * 100_000 + b'"}'),
        ("clicks", b"ana", msgspec.json.encode({**_CLICK, "kind": "what"})),
    )
    chosen: tuple[Role, bytes | None, bytes] = rng.choice(choices)  # type: ignore[assignment]
    return chosen


_SHOWN = {
    "impression_id": "i",
    "user_id": "ana",
    "event_time_ms": histories.START_MS,
    "slate": [{"item_id": "a", "position": 2}, {"item_id": "b"}],
}
_CLICK = {"click_id": "c", "impression_id": "i", "user_id": "ana", "item_id": "a", "event_time_ms": histories.START_MS}


def with_echoes(log: list[SourceRecord], recommendations: Sequence[Output], seed: int) -> list[SourceRecord]:
    """The log where some impressions show what the engine would have recommended before."""
    rng = random.Random(f"echoes {seed}")
    slates = [records.decode_as(Recommendation, each.value or b"") for each in recommendations]
    echoed = []
    for record in log:
        fields = _object(record.value)
        mine = [one for one in slates if one.user_id == fields.get("user_id") and one.slate]
        if "slate" in fields and mine and rng.random() < 0.4:
            shown = rng.choice(mine)
            fields["decision_id"] = shown.decision_id
            if rng.random() < 0.7:
                fields["slate"] = [{"item_id": place.item_id} for place in shown.slate]
            record = record._replace(value=msgspec.json.encode(fields))  # noqa: PLW2901
        echoed.append(record)
    return echoed


def _object(value: bytes | None) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(value or b"")
    except msgspec.DecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def columnar(engine: Engine, log: Sequence[SourceRecord], *, plain: bool = False) -> WholeTask:
    gathering = Gathering(engine.settings.join)
    rows: dict[tuple[str, int], int] = {}
    for role in ROLES:
        own = [record for record in log if record.role == role]
        taken = gathering.take(role, own.__getitem__, [record.value for record in own], plain=plain)
        rows |= {(role, record.offset): row for record, row in zip(own, taken, strict=True)}
    order = np.array([rows[record.role, record.offset] for record in log], np.int64)
    offsets = np.array([record.offset for record in log], np.int64)
    return WholeTask(engine, gathering, gathering.columns(), order, offsets, 0)


def stepped(engine: Engine, log: Sequence[SourceRecord]) -> tuple[Reference, Counter[str]]:
    task, counters = Reference(engine), Counter[str]()
    for record in log:
        counters += task.run([record]).counters
    return task, counters


def agree(log: Sequence[SourceRecord], settings: JoinSettings, *, ring: int = 64, plain: bool = False) -> Counter[str]:
    """Assert that both forms come to the same; returns the counters."""
    reference, counters = stepped(engine_for(settings, ring), log)
    task = columnar(engine_for(settings, ring), log, plain=plain)
    revisions = {}
    for output in reference.outputs:
        if output.role == "transitions":
            revisions[output.key, records.decode_as(Transition, output.value or b"").transition_id] = output
    assert by_bytes(task.transitions()) == by_bytes(revisions.values())
    letters = [output for output in reference.outputs if output.role == "dead-letters"]
    assert by_bytes(task.dead_letters()) == by_bytes(letters)
    states: dict[bytes, bytes | None] = {}
    slates: list[Output] = []
    for effects in task.effects():
        states |= effects.states
        slates += [output for output in effects.outputs if output.role == "recommendations"]
    assert without_slates(task.counters) == without_slates(counters)
    assert states.keys() == reference.states.keys()
    clock = task.task.clock(len(log) - 1)
    apart = {names_of(task)[user] for user in np.flatnonzero(task.joined.apart)}
    for key, stored in reference.states.items():
        own = states[key]
        assert own is not None
        same_state(user_state.decode(own), user_state.decode(stored), clock, settings, apart=key in apart)
    causes = {each.key: records.decode_as(Recommendation, each.value or b"").cause for each in slates}
    assert causes == last_causes(reference)
    return counters


def names_of(task: WholeTask) -> list[bytes]:
    return [name.encode() for name in task.task.gathering.users.all()]


def by_bytes(outputs: Any) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    return sorted((each.key or b"", each.value or b"", each.headers) for each in outputs)


def without_slates(counters: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counters.items() if name not in OF_SLATES and count}


def last_causes(reference: Reference) -> dict[bytes | None, Cause]:
    return {
        output.key: records.decode_as(Recommendation, output.value or b"").cause
        for output in reference.outputs
        if output.role == "recommendations"
    }


def same_state(
    own: user_state.UserState, other: user_state.UserState, clock: Clock, settings: JoinSettings, *, apart: bool
) -> None:
    """Equal but for float32's rounding of what the model made, and for decisions: one slate was made, not many."""
    for each in (own, other):
        assert not join.settle(each.join, clock, settings)
    close(own.head, other.head)
    close(own.hidden, other.hidden)
    for left, right in zip(own.join.open, other.join.open, strict=True):
        close(left.features, right.features)
        close(left.targets, right.targets)
    assert plain_fields(own) == plain_fields(other)
    if not apart:
        assert len(own.decisions) <= 1


def close(left: bytes, right: bytes) -> None:
    """Rounded differently: beside the largest number, since sums of rewards of 1e8 leave small ones behind."""
    one, other = np.frombuffer(left, np.float32), np.frombuffer(right, np.float32)
    largest = float(np.nanmax(np.abs(other), initial=1.0))
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=4e-6 * largest)


def plain_fields(state: user_state.UserState) -> dict[str, Any]:
    opened = [msgspec.structs.replace(each, features=b"", targets=b"") for each in state.join.open]
    past = state.join.past
    if past.gaps_ms:
        past = msgspec.structs.replace(past, gaps_ms=[0, *past.gaps_ms[1:]])  # The first one means nothing.
    fields = msgspec.structs.asdict(msgspec.structs.replace(state, head=b"", hidden=b"", decisions=[]))
    fields["join"] = msgspec.structs.replace(state.join, open=opened, past=past)
    fields["held"] = list(state.join.click_ids)
    return fields


def history_of(seed: int) -> History:
    disorder: Disorder = DISORDERS[seed % 3]
    return histories.generate(seed, disorder=disorder)._replace(provisional=False)


def test_columns_come_to_what_the_engine_comes_to() -> None:
    """Last revisions, dead letters and counters to the byte, records to float32's rounding, whatever is in the logs."""
    counts: Counter[str] = Counter()
    for seed in range(HISTORIES):
        history = history_of(seed)
        log = log_of(history, seed)
        if seed % 4 == 0:
            made, _ = stepped(engine_for(settings_of(history), 64), log)
            log = with_echoes(log, [each for each in made.outputs if each.role == "recommendations"], seed)
        counts += agree(log, settings_of(history), ring=(64, 4, 0)[seed % 3])
    assert not {name for name in REACHED if counts[name] < 3}, counts


def test_what_the_typed_decoders_take_at_once_is_what_the_checks_let_through() -> None:
    """Beside records out of the ordinary, plain ones go through in bulk, and it comes to the same."""
    for seed in range(30):
        history = history_of(seed)
        log = [
            record._replace(log_time_ms=None)
            for record in log_of(history, seed)
            if record.key is None or record.key == _object(record.value).get("user_id", "").encode()
        ]
        places: Counter[str] = Counter()
        for number, record in enumerate(log):
            log[number] = record._replace(offset=places[record.role])
            places[record.role] += 1
        agree(log, settings_of(history), plain=True)


ODD = (
    *("null", "true", "0", "-0.0", "1.0", "1.5", "1e3", "1e400", "1700000000000", "1700000000000.0", "1.7e12", "-1"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "1e15", "1e300"),
    *(
        '""',
        '"x"',
        '"__default__"',
        '"\\ud800"',
        '"\\u0000"',
        '"like"',
        "[]",
        "{}",
        '[{"item_id":"a"},{"item_id":"a"}]',
    ),
    *('[{"item_id":"a","position":2.0}]', '[{"item_id":"a","position":4294967296}]', '[{"item_id":"a","note":1}]'),
    *('[{"item_id":"a","propensity":1}]', '{"a":1.0,"b":[1]}', '{"a":18446744073709551615}', '{"a":1,"a":2}', "[1"),
)


def test_a_typed_decoder_takes_no_value_for_another() -> None:
    """In bulk or one by one, each odd value of each field makes the same columns, or the same refusal."""
    settings = JoinSettings(weights={"click": 1.0, "like": 1e-9})
    fields: dict[str, Any]
    role: Role
    for role, fields in (("impressions", _SHOWN), ("clicks", _CLICK)):
        for name in (
            *fields,
            "kind",
            "value",
            "context",
            "policy",
            "model_version",
            "decision_id",
            "heartbeat",
            "note",
        ):
            for odd in ODD:
                parts = [f'"{key}":{json.dumps(value)}' for key, value in fields.items() if key != name]
                value = ("{" + ",".join([*parts, f'"{name}":{odd}']) + "}").encode()
                assert gathered(settings, role, value, plain=True) == gathered(settings, role, value, plain=False)


def gathered(settings: JoinSettings, role: Role, value: bytes, *, plain: bool) -> Any:
    gathering = Gathering(settings)
    try:
        user = msgspec.json.decode(value).get("user_id")
    except (msgspec.DecodeError, UnicodeDecodeError):
        user = "ana"
    key = user.encode() if isinstance(user, str) else None
    gathering.take(role, lambda _: SourceRecord(role, 0, None, key, value), [value], plain=plain)
    columns = gathering.columns()
    numbers: list[Any] = [*columns[:3], columns.reward, columns.slate_start, columns.position]
    named = [
        [names.all()[number] for number in column.tolist() if number >= 0]
        for names, column in (
            (gathering.users, columns.user),
            (gathering.impressions, columns.impression),
            (gathering.clicks, columns.click),
            (gathering.items, columns.item),
            (gathering.items, columns.shown),
            (gathering.kinds, columns.feedback),
        )
    ]
    refused = {row: (error.reason, str(error)) for row, error in gathering.refused.items()}
    return [column.tolist() for column in numbers], named, refused, gathering.contexts, gathering.decisions


def test_a_user_for_whom_a_cap_let_go_of_something_is_stepped_by_the_engine() -> None:
    """Caps, and the ids that were let go of, are the engine's own; everybody else goes through columns."""
    apart = 0
    for seed in range(40):
        history = history_of(seed)
        settings = dataclasses.replace(settings_of(history), max_open_impressions=2, max_waiting_clicks=1)
        log = log_of(history, seed)
        agree(log, settings)
        apart += columnar(engine_for(settings, 64), log).apart
    assert apart > 5

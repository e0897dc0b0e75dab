"""Seeded traffic for the real engine: impressions and clicks with every kind of disorder, and what must come of it."""

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from confluent_kafka import Message

from tests.property.oracle import Fields, Logged, Rules, expect

START_MS = 1_700_000_000_000
RULES = Rules(
    window=20_000,
    lateness=5_000,
    horizon=60_000,
    skew=1_000,
    gap=20_000,
    weights={"click": 1.0, "like": 0.1, "hide": -0.7},
    default=-0.05,
    length=50,
)
JOIN = {
    "attribution_window_ms": RULES.window,
    "allowed_lateness_ms": RULES.lateness,
    "correction_horizon_ms": RULES.horizon,
    "clock_skew_ms": RULES.skew,
    "session_gap_ms": RULES.gap,
    "weights": RULES.weights,
    "default_reward": RULES.default,
    "history_length": RULES.length,
}
ITEMS = [f"item-{number}" for number in range(60)]
_SLATE = 5
_STEP_MS = 60

Origin = tuple[str, int, int]
"""Role, partition and offset of a record."""


class Sent(NamedTuple):
    """A record to produce; heartbeats have no key and go to every partition."""

    role: str
    user: str | None
    value: bytes


class Traffic(NamedTuple):
    """What to produce, in order.

    Attributes:
        records: all of them.
        bad: reason by value, of those that no join ever sees.
        closing: ids of each user's last impression and of its click, which nothing is wrong with.
    """

    records: list[Sent]
    bad: dict[bytes, str]
    closing: dict[str, tuple[str, str]]


def generate(seed: int, events: int, users: int) -> Traffic:
    """This many events, then for each user an impression and a click in good order, then heartbeats that settle all."""
    rng = random.Random(seed)
    arrivals: list[tuple[float, Sent]] = []
    number = 0
    while len(arrivals) < events:
        shown = _impression(rng, f"i{number}", f"u{rng.randrange(users)}", START_MS + number * _STEP_MS)
        for role, fields in _around(rng, shown):
            arrival = fields["event_time_ms"] + _delay(rng)
            arrivals.append((arrival, Sent(role, fields["user_id"], json.dumps(fields).encode())))
        number += 1
    arrivals.sort(key=lambda arrival: arrival[0])
    records = [record for _, record in arrivals[:events]]
    bad = _spoil(rng, records)
    now = START_MS + number * _STEP_MS + 3 * RULES.horizon
    closing = {}
    for place, user in enumerate(f"u{number}" for number in range(users)):
        shown = _impression(rng, f"last-{user}", user, now + place)
        click = _click(rng, shown, f"last-click-{user}", 500)
        closing[user] = shown["impression_id"], click["click_id"]
        records += [
            Sent("impressions", user, json.dumps(shown).encode()),
            Sent("clicks", user, json.dumps(click).encode()),
        ]
    over = {"heartbeat": True, "event_time_ms": now + users + 10 * RULES.horizon}
    records += [Sent(role, None, json.dumps(over).encode()) for role in ("impressions", "clicks")]
    return Traffic(records, bad, closing)


def _impression(rng: random.Random, identifier: str, user: str, time: int) -> Fields:
    slate: list[Fields] = [{"item_id": item} for item in rng.sample(ITEMS, _SLATE)]
    if rng.random() < 0.5:
        for item in slate:
            item["propensity"] = rng.choice((0.1, 0.25, 1.0))
    fields = {"impression_id": identifier, "user_id": user, "event_time_ms": time, "slate": slate}
    if rng.random() < 0.3:
        fields |= {"context": {"device": rng.choice(("phone", "tv"))}, "policy": "bts"}
    return fields


def _click(rng: random.Random, shown: Fields, identifier: str, since: int) -> Fields:
    fields = {
        "click_id": identifier,
        "impression_id": shown["impression_id"],
        "user_id": shown["user_id"],
        "item_id": rng.choice(shown["slate"])["item_id"],
        "event_time_ms": shown["event_time_ms"] + since,
    }
    if rng.random() < 0.4:
        fields |= {"kind": rng.choice(("click", "like", "hide")), "value": rng.choice((1, 0.3, 2.5))}
    return fields


def _around(rng: random.Random, shown: Fields) -> Iterator[tuple[str, Fields]]:
    """An impression and what belongs to it: clicks, session ends, the same again, the same id with other content."""
    yield "impressions", shown
    if rng.random() < 0.05:
        yield "impressions", dict(reversed(shown.items()))
    if rng.random() < 0.02:
        yield "impressions", {**shown, "slate": [{"item_id": ITEMS[0]}]}
    if rng.random() < 0.03:
        end = {"user_id": shown["user_id"], "event_time_ms": shown["event_time_ms"] + rng.randint(0, RULES.gap)}
        yield "impressions", {"session_end": True, **end}
    for number in range(rng.choice((0, 0, 1, 1, 2, 3))):
        since = rng.randint(-RULES.skew - 200, RULES.window // 2 if rng.random() < 0.9 else RULES.window * 5 // 4)
        click = _click(rng, shown, f"{shown['impression_id']}-{number}", since)
        if rng.random() < 0.04:
            click |= rng.choice(({"impression_id": "nowhere"}, {"item_id": "not-there"}))
        yield "clicks", click
        if rng.random() < 0.08:
            yield "clicks", click
        if rng.random() < 0.03:
            yield "clicks", {**click, "value": 7.5}


def _delay(rng: random.Random) -> int:
    share = rng.random()
    if share < 0.85:
        return rng.randint(0, RULES.lateness)
    return rng.randint(0, RULES.horizon if share < 0.96 else 2 * RULES.horizon)


def _spoil(rng: random.Random, records: list[Sent]) -> dict[bytes, str]:
    """Put a bad record in the place of one in a hundred; each bad value is unlike all others."""
    bad = {}
    for place in range(0, len(records), 100):
        fields = json.loads(records[place].value) | {"spoilt": place}
        reason, value = rng.choice(
            (
                ("not-json", b'{"spoilt": %d' % place),
                ("schema", b'[%d, "spoilt"]' % place),
                ("schema", json.dumps(fields | {"event_time_ms": "soon"}).encode()),
                ("key-mismatch", json.dumps(fields | {"user_id": "somebody-else"}).encode()),
            )
        )
        records[place] = records[place]._replace(value=value)
        bad[value] = reason
    return bad


class Outcome(NamedTuple):
    """What must have gone out of all partitions; dead letters by their origin, as `Expected` has them."""

    transitions: dict[tuple[str, str], Fields]
    dead: dict[Origin, set[str | None]]


def outcome_of(impressions: Iterable[Message], clicks: Iterable[Message], traffic: Traffic) -> Outcome:
    """The oracle's word on what stands in both topics."""
    outcome = Outcome({}, {})
    logs: dict[int, dict[str, list[tuple[int, Logged]]]] = {}
    for role, messages in (("impressions", impressions), ("clicks", clicks)):
        for message in messages:
            partition, offset, value = (
                int(message.partition() or 0),
                int(message.offset() or 0),
                _bytes(message.value()),
            )
            log = logs.setdefault(partition, {"impressions": [], "clicks": []})[role]
            if value in traffic.bad:
                outcome.dead[role, partition, offset] = {traffic.bad[value]}
            else:
                log.append((offset, Logged(json.loads(value), message.timestamp()[1])))
    for partition, both in logs.items():
        expected = expect(
            [logged for _, logged in both["impressions"]], [logged for _, logged in both["clicks"]], RULES
        )
        outcome.transitions.update(expected.transitions)
        for (role, place), reasons in expected.dead.items():
            outcome.dead[role, partition, both[role][place][0]] = reasons
    return outcome


def _bytes(value: Any) -> bytes:
    assert isinstance(value, bytes)
    return value

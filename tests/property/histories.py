"""Seeded histories of a stream task: two logs with every kind of record and of disorder the contract speaks of."""

import random
from typing import Literal, NamedTuple

from tests.property.oracle import Fields, Logged, Rules

START_MS = 1_700_000_000_000
BEYOND_MS = START_MS + 100_000
"""By then all has settled, and all is forgotten."""

Disorder = Literal["none", "lateness", "horizon"]


class History(NamedTuple):
    """Two logs, and the rules they are to be read by."""

    rules: Rules
    impressions: list[Logged]
    clicks: list[Logged]
    provisional: bool


class _Sent(NamedTuple):
    """A record before it has a place in its log; `copy` is 0 for the first of its id."""

    topic: str
    fields: Fields
    copy: int


def generate(seed: int, *, disorder: Disorder = "horizon", conflicts: bool = True) -> History:
    """A history; the same seed without conflicts has the same records under every disorder.

    Args:
        seed: of everything.
        disorder: `none`; `lateness`: nobody is late; `horizon`: some are late, some too late.
        conflicts: also ids that come again with other content, and bad times.
    """
    rng = random.Random(seed)
    rules = _rules(rng)
    provisional = rng.random() < 0.3
    sent = _people(rng, rules, conflicts=conflicts)
    order = random.Random(f"{seed} {disorder}")
    logged = rng.random() < 0.7
    logs: dict[str, list[Logged]] = {}
    for topic in ("impressions", "clicks"):
        arrivals = []
        for record in sent:
            if record.topic == topic:
                time = record.fields["event_time_ms"]
                arrival = time + _delay(order, rules, disorder, record.copy)
                arrivals.append((arrival, order.random() if disorder != "none" else 0.0, record.fields))
        arrivals.sort(key=lambda each: each[:2])
        logs[topic] = [Logged(fields, arrival if logged else None) for arrival, _, fields in arrivals]
        if conflicts:
            _insert_bad_times(rng, logs[topic], rules)
    if rng.random() < 0.8:
        _end(logs)
    return History(rules, logs["impressions"], logs["clicks"], provisional)


def _rules(rng: random.Random) -> Rules:
    horizon = rng.choice((0, 20, 90, 250))
    return Rules(
        window=rng.choice((0, 5, 20, 50)),
        lateness=rng.choice((0, horizon // 20, horizon // 4, horizon)),
        horizon=horizon,
        skew=rng.choice((0, 0, 3)),
        gap=rng.choice((0, 5, 25, 60)),
        weights={"click": 1.0, "like": 0.1, "hide": -0.7, "seen": 0.0},
        default=rng.choice((0.0, 0.0, -0.05)),
        length=rng.choice((1, 2, 3, 50)),
    )


def _people(rng: random.Random, rules: Rules, *, conflicts: bool) -> list[_Sent]:
    span = rng.choice((20, 120, 400))
    sent: list[_Sent] = []
    for user in ("ana", "bo", "never-returns")[: rng.randint(2, 3)]:
        shown = [_impression(rng, user, number, span) for number in range(rng.randint(1, 5))]
        if user == "never-returns":
            del shown[1:]
        for fields in shown:
            _send(rng, sent, "impressions", fields, rules, conflicts=conflicts)
            if user == "never-returns" and rng.random() < 0.7:
                continue
            for number in range(rng.choice((0, 0, 1, 1, 2, 4))):
                _send(rng, sent, "clicks", _click(rng, fields, number, rules), rules, conflicts=conflicts)
        _session_ends(rng, sent, user, shown, rules)
    for topic in ("impressions", "clicks"):
        for _ in range(rng.randint(0, 5)):
            time = START_MS + rng.randint(0, span + 100)
            sent.append(_Sent(topic, {"heartbeat": True, "event_time_ms": time}, 0))
    return sent


def _impression(rng: random.Random, user: str, number: int, span: int) -> Fields:
    items = rng.sample(("a", "b", "c", "d"), rng.randint(1, 3))
    slate: list[Fields] = [{"item_id": item} for item in items]
    for item in slate:
        if rng.random() < 0.5:
            item["propensity"] = rng.choice((0.1, 0.25, 1.0))
    fields: Fields = {
        "impression_id": f"i{(number * 7) % 10}",
        "user_id": user,
        "event_time_ms": START_MS + rng.randint(0, span),
        "slate": slate,
    }
    if rng.random() < 0.3:
        fields["context"] = {"device": rng.choice(("phone", "tv")), "n": 1}
    if rng.random() < 0.3:
        fields["policy"] = "bts"
    if rng.random() < 0.2:
        fields["propensity_kind"] = "marginal"
    return fields


def _click(rng: random.Random, shown: Fields, number: int, rules: Rules) -> Fields:
    since = rng.choice(
        (
            rng.randint(-rules.skew, rules.window),
            rng.randint(-rules.skew, rules.window),
            rng.randint(-rules.skew - 2, rules.window + 3),
            -rules.skew,
            rules.window,
        )
    )
    items = [item["item_id"] for item in shown["slate"]]
    fields: Fields = {
        "click_id": f"{shown['impression_id']}-{number}",
        "impression_id": shown["impression_id"] if rng.random() < 0.95 else "nowhere",
        "user_id": shown["user_id"],
        "item_id": rng.choice(items) if rng.random() < 0.93 else "z",
        "event_time_ms": shown["event_time_ms"] + since,
    }
    if rng.random() < 0.5:
        fields["kind"] = rng.choice(("click", "like", "hide", "seen"))
    if rng.random() < 0.5:
        fields["value"] = rng.choice((1, 0.1, 0.3, 1e8, -0.2, 0.0))
    return fields


def _session_ends(rng: random.Random, sent: list[_Sent], user: str, shown: list[Fields], rules: Rules) -> None:
    for _ in range(rng.choice((0, 0, 1, 2))):
        time = rng.choice(shown)["event_time_ms"] + rng.choice((0, rng.randint(-3, rules.gap + 3), rules.gap))
        sent.append(_Sent("impressions", {"session_end": True, "user_id": user, "event_time_ms": time}, 0))


def _send(rng: random.Random, sent: list[_Sent], topic: str, fields: Fields, rules: Rules, *, conflicts: bool) -> None:
    sent.append(_Sent(topic, fields, 0))
    if rng.random() < 0.2:
        sent.append(_Sent(topic, dict(reversed(fields.items())), 1))
    if rng.random() < 0.1 and topic == "clicks":
        sent.append(_Sent(topic, {"value": 1.0, "kind": "click", **fields}, 1))
    if conflicts and rng.random() < 0.1:
        sent.append(_Sent(topic, _conflicting(rng, topic, fields, rules), 1))


def _conflicting(rng: random.Random, topic: str, fields: Fields, rules: Rules) -> Fields:
    """The same id with other content.

    An impression's comes back within the session gap: so long its id is taken, however far the clicks are behind.
    """
    change: Fields
    if topic == "clicks":
        change = rng.choice(
            (
                {"value": 0.77},
                {"note": "an unknown field"},
                {"event_time_ms": fields["event_time_ms"] + rules.horizon + rng.randint(0, 2)},
            )
        )
    else:
        change = rng.choice(
            (
                {"slate": [{"item_id": "y"}]},
                {"note": "an unknown field"},
                {"event_time_ms": fields["event_time_ms"] + rng.randint(-min(2, rules.gap), rules.gap)},
            )
        )
    return {**fields, **change}


def _delay(rng: random.Random, rules: Rules, disorder: Disorder, copy: int) -> int:
    if disorder == "none":
        return 0
    if disorder == "lateness" or rng.random() < 0.5:
        return rng.randint(0, rules.lateness)
    return rng.randint(0, rules.horizon + 4) + copy * rng.choice((0, 0, rules.horizon))


def _insert_bad_times(rng: random.Random, log: list[Logged], rules: Rules) -> None:
    """A few records from before 2000, or from after the log's own time."""
    for place in range(len(log) - 1, -1, -1):
        fields, log_time = log[place]
        if rng.random() < 0.03:
            time = rng.choice((0, 946_684_799_999))
            log.insert(place, Logged({**fields, "event_time_ms": time}, log_time))
        elif log_time is not None and rng.random() < 0.03:
            time = log_time + rules.skew + rng.randint(1, 500)
            log.insert(place, Logged({**fields, "event_time_ms": time}, log_time))


def _end(logs: dict[str, list[Logged]]) -> None:
    """Heartbeats after which all is over."""
    for log in logs.values():
        log.append(Logged({"heartbeat": True, "event_time_ms": BEYOND_MS}, None))


def interleavings(history: History, count: int, seed: int) -> list[list[list[tuple[str, int]]]]:
    """Ways to read both logs, each in its order: batches of (topic, offset)."""
    rng = random.Random(f"interleaving {seed}")
    ways = []
    for way in range(count):
        turns = ["impressions"] * len(history.impressions) + ["clicks"] * len(history.clicks)
        if way == 1:
            turns.reverse()
        elif way > 1:
            rng.shuffle(turns)
        ways.append(_batches(rng, turns))
    return ways


def _batches(rng: random.Random, turns: list[str]) -> list[list[tuple[str, int]]]:
    offsets: dict[str, int] = {"impressions": 0, "clicks": 0}
    largest = rng.choice((1, 3, 100))
    batches: list[list[tuple[str, int]]] = [[]]
    size = rng.randint(1, largest)
    for topic in turns:
        if len(batches[-1]) >= size:
            batches.append([])
            size = rng.randint(1, largest)
        batches[-1].append((topic, offsets[topic]))
        offsets[topic] += 1
    return batches

"""What the join must come to, computed from the whole logs in the plainest way. Shares no code with the join.

It reads the contract alone: each topic's log in its order, records as plain dicts. Nothing here is incremental: the
expected last revision of an impression is a function of everything that was ever accepted.
"""

import math
from typing import Any, NamedTuple

Fields = dict[str, Any]

YEAR_2000_MS = 946_684_800_000


class Logged(NamedTuple):
    """One record as it stands in a topic: its fields, and the log's timestamp (None: there is no log)."""

    fields: Fields
    log_time_ms: int | None


class Rules(NamedTuple):
    """The settings of the contract, by its names."""

    window: int
    lateness: int
    horizon: int
    skew: int
    gap: int
    weights: dict[str, float]
    default: float
    length: int


class Expected(NamedTuple):
    """What must have gone out at the end of both logs.

    Attributes:
        transitions: last revision of each settled impression, by (user, id).
        dead: by (topic, offset), the reasons that may stand; None among them: none may stand, too.
    """

    transitions: dict[tuple[str, str], Fields]
    dead: dict[tuple[str, int], set[str | None]]


class _Accepted(NamedTuple):
    offset: int
    fields: Fields
    late: bool
    reached: int


def expect(impressions: list[Logged], clicks: list[Logged], rules: Rules) -> Expected:
    dead: dict[tuple[str, int], set[str | None]] = {}
    on_impressions, reached_impressions = _lateness("impressions", impressions, rules, dead)
    on_clicks, reached_clicks = _lateness("clicks", clicks, rules, dead)
    shown = _first_impressions([a for a in on_impressions if "impression_id" in a.fields], dead)
    ends = [a for a in on_impressions if "session_end" in a.fields and not a.late]
    feedback = _distinct_clicks([a for a in on_clicks if "click_id" in a.fields], rules, dead)
    joined = _joined(shown, feedback, reached_impressions, rules, dead)
    settled = [
        a
        for a in shown.values()
        if min(reached_impressions, reached_clicks) - rules.lateness
        > a.fields["event_time_ms"] + max(rules.window, rules.gap)
    ]
    transitions = {
        (a.fields["user_id"], a.fields["impression_id"]): _transition(a, shown, ends, joined, rules) for a in settled
    }
    return Expected(transitions, dead)


def _lateness(
    topic: str, log: list[Logged], rules: Rules, dead: dict[tuple[str, int], set[str | None]]
) -> tuple[list[_Accepted], int]:
    accepted: list[_Accepted] = []
    reached = -(10**18)
    for offset, (fields, log_time) in enumerate(log):
        time = fields["event_time_ms"]
        if time < YEAR_2000_MS or (log_time is not None and time > log_time + rules.skew):
            dead[topic, offset] = {"time-out-of-range"}
        elif time < reached - rules.horizon:
            dead[topic, offset] = {"too-late"}
        else:
            late = time < reached - rules.lateness
            reached = max(reached, time)
            accepted.append(_Accepted(offset, fields, late, reached))
    return accepted, reached


def _filled_impression(fields: Fields) -> Fields:
    slate = [
        {"position": place, "propensity": None, **{k: v for k, v in item.items() if v is not None}}
        for place, item in enumerate(fields["slate"], start=1)
    ]
    defaults: Fields = {"propensity_kind": "conditional", "policy": None, "model_version": None}
    return {**defaults, "decision_id": None, "context": {}, **fields, "slate": slate}


def _filled_click(fields: Fields) -> Fields:
    return {"kind": "click", "value": 1.0, **fields}


def _first_impressions(
    accepted: list[_Accepted], dead: dict[tuple[str, int], set[str | None]]
) -> dict[tuple[str, str], _Accepted]:
    shown: dict[tuple[str, str], _Accepted] = {}
    for a in accepted:
        fields = _filled_impression(a.fields)
        first = shown.setdefault((fields["user_id"], fields["impression_id"]), a._replace(fields=fields))
        if first.fields != fields:
            dead["impressions", a.offset] = {"impression-conflict"}
    return shown


def _distinct_clicks(
    accepted: list[_Accepted], rules: Rules, dead: dict[tuple[str, int], set[str | None]]
) -> list[_Accepted]:
    taken: dict[tuple[str, str], Fields] = {}
    distinct: list[_Accepted] = []
    for a in accepted:
        fields = _filled_click(a.fields)
        key = fields["user_id"], fields["click_id"]
        first = taken.get(key)
        if first is None or a.reached > first["event_time_ms"] + rules.horizon:
            taken[key] = fields
            distinct.append(a._replace(fields=fields))
        elif first != fields:
            dead["clicks", a.offset] = {"click-conflict"}
    return distinct


def _joined(
    shown: dict[tuple[str, str], _Accepted],
    feedback: list[_Accepted],
    reached_impressions: int,
    rules: Rules,
    dead: dict[tuple[str, int], set[str | None]],
) -> dict[tuple[str, str], list[_Accepted]]:
    joined: dict[tuple[str, str], list[_Accepted]] = {key: [] for key in shown}
    for click in feedback:
        time = click.fields["event_time_ms"]
        key = click.fields["user_id"], click.fields["impression_id"]
        abandoned = reached_impressions > time + rules.skew + rules.horizon
        if key not in shown:
            if abandoned:
                dead["clicks", click.offset] = {"orphan-click"}
            continue
        since = time - shown[key].fields["event_time_ms"]
        if since < -rules.skew:
            dead["clicks", click.offset] = {"click-before-impression", "orphan-click" if abandoned else None}
        elif since > rules.window:
            dead["clicks", click.offset] = {"click-after-window", "orphan-click" if abandoned else None}
        elif click.fields["item_id"] not in [item["item_id"] for item in shown[key].fields["slate"]]:
            dead["clicks", click.offset] = {"item-not-in-slate"}
        else:
            joined[key].append(click)
    return joined


class _Entry(NamedTuple):
    time: int
    click_id: str
    item_id: str
    kind: str
    reward: float

    def at(self, time: int) -> list[Any]:
        return [self.item_id, self.kind, self.reward, max(0, time - self.time)]


def _entries(impression: _Accepted, clicks: list[_Accepted], rules: Rules) -> list[_Entry]:
    if impression.late:
        return []
    return sorted(
        _Entry(
            max(click.fields["event_time_ms"], impression.fields["event_time_ms"]),
            click.fields["click_id"],
            click.fields["item_id"],
            click.fields["kind"],
            rules.weights[click.fields["kind"]] * click.fields["value"],
        )
        for click in clicks
        if not click.late
    )


def _transition(
    this: _Accepted,
    shown: dict[tuple[str, str], _Accepted],
    ends: list[_Accepted],
    joined: dict[tuple[str, str], list[_Accepted]],
    rules: Rules,
) -> Fields:
    user, identifier, time = this.fields["user_id"], this.fields["impression_id"], this.fields["event_time_ms"]
    history = sorted(
        entry
        for key, impression in shown.items()
        if key[0] == user
        for entry in _entries(impression, joined[key], rules)
    )
    session_ends = [
        end.fields["event_time_ms"]
        for end in ends
        if end.fields["user_id"] == user and time <= end.fields["event_time_ms"] <= time + rules.gap
    ]
    followers = sorted(
        (other.fields["event_time_ms"], other.fields["impression_id"])
        for (whose, _), other in shown.items()
        if whose == user
        and not other.late
        and (other.fields["event_time_ms"], other.fields["impression_id"]) > (time, identifier)
        and other.fields["event_time_ms"] <= min([time + rules.gap, *session_ends])
    )
    after = shown[user, followers[0][1]].fields if followers else None
    at = after["event_time_ms"] if after else min([time + rules.gap, *session_ends])
    if after:
        append = [entry for entry in history if time <= entry.time < at]
    else:
        append = _entries(this, joined[user, identifier], rules)
    slate = [
        {**item, "reward": _reward(item["item_id"], joined[user, identifier], rules)} for item in this.fields["slate"]
    ]
    return {
        "transition_id": identifier,
        "user_id": user,
        "event_time_ms": time,
        "settled": True,
        "history": [entry.at(time) for entry in history if entry.time < time][-rules.length :],
        "context": this.fields["context"],
        "slate": slate,
        "propensity_kind": this.fields["propensity_kind"],
        "reward": math.fsum(item["reward"] for item in slate),
        "next_transition_id": followers[0][1] if followers else None,
        "append": [entry.at(at) for entry in append],
        "next_context": after["context"] if after else {},
        "next_slate": after["slate"] if after else [],
        "elapsed_ms": at - time,
        "terminated": after is None and bool(session_ends),
        "truncated": after is None and not session_ends,
        "policy": this.fields["policy"],
    }


def _reward(item_id: str, clicks: list[_Accepted], rules: Rules) -> float:
    worth = [
        rules.weights[click.fields["kind"]] * click.fields["value"]
        for click in clicks
        if click.fields["item_id"] == item_id
    ]
    return math.fsum(worth) if worth else rules.default

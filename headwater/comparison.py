"""What a backfill would change: its state, transitions and slates beside those of the live deployment, by user.

Both are last words: the last revision of each transition, the last slate of each user, the users with a record. The
live ones are read from the topics, the other ones from the folder that the replay has written.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headwater.reading import Reader
from headwater.settings import Settings
from model_core.records import DEFAULT_USER
from streams.ports import USER
from streams.topics import CHANGELOG

__all__ = ["Compared", "compare", "described"]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What would change, live beside replayed.

    Attributes:
        users: with a record in both.
        users_live_alone: with a record in the live state alone.
        users_replayed_alone: with a record in the replayed state alone.
        transitions: there in both.
        rewards_changed: of those, how many have another reward.
        users_with_changed_rewards: how many users they are of.
        mean_reward: of the transitions that are there in both, live and replayed.
        slates: users with a slate in both.
        same_cause: of those, how many slates were chosen because of the same record.
        slates_changed: with other items, or in another order.
        first_changed: with another item at the first place.
        overlap: mean share of the live slate's items that the replayed one has as well.
        models: versions that chose the slates, live and replayed, with how many slates.
    """

    users: int
    users_live_alone: int
    users_replayed_alone: int
    transitions: int
    rewards_changed: int
    users_with_changed_rewards: int
    mean_reward: tuple[float, float]
    slates: int
    same_cause: int
    slates_changed: int
    first_changed: int
    overlap: float
    models: tuple[dict[int, int], dict[int, int]]


class _Transition(msgspec.Struct):
    user_id: str = ""
    transition_id: str = ""
    reward: float = 0.0


class _Place(msgspec.Struct):
    item_id: str


class _Slate(msgspec.Struct):
    user_id: str = ""
    model_version: int = 0
    slate: list[_Place] = []
    cause: Any = None


def compare(settings: Settings, out: Path, users: Iterable[bytes]) -> Compared:
    """Compare a replay with the live deployment.

    Args:
        settings: of the broker.
        out: the replay's folder.
        users: keys of those with a record after the replay.
    """
    rewards = _rewards(_live(settings, "transitions")), _rewards(_lines(out / "transitions.jsonl"))
    slates = _slates(_live(settings, "recommendations")), _slates(_lines(out / "recommendations.jsonl"))
    return Compared(**_users(settings, {*users}), **_rewards_compared(*rewards), **_slates_compared(*slates))


def _users(settings: Settings, replayed: set[bytes]) -> dict[str, Any]:
    live: set[bytes] = set()
    with Reader(settings.streams, [CHANGELOG]) as reader:
        for _, message in reader.to_the_end():
            if message.key().startswith(USER):
                change = live.discard if message.value() is None else live.add
                change(message.key()[len(USER) :])
    return {
        "users": len(live & replayed),
        "users_live_alone": len(live - replayed),
        "users_replayed_alone": len(replayed - live),
    }


def _rewards_compared(
    live: Mapping[tuple[str, str], float], replayed: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    both = live.keys() & replayed.keys()
    changed = [key for key in both if live[key] != replayed[key]]
    return {
        "transitions": len(both),
        "rewards_changed": len(changed),
        "users_with_changed_rewards": len({user for user, _ in changed}),
        "mean_reward": (_mean(live[key] for key in both), _mean(replayed[key] for key in both)),
    }


def _slates_compared(live: Mapping[str, _Slate], replayed: Mapping[str, _Slate]) -> dict[str, Any]:
    both = sorted(live.keys() & replayed.keys())
    pairs = [(_items(live[user]), _items(replayed[user])) for user in both]
    return {
        "slates": len(both),
        "same_cause": sum(live[user].cause == replayed[user].cause for user in both),
        "slates_changed": sum(before != after for before, after in pairs),
        "first_changed": sum(before[:1] != after[:1] for before, after in pairs),
        "overlap": _mean(len({*before} & {*after}) / len(before) for before, after in pairs if before),
        "models": (_versions(live[user] for user in both), _versions(replayed[user] for user in both)),
    }


def _items(slate: _Slate) -> list[str]:
    return [place.item_id for place in slate.slate]


def _versions(slates: Iterable[_Slate]) -> dict[int, int]:
    versions: dict[int, int] = {}
    for slate in slates:
        versions[slate.model_version] = versions.get(slate.model_version, 0) + 1
    return versions


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return round(sum(every) / len(every), 6) if every else 0.0


def _rewards(written: Iterable[tuple[str | None, bytes | None]]) -> dict[tuple[str, str], float]:
    """Reward of each transition's last revision, by user and id; an erasure takes the person's away."""
    found: dict[tuple[str, str], float] = {}
    decode = msgspec.json.Decoder(_Transition).decode
    for _, value in written:
        if value is None:
            continue
        one = decode(value)
        if one.transition_id:
            found[one.user_id, one.transition_id] = one.reward
        else:
            found = {key: reward for key, reward in found.items() if key[0] != one.user_id}
    return found


def _slates(written: Iterable[tuple[str | None, bytes | None]]) -> dict[str, _Slate]:
    """The last slate of each user; a null takes it away."""
    found: dict[str, _Slate] = {}
    decode = msgspec.json.Decoder(_Slate).decode
    for key, value in written:
        if value is None:
            found.pop(key or "", None)
            continue
        one = decode(value)
        if one.user_id != DEFAULT_USER:
            found[one.user_id] = one
    return found


def _live(settings: Settings, role: str) -> Iterator[tuple[str | None, bytes | None]]:
    with Reader(settings.streams, [role]) as reader:
        for _, message in reader.to_the_end():
            key = message.key()
            yield None if key is None else key.decode(errors="replace"), message.value()


class _Null(msgspec.Struct):
    """What a replay writes for a null, whose payload has no line of its own."""

    key: str | None = None
    value_base64: str | None = ""


def _lines(path: Path) -> Iterator[tuple[str | None, bytes | None]]:
    decode = msgspec.json.Decoder(_Null).decode
    with path.open("rb") as lines:
        for line in lines:
            null = decode(line)
            yield (null.key, None) if null.value_base64 is None else (None, line)


def described(found: Compared) -> list[str]:
    """For people."""
    before, after = found.mean_reward
    alone = f"{found.users_live_alone:,} live alone, {found.users_replayed_alone:,} replayed alone"
    rewards = f"{found.rewards_changed:>10,} of {found.transitions:,} transitions have another reward"
    slates = f"{found.slates_changed:>10,} of {found.slates:,} slates differ, {found.first_changed:,} in front"
    return [
        "Beside the live state:",
        f"  {found.users:>10,} users in both, {alone}",
        f"  {rewards}, of {found.users_with_changed_rewards:,} users; mean {before:.4f} live, {after:.4f} replayed",
        f"  {slates}; they share {found.overlap:.0%} of their items; {found.same_cause:,} have the same cause",
    ]

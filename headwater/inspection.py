"""`headwater inspect`: what the system knows of a user, and its newest model; read from the topics."""

from pathlib import Path
from typing import Any

import msgspec

from headwater.reading import Reader, require_broker
from headwater.settings import Settings
from model_core import records, user_state
from model_core.bandit import head
from model_core.errors import HeadwaterError, ModelError
from model_core.records import ModelManifest
from model_core.user_state import UserState
from streams.model_files import MANIFEST, WEIGHTS
from streams.models import verified
from streams.ports import USER, Due, unpack
from streams.topics import CHANGELOG, partition_for

__all__ = ["UnknownError", "described", "joined", "model", "user"]


class UnknownError(HeadwaterError):
    """What was asked for is not there."""


def user(settings: Settings, user_id: str) -> dict[str, Any]:
    """A user's record: traits, history, head, decisions, offsets.

    Raises:
        UnknownError: the changelog has no such user.
    """
    _, state = _stored(settings, user_id)
    found = {
        "user_id": user_id,
        "traits": state.traits,
        "history": [msgspec.structs.asdict(entry) for entry in state.join.history],
        "open_impressions": len(state.join.open),
        "seen_items": len(state.seen) // 8,
        "decisions": [
            {"decision_id": one.decision_id, "slate": one.item_ids, "propensities": one.propensities}
            for one in state.decisions
        ],
        "basis": state.basis,
        "offsets": dict(zip(("impressions", "clicks", "users"), state.offsets, strict=True)),
        "active_ms": state.active_ms,
        "head": None,
    }
    dimension = settings.encoder.dimension
    if len(state.head) == head.packed_bytes(dimension):
        moments = head.moments(head.unpack([state.head], dimension))
        found["head"] = {
            "item_events": len(state.ring) // user_state.RING_EVENT.itemsize,
            "mean": moments.mean[0].round(4).tolist(),
            "deviation": head.deviation(moments)[0].round(4).tolist(),
        }
    return found


def joined(settings: Settings, user_id: str) -> dict[str, Any]:
    """What of a user waits: open impressions, clicks without theirs, and when something is due.

    Raises:
        UnknownError: the changelog has no such user.
    """
    due, state = _stored(settings, user_id)
    return {
        "user_id": user_id,
        "due": {"settle_after_ms": due[0], "orphan_after_ms": due[1]},
        "open": [_shown(one) for one in state.join.open],
        "waiting": [_shown(one) for one in state.join.waiting],
        "session_ends_ms": state.join.session_ends_ms,
        "ids_remembered": len(state.join.click_ids),
    }


def _shown(struct: Any) -> dict[str, Any]:
    """A record's fields by name; bytes as text."""
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else msgspec.to_builtins(value)
        for name, value in msgspec.structs.asdict(struct).items()
        if name not in ("features", "targets")
    }


def _stored(settings: Settings, user_id: str) -> tuple[Due, UserState]:
    require_broker(settings.streams, settings.general.broker_wait_s)
    key = user_id.encode()
    with Reader(settings.streams, [CHANGELOG]) as reader:
        many = reader.partitions(CHANGELOG)
    value: bytes | None = None
    if many:
        with Reader(settings.streams, [CHANGELOG], partition=partition_for(key, many)) as reader:
            for _, message in reader.to_the_end():
                if message.key() == USER + key:
                    value = message.value()
    if value is None:
        raise UnknownError(f"no record of user {user_id!r}: never seen, or erased; see `headwater dead-letters list`")
    due, state = unpack(value)
    return due, user_state.decode(state)


def model(settings: Settings, out: Path | None) -> dict[str, Any]:
    """The newest model that verifies; writes its files to a folder where one is named.

    Raises:
        UnknownError: no model was published yet.
        ModelError: the newest one is damaged.
    """
    require_broker(settings.streams, settings.general.broker_wait_s)
    parts: dict[str, bytes] = {}
    newest: ModelManifest | None = None
    with Reader(settings.streams, ["models"]) as reader:
        for _, message in reader.to_the_end():
            key = message.key().decode(errors="replace")
            if "/" in key and message.value() is not None:
                parts[key] = message.value()
            elif message.value() is not None:
                newest = records.decode_as(ModelManifest, message.value())
    if newest is None:
        raise UnknownError("no model was published yet: start `headwater worker train`")
    if newest.parts > len(parts):
        raise ModelError(f"the newest model has {newest.parts} parts, of which {len(parts)} at most are there")
    found = [parts.get(f"{newest.name}/{newest.version}/{part}", b"") for part in range(newest.parts)]
    serving = verified(newest, found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / WEIGHTS).write_bytes(b"".join(found))
        (out / MANIFEST).write_bytes(records.encode(newest))
    described: dict[str, Any] = msgspec.to_builtins(newest)
    return described | {"discount": serving.discount, "noise_variance": serving.prior.noise_variance}


def described(found: dict[str, Any]) -> str:
    """For people."""
    return "\n".join(f"{name}: {msgspec.json.encode(value).decode()}" for name, value in found.items())

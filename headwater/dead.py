"""`headwater dead-letters`: what was refused, and again once its cause is mended."""

from collections import Counter, deque
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, Producer

from headwater.reading import Reader, require_broker
from headwater.settings import Settings
from model_core.errors import HeadwaterError
from streams.clients import confluent_config
from streams.topics import MAX_MESSAGE_BYTES

__all__ = ["DeadLetter", "DeadLetters", "described", "listed", "replayed"]

_FLUSH_S: Final = 30.0
_SHOWN: Final = 200


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A refused record: its headers, its key, and the beginning of its bytes as text."""

    reason: str
    topic: str
    partition: int
    offset: int
    error: str
    attempt: int
    key: str | None
    value: str | None


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    """What `dead-letters` holds: how many by reason, and the latest of those asked for."""

    reasons: dict[str, int]
    latest: list[DeadLetter]


def listed(settings: Settings, *, reason: str | None = None, limit: int = 20) -> DeadLetters:
    """Read `dead-letters` whole.

    Args:
        settings: of the broker.
        reason: only these among the latest.
        limit: how many of the latest.
    """
    reasons: Counter[str] = Counter()
    latest: deque[DeadLetter] = deque(maxlen=limit)
    require_broker(settings.streams, settings.general.broker_wait_s)
    with Reader(settings.streams, ["dead-letters"]) as reader:
        for _, message in reader.to_the_end():
            headers = _headers(message)
            reasons[headers["reason"]] += 1
            if reason in (None, headers["reason"]):
                latest.append(_dead_letter(headers, message))
    return DeadLetters(reasons=dict(reasons.most_common()), latest=list(latest))


def replayed(settings: Settings, *, reason: str) -> int:
    """Send dead letters of a reason to where they came from, with `attempt` one higher; how many.

    Each keeps its time in the log, so that it is not taken for a newer record of a person who was erased since.

    Raises:
        HeadwaterError: the broker did not take one.
    """
    require_broker(settings.streams, settings.general.broker_wait_s)
    config = {"enable.idempotence": True, "message.max.bytes": MAX_MESSAGE_BYTES}
    producer = Producer(confluent_config(settings.streams, **config))
    failures: list[KafkaError] = []
    count = 0
    with Reader(settings.streams, ["dead-letters"]) as reader:
        for _, message in reader.to_the_end():
            headers = _headers(message)
            if headers["reason"] != reason:
                continue
            producer.produce(
                settings.streams.topic(headers["topic"]),
                message.value(),
                message.key(),
                int(headers["partition"]),
                timestamp=message.timestamp()[1],
                headers=[("attempt", str(int(headers["attempt"]) + 1).encode())],
                on_delivery=lambda error, _: failures.append(error) if error is not None else None,
            )
            producer.poll(0)
            count += 1
    unsent = producer.flush(_FLUSH_S)
    if failures or unsent:
        raise HeadwaterError(
            f"{len(failures) + unsent} of {count} dead letters were not taken ({next(iter(failures), 'timed out')}); "
            "run it again: what was taken twice counts once"
        )
    return count


def _headers(message: Any) -> dict[str, str]:
    return {name: value.decode(errors="replace") for name, value in message.headers() or []}


def _dead_letter(headers: dict[str, str], message: Any) -> DeadLetter:
    key, value = message.key(), message.value()
    return DeadLetter(
        reason=headers["reason"],
        topic=headers["topic"],
        partition=int(headers["partition"]),
        offset=int(headers["offset"]),
        error=headers["error"],
        attempt=int(headers["attempt"]),
        key=None if key is None else key.decode(errors="replace"),
        value=None if value is None else value[:_SHOWN].decode(errors="replace"),
    )


def described(found: DeadLetters) -> str:
    """For people."""
    lines = [f"{count:>10,} {reason}" for reason, count in found.reasons.items()] or ["No dead letters."]
    for one in found.latest:
        lines.append(f"{one.topic}-{one.partition} at {one.offset}, attempt {one.attempt}: {one.reason}: {one.error}")
        lines.append(f"  {one.key}: {one.value}")
    return "\n".join(lines)

"""Whether two records with one id say the same."""

from typing import Any, Final

import msgspec
import xxhash

from model_core.records import Click, Impression

__all__ = ["content_of"]

_encoder: Final = msgspec.json.Encoder(order="sorted")


def content_of(record: Impression | Click) -> int:
    """64-bit hash of a decoded record: every known field, defaults filled in, and the unknown ones.

    Payloads that differ in the order of fields, in white space, in writing a default or in the writing of a number
    (1, 1.0) have the same content. Fields are hashed by place: a struct left to msgspec's `omit_defaults` would omit
    a default by identity alone, and so tell a default that was written from one that was not.
    """
    fields: tuple[Any, ...]
    if isinstance(record, Click):
        fields = (
            record.click_id,
            record.impression_id,
            record.user_id,
            record.item_id,
            record.event_time_ms,
            record.kind,
            record.value,
            _plain(record.extra),
        )
    else:
        fields = (
            record.impression_id,
            record.user_id,
            record.event_time_ms,
            [(shown.item_id, shown.position, shown.propensity) for shown in record.slate],
            record.propensity_kind,
            record.policy,
            record.model_version,
            record.decision_id,
            _plain(record.context),
            _plain(record.extra),
        )
    return xxhash.xxh3_64_intdigest(_encoder.encode(fields))


def _plain(value: Any) -> Any:
    """The same JSON with each whole number an int: fields without a type keep the form they were written in."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value

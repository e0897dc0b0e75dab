"""Records that must be refused, each with the reason it must be refused for; plain Python, no code of the checks.

Each kind of flaw is one function: it takes a good record of its topic and spoils it. `KINDS` lists them with the
topics they are for. What a record is refused for is what is wrong with it first in the contract's order: size, JSON,
schema (an unknown kind among it), key, time, lateness.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

Fields = dict[str, Any]

LARGEST_BYTES: Final = 100_000
HUGE_BYTES: Final = 10_000_000
LOG_MS: Final = 1_720_000_000_000
"""Time of every record in the log."""

LONG_AGO_MS: Final = 1_000_000_000_000
"""A time in the year 2001, behind every correction horizon."""

_DAY_MS: Final = 86_400_000
_DEEP: Final = (65, 100, 480, 600, 950, 1_500, 20_000)
_HUGE: Final = bytes(HUGE_BYTES)
_WRONG: Final[dict[str, tuple[Any, ...]]] = {
    "id": (5, None, True, [], {}, 1.5, "", "x" * 513),
    "time": ("soon", None, True, [], {}, 1.5, "1700000000000", 17e11),
    "slate": (None, {}, "m1", 1, [1], [{}], [None], [{"item_id": 5}], [{"item_id": "m"}, {"item_id": "m"}]),
    "object": (None, [], "x", 1, True, [["a", 1]]),
    "number": (None, "1", [], {}, True, 1e10, -1e300),
    "text": (None, 5, [], {}, True),
}
_POSITIONS: Final[tuple[Any, ...]] = (0, -1, "1", 1.5, True)
_PROPENSITIES: Final[tuple[Any, ...]] = (0, -0.1, 1.5, "x", True, [])
_SHOWN: Final[tuple[Fields, ...]] = (
    *({"item_id": "m1", "position": wrong} for wrong in _POSITIONS),
    *({"item_id": "m1", "propensity": wrong} for wrong in _PROPENSITIES),
)
_TYPES: Final[dict[str, dict[str, str]]] = {
    "impressions": {
        "impression_id": "id",
        "user_id": "id",
        "event_time_ms": "time",
        "slate": "slate",
        "context": "object",
    },
    "clicks": {
        "click_id": "id",
        "impression_id": "id",
        "user_id": "id",
        "item_id": "id",
        "event_time_ms": "time",
        "kind": "text",
        "value": "number",
    },
    "users": {"user_id": "id", "traits": "object"},
}
_REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "impressions": ("impression_id", "user_id", "event_time_ms", "slate"),
    "clicks": ("click_id", "impression_id", "user_id", "item_id", "event_time_ms"),
    "users": ("user_id",),
}


class Bad(NamedTuple):
    """A record to be refused.

    Attributes:
        kind: of the flaw.
        topic: it is for.
        key: of the record.
        value: of the record.
        reason: of its dead letter.
    """

    kind: str
    topic: str
    key: bytes | None
    value: bytes | None
    reason: str


class _Spoilt(NamedTuple):
    reason: str
    value: bytes | None
    key: bytes | str | None = "as it was"


def _encoded(fields: object) -> bytes:
    return json.dumps(fields).encode()


def _good(rng: random.Random, topic: str, user: str) -> Fields:
    """A record that nothing is wrong with, of a user and with ids that no other record has."""
    number = rng.getrandbits(48)
    if topic == "users":
        return {"user_id": user, "traits": {"age": "25", "number": number}}
    if topic == "clicks":
        ids = {"click_id": f"p{number}", "impression_id": f"p{number}", "item_id": "m1"}
        return {**ids, "user_id": user, "event_time_ms": LOG_MS - _DAY_MS}
    slate = [{"item_id": f"m{place}", "propensity": 0.5} for place in range(rng.randint(1, 6))]
    return {"impression_id": f"p{number}", "user_id": user, "event_time_ms": LOG_MS - _DAY_MS, "slate": slate}


def _cut(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    value = _encoded(good)
    return _Spoilt("not-json", value[: rng.randrange(len(value))])


def _garbage(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    value = _encoded(good)
    several = (b"\xff" + rng.randbytes(rng.randrange(200)), value + b"}", value + value, b"\xef\xbb\xbf" + value)
    return _Spoilt("not-json", rng.choice((*several, value.decode().encode("utf-16"), b"", b" ", b"\0")))


def _null(_: random.Random, __: Fields, ___: str) -> _Spoilt:
    return _Spoilt("not-json", None)


def _null_of_nobody(rng: random.Random, _: Fields, __: str) -> _Spoilt:
    return _Spoilt("key-mismatch", None, rng.choice((None, b"", b"__default__", b"u\xff", b"\xed\xa0\x80")))


def _bytes_in_text(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    """What is no UTF-8: a lone byte, an overlong form, a surrogate; in a value or in a name."""
    broken = rng.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\n", b"\0"))
    spot = rng.choice((b"%s", b'","x%s":"'))
    return _Spoilt("not-json", _encoded(good | {"note": "HERE"}).replace(b"HERE", spot % broken))


def _surrogate(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    lone = rng.choice(("\\ud800", "\\udc00", "\\udc00\\ud800", "\\ud800\\u0041", "\\ud800x"))
    return _Spoilt("not-json", _encoded(good | {"note": "HERE"}).replace(b"HERE", lone.encode()))


def _no_number(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    written = rng.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"0x10", b"01", b"+1", b"1.", b".5"))
    return _Spoilt("not-json", _encoded(good | {"number": "HERE"}).replace(b'"HERE"', written))


def _endless_number(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    digits = b"9" * rng.choice((5_000, 50_000))
    return _Spoilt("not-json", _encoded(good | {"number": "HERE"}).replace(b'"HERE"', digits))


def _large_integer(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    number = rng.choice((1, -1)) * rng.randint(2**64, 2**200)
    return _Spoilt("schema", _encoded({**good, rng.choice([*good, "number"]): number}))


def _deep(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    depth = rng.choice(_DEEP)
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = opening * depth + b"1" + closing * depth
    if len(nested) > LARGEST_BYTES // 2:
        nested = b"[" * depth
    return _Spoilt("not-json", _encoded(good | {"nested": "HERE"}).replace(b'"HERE"', nested))


def _too_large(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    value = _encoded(good | {"note": "x" * LARGEST_BYTES})
    return _Spoilt("too-large", value if rng.random() < 0.9 else bytes(LARGEST_BYTES + 1))


def _huge(_: random.Random, __: Fields, ___: str) -> _Spoilt:
    return _Spoilt("too-large", _HUGE)


def _no_object(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    return _Spoilt("schema", _encoded(rng.choice(([], [good], "text", 1, 1.5, None, True, {}))))


def _lacking(rng: random.Random, good: Fields, topic: str) -> _Spoilt:
    lacking = dict(good)
    del lacking[rng.choice(_REQUIRED[topic])]
    return _Spoilt("schema", _encoded(lacking))


def _wrong_type(rng: random.Random, good: Fields, topic: str) -> _Spoilt:
    name = rng.choice([*_TYPES[topic]])
    return _Spoilt("schema", _encoded({**good, name: rng.choice(_WRONG[_TYPES[topic][name]])}))


def _wrong_slate(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    return _Spoilt("schema", _encoded({**good, "slate": [rng.choice(_SHOWN)]}))


def _reserved(_: random.Random, good: Fields, __: str) -> _Spoilt:
    return _Spoilt("schema", _encoded({**good, "user_id": "__default__"}), b"__default__")


def _half_a_heartbeat(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    wrong: Any = rng.choice((False, 1, "yes", None, []))
    return _Spoilt("schema", _encoded({"heartbeat": wrong, "event_time_ms": good["event_time_ms"]}), None)


def _somebodys_heartbeat(_: random.Random, good: Fields, __: str) -> _Spoilt:
    return _Spoilt("key-mismatch", _encoded({"heartbeat": True, "event_time_ms": good["event_time_ms"]}))


def _half_a_session_end(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    times = {"user_id": good["user_id"], "event_time_ms": good["event_time_ms"]}
    return _Spoilt("schema", _encoded(rng.choice(({**times, "session_end": 1}, {"session_end": True}))))


def _unknown_kind(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    kind = rng.choice(("", "Click", "click ", "purchase", "\0", "кlick", "x" * 20_000))
    return _Spoilt("unknown-kind", _encoded({**good, "kind": kind, "value": 1e300}))


def _wrong_key(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    user = str(good["user_id"])
    key = rng.choice((None, b"", b"somebody", f"{user} ".encode(), b'"%s"' % user.encode(), b"\xff", b"k" * 90_000))
    return _Spoilt("key-mismatch", _encoded(good), key)


def _twice_named(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    """The last of two fields with one name counts, as in every common reader of JSON."""
    name, reason = rng.choice((('"user_id": "somebody"', "key-mismatch"), ('"user_id": 7', "schema")))
    return _Spoilt(reason, _encoded(good)[:-1] + b", " + name.encode() + b"}")


def _absurd_time(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    before = (0, -1, 1, 1_700_000_000, 946_684_799_999, -(2**63), -LOG_MS)
    ahead = (LOG_MS + _DAY_MS, LOG_MS + 10_000, 253_402_300_800_000, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
    return _Spoilt("time-out-of-range", _encoded({**good, "event_time_ms": rng.choice((*before, *ahead))}))


def _too_late(rng: random.Random, good: Fields, _: str) -> _Spoilt:
    return _Spoilt("too-late", _encoded({**good, "event_time_ms": LONG_AGO_MS + rng.randrange(_DAY_MS)}))


_EVENTS: Final = ("impressions", "clicks")
_ALL: Final = (*_EVENTS, "users")

KINDS: Final[dict[str, tuple[Callable[[random.Random, Fields, str], _Spoilt], tuple[str, ...]]]] = {
    "cut": (_cut, _ALL),
    "garbage": (_garbage, _ALL),
    "null": (_null, _EVENTS),
    "null of nobody": (_null_of_nobody, ("users",)),
    "no UTF-8": (_bytes_in_text, _ALL),
    "lone surrogate": (_surrogate, _ALL),
    "no number": (_no_number, _ALL),
    "endless number": (_endless_number, _ALL),
    "integer beyond 64 bits": (_large_integer, _ALL),
    "deep nesting": (_deep, _ALL),
    "too large": (_too_large, _ALL),
    "10 MB": (_huge, _ALL),
    "no object": (_no_object, _ALL),
    "field lacks": (_lacking, _ALL),
    "wrong type": (_wrong_type, _ALL),
    "wrong slate": (_wrong_slate, ("impressions",)),
    "reserved user": (_reserved, _ALL),
    "half a heartbeat": (_half_a_heartbeat, _EVENTS),
    "heartbeat with a key": (_somebodys_heartbeat, _EVENTS),
    "half a session end": (_half_a_session_end, ("impressions",)),
    "unknown kind": (_unknown_kind, ("clicks",)),
    "wrong key": (_wrong_key, _ALL),
    "name twice": (_twice_named, _ALL),
    "absurd time": (_absurd_time, _EVENTS),
    "too late": (_too_late, _EVENTS),
}
"""By name: what spoils a record, and the topics that it is for."""

_NAMES: Final = [*KINDS]
_RARE: Final = {"too large": 0.05, "10 MB": 0.05, "endless number": 0.2, "deep nesting": 0.5}
_WEIGHTS: Final = [_RARE.get(name, 1.0) for name in KINDS]


def generate(seed: int, users: int) -> Iterator[Bad]:
    """Bad records without an end, of every kind; those with large payloads are rarer."""
    rng = random.Random(seed)
    while True:
        for kind in rng.choices(_NAMES, _WEIGHTS, k=1_000):
            spoil, for_topics = KINDS[kind]
            topic = rng.choice(for_topics)
            user = f"u{rng.randrange(users)}"
            spoilt = spoil(rng, _good(rng, topic, user), topic)
            key = user.encode() if isinstance(spoilt.key, str) else spoilt.key
            yield Bad(kind, topic, key, spoilt.value, spoilt.reason)

"""Records are decoded strictly: what is wrong has a reason and a sentence, what is unknown is carried over."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core import records
from model_core.errors import DecodeError, Reason
from model_core.records import Click, Heartbeat, Impression, Item, SessionEnd, SlateItem, User

TIME_MS = 1_700_000_000_000
IMPRESSION: dict[str, Any] = {
    "impression_id": "i1",
    "user_id": "u1",
    "event_time_ms": TIME_MS,
    "slate": [{"item_id": "m1", "position": 1, "propensity": 0.12}, {"item_id": "m2"}],
}
CLICK: dict[str, Any] = {
    "click_id": "c1",
    "impression_id": "i1",
    "user_id": "u1",
    "item_id": "m1",
    "event_time_ms": TIME_MS,
}
EXAMPLES: dict[records.Source, dict[str, Any]] = {
    "impressions": IMPRESSION,
    "clicks": CLICK,
    "items": {"item_id": "m1"},
    "users": {"user_id": "u1"},
}
REQUIRED = [
    *(("impressions", name) for name in IMPRESSION),
    *(("clicks", name) for name in CLICK),
    ("items", "item_id"),
    ("users", "user_id"),
]


def encoded(fields: object) -> bytes:
    return json.dumps(fields).encode()


def refusal(source: records.Source, value: bytes | None, **options: int) -> tuple[Reason, str]:
    with pytest.raises(DecodeError) as caught:
        records.decode(source, value, **options)
    return caught.value.reason, str(caught.value)


def test_an_impression_with_only_required_fields_takes_the_defaults() -> None:
    """Left-out fields have the contract's defaults; left-out positions are places in the slate, from 1."""
    assert records.decode("impressions", encoded(IMPRESSION)) == Impression(
        impression_id="i1",
        user_id="u1",
        event_time_ms=TIME_MS,
        slate=[SlateItem("m1", 1, 0.12), SlateItem("m2", 2, None)],
        propensity_kind="conditional",
    )


def test_a_click_is_a_click_of_value_one_unless_it_says_otherwise() -> None:
    """`kind` defaults to `click` and `value` to 1.0."""
    record = records.decode("clicks", encoded(CLICK))
    assert isinstance(record, Click)
    assert (record.kind, record.value) == ("click", 1.0)


@pytest.mark.parametrize("source", ["impressions", "clicks"])
def test_a_heartbeat_is_known_on_both_topics(source: records.Source) -> None:
    """A heartbeat moves event time on impressions and on clicks."""
    assert records.decode(source, encoded({"heartbeat": True, "event_time_ms": TIME_MS})) == Heartbeat(
        heartbeat=True, event_time_ms=TIME_MS
    )


def test_a_session_end_is_known_on_impressions_alone() -> None:
    """A session end on clicks is a click that lacks its fields."""
    value = encoded({"session_end": True, "user_id": "u1", "event_time_ms": TIME_MS})
    assert records.decode("impressions", value) == SessionEnd(session_end=True, user_id="u1", event_time_ms=TIME_MS)
    assert refusal("clicks", value)[0] == "schema"


def test_items_and_users_are_decoded_with_all_their_fields() -> None:
    """The catalogue and the traits keep what a feed gave."""
    item = {"item_id": "m1", "title": "t", "text": "x", "categories": ["a"], "features": {"price": 9.5}}
    assert records.decode("items", encoded({**item, "vectors": {"image": [0.5]}, "available": False})) == Item(
        item_id="m1",
        title="t",
        text="x",
        categories=["a"],
        features={"price": 9.5},
        vectors={"image": [0.5]},
        available=False,
    )
    traits = {"age": "25", "tags": ["a", {"b": None}]}
    assert records.decode("users", encoded({"user_id": "u1", "traits": traits})) == User(user_id="u1", traits=traits)


@pytest.mark.parametrize(("source", "name"), REQUIRED)
def test_a_missing_field_is_refused_and_named(source: records.Source, name: str) -> None:
    """Each required field that is missing is `schema`, and the sentence names it."""
    fields = {field: value for field, value in EXAMPLES[source].items() if field != name}
    reason, error = refusal(source, encoded(fields))
    assert reason == "schema"
    assert f"`{name}`" in error


@pytest.mark.parametrize(("source", "name"), REQUIRED)
@pytest.mark.parametrize("wrong", [None, True, [1], {"a": 1}])
def test_a_field_of_the_wrong_type_is_refused(source: records.Source, name: str, wrong: object) -> None:
    """No value is coerced: a wrong type is `schema`, and the sentence says where."""
    reason, error = refusal(source, encoded({**EXAMPLES[source], name: wrong}))
    assert reason == "schema"
    assert f"$.{name}" in error


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"event_time_ms": "1700000000000"}, "$.event_time_ms"),
        ({"event_time_ms": 1.5}, "$.event_time_ms"),
        ({"user_id": ""}, "$.user_id"),
        ({"user_id": "u" * 513}, "$.user_id"),
        ({"propensity_kind": "joint"}, "$.propensity_kind"),
        ({"context": ["phone"]}, "$.context"),
        ({"slate": [{"position": 1}]}, "$.slate[0]"),
        ({"slate": [{"item_id": "m1", "position": 0}]}, "$.slate[0].position"),
        ({"slate": [{"item_id": "m1", "propensity": 0.0}]}, "$.slate[0].propensity"),
        ({"slate": [{"item_id": "m1", "propensity": 1.01}]}, "$.slate[0].propensity"),
        ({"slate": [{"item_id": "m1"}, "m2"]}, "$.slate[1]"),
    ],
)
def test_an_impression_out_of_bounds_is_refused(change: dict[str, Any], where: str) -> None:
    """Types, lengths and ranges are checked to the bottom of the slate, and the sentence says where."""
    reason, error = refusal("impressions", encoded({**IMPRESSION, **change}))
    assert reason == "schema"
    assert where in error


def test_an_item_twice_in_a_slate_is_refused() -> None:
    """A slate in which an item stands twice is `schema`, whatever its positions."""
    slate = [{"item_id": "m1", "position": 1}, {"item_id": "m1", "position": 2}]
    reason, error = refusal("impressions", encoded({**IMPRESSION, "slate": slate}))
    assert reason == "schema"
    assert "twice" in error


@pytest.mark.parametrize("value", ["[]", "1", '"text"', "true", "null"])
@pytest.mark.parametrize("source", EXAMPLES)
def test_json_that_is_no_object_is_refused_as_schema(source: records.Source, value: str) -> None:
    """A payload is one JSON object."""
    assert refusal(source, value.encode())[0] == "schema"


@pytest.mark.parametrize("value", [b"", b"{", b"{}{}", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', None])
@pytest.mark.parametrize("source", ["impressions", "clicks"])
def test_bytes_that_are_not_json_are_refused(source: records.Source, value: bytes | None) -> None:
    """Truncated, doubled, foreign and absurdly nested payloads are `not-json`."""
    assert refusal(source, value)[0] == "not-json"


def test_size_is_checked_before_anything_else() -> None:
    """A payload over the limit is `too-large` though it is not even JSON; one at the limit is looked at."""
    assert refusal("clicks", b"{" * 101, max_bytes=100)[0] == "too-large"
    assert refusal("clicks", b"{" * 100, max_bytes=100)[0] == "not-json"


@pytest.mark.parametrize("source", EXAMPLES)
def test_nesting_ends_at_a_depth_of_its_own(source: records.Source) -> None:
    """Not where the stack happens to end: that depends on the caller, and what passes here is walked again later."""
    for opening, inside, closing in ((b"[", b"1", b"]"), (b'{"a":', b"[]", b"}")):
        most = records.MAX_DEPTH - 1 - (inside == b"[]")

        def nested(depth: int, opening: bytes = opening, inside: bytes = inside, closing: bytes = closing) -> bytes:
            deep = opening * depth + inside + closing * depth
            return encoded({**EXAMPLES[source], "colour": "HERE"}).replace(b'"HERE"', deep)

        records.encode(records.decode(source, nested(most)))
        for depth in (most + 1, 490, 950):
            assert refusal(source, nested(depth))[0] == "not-json"


@pytest.mark.parametrize("source", EXAMPLES)
def test_the_reserved_user_is_nobody(source: records.Source) -> None:
    """Nobody's id is the reserved key under which everybody's default slate stands."""
    if source != "items":
        assert refusal(source, encoded({**EXAMPLES[source], "user_id": records.DEFAULT_USER}))[0] == "schema"


@pytest.mark.parametrize("source", EXAMPLES)
def test_unknown_fields_are_carried_over(source: records.Source) -> None:
    """What a feed adds is neither refused nor lost: decoding and encoding brings it back."""
    fields = {**EXAMPLES[source], "colour": "red", "nested": {"a": [1, None]}}
    record = records.decode(source, encoded(fields))
    assert getattr(record, "extra") == {"colour": "red", "nested": {"a": [1, None]}}  # noqa: B009 - not all have it
    assert {**json.loads(records.encode(record)), **fields} == json.loads(records.encode(record)) | fields
    assert records.decode(source, records.encode(record)) == record


@pytest.mark.parametrize("source", EXAMPLES)
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
@pytest.mark.parametrize("nest", [lambda n: n, lambda n: [{"a": [n]}]], ids=["top", "deep"])
def test_an_integer_beyond_64_bits_is_refused_wherever_it_stands(
    source: records.Source, number: int, nest: Callable[[int], Any]
) -> None:
    """A number that the stored state cannot hold is `schema`, also in a field that would be carried over."""
    reason, error = refusal(source, encoded({**EXAMPLES[source], "colour": nest(number)}))
    assert reason == "schema"
    assert "64 bits" in error


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
def test_the_largest_integers_are_taken(number: int) -> None:
    """The bounds themselves can be stored, so they are no fault."""
    record = records.decode("users", encoded({"user_id": "u1", "traits": {"n": number}}))
    assert record == User(user_id="u1", traits={"n": number})


@pytest.mark.parametrize("source", EXAMPLES)
def test_the_decoders_own_name_for_unknown_fields_is_no_way_in(source: records.Source) -> None:
    """A payload cannot set `extra` under the name that the decoder uses inside."""
    plain = records.decode(source, encoded(EXAMPLES[source]))
    assert records.decode(source, encoded({**EXAMPLES[source], "__extra__": {"reward": 1e9}})) == plain


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(source=st.sampled_from(sorted(EXAMPLES)), value=st.binary(max_size=200) | json_values.map(encoded))
def test_whatever_comes_is_decoded_or_refused(source: records.Source, value: bytes) -> None:
    """No payload raises anything but `DecodeError`, and its reason is one of the first three checks'."""
    try:
        records.decode(source, value)
    except DecodeError as error:
        reason = error.reason
    else:
        return
    assert reason in ("too-large", "not-json", "schema")


@given(
    source=st.sampled_from(sorted(EXAMPLES)),
    extra=st.dictionaries(st.text(max_size=12), json_values, max_size=4),
    name=st.integers(0, 4),
    value=json_values,
)
def test_what_is_decoded_survives_a_round_trip(
    source: records.Source, extra: dict[str, Any], name: int, value: Any
) -> None:
    """A decoded record, encoded and decoded again, is the same record."""
    fields = {**extra, **EXAMPLES[source]}
    fields[list(fields)[name % len(fields)]] = value
    try:
        record = records.decode(source, encoded(fields))
    except DecodeError:
        return
    assert records.decode(source, records.encode(record)) == record


def test_what_headwater_wrote_reads_back() -> None:
    """Records that Headwater writes itself, such as a manifest, are decoded as strictly."""
    manifest = records.ModelManifest(
        name="headwater",
        version=3,
        parts=1,
        bytes=10,
        hash="ab",
        tensors={"w": records.Tensor(shape=[2, 3], dtype="F32")},
        features=3,
    )
    assert records.decode_as(records.ModelManifest, records.encode(manifest)) == manifest
    with pytest.raises(DecodeError, match="version"):
        records.decode_as(records.ModelManifest, records.encode(manifest).replace(b"3", b'"3"', 1))


def test_dead_letter_headers_are_text_in_field_order() -> None:
    """Each header is UTF-8 text, under the names of the contract."""
    headers = records.DeadLetterHeaders(reason="schema", topic="clicks", partition=2, offset=41, error="naïve")
    assert headers.pairs() == [
        ("reason", b"schema"),
        ("topic", b"clicks"),
        ("partition", b"2"),
        ("offset", b"41"),
        ("error", "naïve".encode()),
        ("schema_version", b"1"),
        ("attempt", b"1"),
    ]

"""The generated schemas and pages say what the record types say, and what the decoder does."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

import pytest
from jsonschema import Draft202012Validator
from msgspec import Struct

from model_core import records, schemas
from model_core.errors import DecodeError, Reason

DOCS = Path(__file__).parents[2] / "docs"
IMPRESSION = {"impression_id": "i1", "user_id": "u1", "event_time_ms": 1_700_000_000_000, "slate": [{"item_id": "m1"}]}
CLICK = {"click_id": "c1", "impression_id": "i1", "user_id": "u1", "item_id": "m1", "event_time_ms": 1_700_000_000_000}


def generator() -> ModuleType:
    spec = spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def refusal(topic: records.Source, fields: dict[str, Any]) -> Reason | None:
    try:
        records.decode(topic, json.dumps(fields).encode())
    except DecodeError as error:
        return error.reason
    return None


def test_docs_are_what_the_types_generate() -> None:
    """`make schemas` has been run since the last change of a record type."""
    generated = generator().files()
    present = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "events").iterdir()}
    assert present == generated


@pytest.mark.parametrize("topic", schemas.schemas())
def test_schema_is_valid_json_schema(topic: str) -> None:
    """Each schema holds against the dialect that it names."""
    Draft202012Validator.check_schema(schemas.schemas()[topic])


@pytest.mark.parametrize("name", [name for name in records.__all__ if isinstance(getattr(records, name), type)])
def test_every_field_has_its_meaning_in_one_place(name: str) -> None:
    """A record type's docstring names each of its fields, and none that it lacks."""
    kind = cast("type[Struct]", getattr(records, name))
    summary, about = schemas.meanings(kind)
    assert summary
    assert set(about) == set(kind.__struct_fields__)
    assert all(about.values())


def test_every_record_type_is_on_a_topic() -> None:
    """No public record type is left out of the pages."""
    public = {name for name in records.__all__ if isinstance(getattr(records, name), type)}
    described = {name for schema in schemas.schemas().values() for name in schema["$defs"]}
    assert public == described


def test_page_names_every_reason_of_a_dead_letter() -> None:
    """Whoever reads the dead letters finds each reason on the page."""
    assert all(f"`{reason}`" in schemas.page() for reason in get_args(Reason))


@pytest.mark.parametrize(
    ("topic", "fields"),
    [
        ("impressions", IMPRESSION),
        ("impressions", {**IMPRESSION, "colour": "red"}),
        ("impressions", {**IMPRESSION, "slate": []}),
        ("impressions", {**IMPRESSION, "slate": [{"item_id": "m1", "position": 0}]}),
        ("impressions", {**IMPRESSION, "slate": [{"item_id": "m1", "propensity": 0}]}),
        ("impressions", {**IMPRESSION, "slate": [{"item_id": "m1", "propensity": 1.0}]}),
        ("impressions", {**IMPRESSION, "slate": [{"item_id": "m1", "propensity": 1.5}]}),
        ("impressions", {**IMPRESSION, "propensity_kind": "joint"}),
        ("impressions", {**IMPRESSION, "user_id": ""}),
        ("impressions", {**IMPRESSION, "user_id": "u" * 513}),
        ("impressions", {**IMPRESSION, "event_time_ms": "2024-01-01"}),
        ("impressions", {**IMPRESSION, "context": None}),
        ("impressions", {name: value for name, value in IMPRESSION.items() if name != "slate"}),
        ("impressions", {"heartbeat": True, "event_time_ms": 1_700_000_000_000}),
        ("impressions", {"heartbeat": False, "event_time_ms": 1_700_000_000_000}),
        ("impressions", {"session_end": True, "user_id": "u1", "event_time_ms": 1_700_000_000_000}),
        ("impressions", {"session_end": True, "event_time_ms": 1_700_000_000_000}),
        ("clicks", CLICK),
        ("clicks", {**CLICK, "value": 2}),
        ("clicks", {**CLICK, "value": "much"}),
        ("clicks", {**CLICK, "kind": None}),
        ("clicks", {"session_end": True, "user_id": "u1", "event_time_ms": 1_700_000_000_000}),
        ("items", {"item_id": "m1", "features": {"price": 9.5}, "vectors": {"image": [0.1]}}),
        ("items", {"item_id": "m1", "features": {"price": "9.5"}}),
        ("items", {"item_id": "m1", "available": 1}),
        ("users", {"user_id": "u1", "traits": {"age": "25"}}),
        ("users", {"traits": {"age": "25"}}),
    ],
)
def test_schema_and_decoder_accept_the_same(topic: records.Source, fields: dict[str, Any]) -> None:
    """What the published schema accepts is decoded, and what it refuses becomes a dead letter."""
    accepted = Draft202012Validator(schemas.schemas()[topic]).is_valid(fields)
    assert refusal(topic, fields) == (None if accepted else "schema")

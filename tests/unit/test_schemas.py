"""The generated schemas and pages say what the record types say, and what the decoder does."""

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

import pytest
from jsonschema import Draft202012Validator
from msgspec import Struct

from headwater.settings import Settings, load
from model_core import records, schemas
from model_core.errors import DecodeError, Reason

ROOT = Path(__file__).parents[2]
IMPRESSION = {"impression_id": "i1", "user_id": "u1", "event_time_ms": 1_700_000_000_000, "slate": [{"item_id": "m1"}]}
CLICK = {"click_id": "c1", "impression_id": "i1", "user_id": "u1", "item_id": "m1", "event_time_ms": 1_700_000_000_000}


def generator() -> ModuleType:
    spec = spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
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


def test_generated_files_are_what_the_code_generates() -> None:
    """`make schemas` has been run since the last change of a record type or of a default."""
    generated = generator().files()
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "events").iterdir()}
    assert present == {name for name in generated if name.startswith("docs/events/")}
    for name, content in generated.items():
        assert (ROOT / name).read_text(encoding="utf-8") == content, name


def test_the_example_settings_are_the_defaults(tmp_path: Path) -> None:
    """With every # taken away, the example file is read as settings and changes none of them."""
    lines = (ROOT / "headwater.example.toml").read_text(encoding="utf-8").splitlines()
    every = tmp_path / "headwater.toml"
    every.write_text("\n".join(line.removeprefix("#") for line in lines if re.match(r"#\w+ = |\[", line)))
    loaded = load(file=every, environment={})
    assert loaded.settings == Settings()
    unset = {name for name, source in loaded.sources.items() if source == "default"}
    assert all(f"# {name.split('.')[1]} is unset" in lines for name in unset - {"trainer.failpoints"})


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

"""JSON Schemas and the page of all topics, generated from the record types of `records.py`.

The types and their docstrings are the one place where a field's type, meaning and unit are written; what stands in
`docs/events/` is made from them (`make schemas`), and a test keeps it fresh.
"""

import json
import re
import textwrap
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import Struct

from model_core import records
from model_core.errors import Reason

__all__ = ["TOPICS", "TopicRecords", "meanings", "page", "schemas"]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE: Final = "#/$defs/{name}"
_HIDDEN: Final = "__extra__"
"""Where the decoder keeps unknown fields; on the wire they stand beside the known ones."""


class TopicRecords(NamedTuple):
    """What one topic carries.

    Attributes:
        topic: its name without the prefix.
        key: of its records, in words.
        types: of its values; a value matches one of them.
        about: what it is for, and what a null value means.
    """

    topic: str
    key: str
    types: tuple[type[Struct], ...]
    about: str


TOPICS: Final[tuple[TopicRecords, ...]] = (
    TopicRecords(
        "impressions",
        "`user_id`; a heartbeat's is null",
        (records.Impression, records.SessionEnd, records.Heartbeat),
        "What was shown. Written by feeds.",
    ),
    TopicRecords(
        "clicks",
        "`user_id`; a heartbeat's is null",
        (records.Click, records.Heartbeat),
        "What was done with it. Written by feeds.",
    ),
    TopicRecords("items", "`item_id`, compacted", (records.Item,), "The catalogue. A null value removes the item."),
    TopicRecords("users", "`user_id`, compacted", (records.User,), "Traits of people. A null value erases the person."),
    TopicRecords(
        "recommendations",
        "`user_id`, compacted; `__default__` for a user nobody has seen",
        (records.Recommendation,),
        "The freshest slate for each user. A null value: the person was erased.",
    ),
    TopicRecords(
        "transitions",
        "`user_id`",
        (records.Transition, records.Erased),
        "One for each impression, in revisions of which the last one stands; what the trainer learns from.",
    ),
    TopicRecords(
        "models",
        "`name`; its parts, safetensors bytes, under `name/version/part`; compacted",
        (records.ModelManifest,),
        "Versioned weights. The manifest is written after all parts.",
    ),
    TopicRecords(
        "model-versions",
        "`name/version`; its parts, safetensors bytes, under `name/version/part`; not compacted",
        (records.ModelManifest,),
        "The same again, each version with a manifest of its own: kept until no step that used it can be repeated.",
    ),
    TopicRecords(
        "evaluations",
        "policy, compacted",
        (records.Evaluation,),
        "Off-policy estimates of what a policy is worth.",
    ),
    TopicRecords(
        "steps", "the stream task's partition", (records.Step,), "One for each transaction: what a replay repeats."
    ),
    TopicRecords("erasures", "HMAC of the user's id", (records.Erasure,), "Receipts of erasures."),
    TopicRecords(
        "dead-letters",
        "the original key",
        (records.DeadLetterHeaders,),
        "What was refused: the original key and bytes. The schema is of the headers, whose values are UTF-8 text.",
    ),
)
"""Every public topic, in the order of the flow."""


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (2020-12) of each topic's values, by topic; a value matches one of the topic's record types."""
    return {topic.topic: _schema(topic) for topic in TOPICS}


def _schema(topic: TopicRecords) -> dict[str, Any]:
    references, definitions = msgspec.json.schema_components(topic.types, ref_template=_REFERENCE)
    types = _reachable(topic.types)
    definitions = {name: _described(schema, types[name]) for name, schema in definitions.items()}
    root = {"$ref": references[0]["$ref"]} if len(references) == 1 else {"anyOf": list(references)}
    return {
        "$schema": _DIALECT,
        "title": topic.topic,
        "description": topic.about,
        "x-schema-version": records.SCHEMA_VERSION,
        **root,
        "$defs": definitions,
    }


def _reachable(types: tuple[type[Struct], ...]) -> dict[str, type[Struct]]:
    """The record types and all those nested in them, by name."""
    everything = [value for value in vars(records).values() if isinstance(value, type) and issubclass(value, Struct)]
    return {kind.__name__: kind for kind in (*everything, *types)}


def _described(schema: dict[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """The schema with the summary as its description, and each field's meaning beside its type."""
    summary, about = meanings(kind)
    described = {**schema, "description": summary}
    if "prefixItems" in schema:
        described["prefixItems"] = [
            {"title": name, **part, "description": about[name]}
            for name, part in zip(kind.__struct_fields__, schema["prefixItems"], strict=True)
        ]
    else:
        described["properties"] = {
            name: {**field, "description": about[name]}
            for name, field in schema["properties"].items()
            if name != _HIDDEN
        }
    return described


def meanings(kind: type[Struct]) -> tuple[str, dict[str, str]]:
    """Summary of a record type, and the meaning of each field by name, from its docstring."""
    head, _, tail = (kind.__doc__ or "").partition("Attributes:")
    about: dict[str, str] = {}
    for line in re.split(r"\n(?=\S)", textwrap.dedent(tail.strip("\n")).strip()):
        name, _, meaning = line.partition(": ")
        about[name.strip()] = " ".join(meaning.split()).rstrip(".")
    return " ".join(head.split()), about


def page() -> str:
    """The page of all topics and records, in Markdown."""
    definitions = {name: schema for topic in TOPICS for name, schema in _schema(topic)["$defs"].items()}
    return "\n".join([_HEAD, _topics_table(), *(_record_section(*named) for named in definitions.items()), _reasons()])


_HEAD: Final = f"""# Topics and records

Schema version {records.SCHEMA_VERSION}. Made from the types in `model_core/records.py` by `make schemas`.

Keys and payloads are UTF-8; a payload is one JSON object. Times are milliseconds of event time since the Unix epoch.
Ids are unique for their user. Unknown fields are carried over, not refused. A topic's name gets the configured prefix
in front.
"""


def _topics_table() -> str:
    rows = ["| topic | key | value | about |", "|---|---|---|---|"]
    for topic in TOPICS:
        values = ", ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in topic.types)
        schema = f"[schema]({topic.topic}.schema.json)"
        rows.append(f"| `{topic.topic}` | {topic.key} | {values}; {schema} | {topic.about} |")
    return "\n".join(rows) + "\n"


def _record_section(name: str, schema: dict[str, Any]) -> str:
    if "properties" in schema:
        fields, required = schema["properties"], set(schema["required"])
    else:
        fields = {part["title"]: part for part in schema["prefixItems"]}
        required = set(fields)
    defaults = {field: "required" if field in required else _default(part) for field, part in fields.items()}
    rows = [
        f"| `{field}` | {_words(part)} | {defaults[field]} | {part['description']} |" for field, part in fields.items()
    ]
    table = "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])
    on = ", ".join(f"`{topic.topic}`" for topic in TOPICS if name in {kind.__name__ for kind in topic.types})
    return f"## {name}\n\n{f'On {on}. ' if on else ''}{schema['description']}\n\n{table}\n"


def _default(schema: dict[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "empty"


def _words(schema: dict[str, Any]) -> str:
    """A field's JSON Schema as a reader says it."""
    match schema:
        case {"$ref": reference}:
            name = reference.rsplit("/", 1)[1]
            words = f"[{name}](#{name.lower()})"
        case {"anyOf": parts}:
            words = " or ".join(_words(part) for part in parts)
        case {"enum": values}:
            words = " or ".join(f"`{json.dumps(value)}`" for value in values)
        case {"prefixItems": parts}:
            words = f"[{', '.join(_words(part) for part in parts)}]"
        case {"type": "array"}:
            words = f"array of {_words(schema['items'])}"
        case {"additionalProperties": dict(values)}:
            words = f"object of {_words(values)}"
        case _:
            words = schema.get("type", "any") + _bounds(schema)
    return words


def _bounds(schema: dict[str, Any]) -> str:
    names = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "minLength": "length ≥", "maxLength": "length ≤"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in names.items() if name in schema]
    return f" ({', '.join(bounds)})" if bounds else ""


def _reasons() -> str:
    reasons = "\n".join(f"- `{reason}`" for reason in get_args(Reason))
    return f"## Reasons of dead letters\n\nThe header `reason` is one of:\n\n{reasons}\n"

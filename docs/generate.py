"""Writes what is made from the code: `docs/events/` from the record types, the example settings from their defaults."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from headwater.settings import Settings
from model_core import schemas

ROOT: Final = Path(__file__).parents[1]
_FOR_TESTS: Final = "for tests only"
_WIDTH: Final = 118


def files() -> dict[str, str]:
    """Content of every generated file, by its path from the root."""
    contents = {
        f"docs/events/{topic}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for topic, schema in schemas.schemas().items()
    }
    return {**contents, "docs/events/README.md": schemas.page(), "headwater.example.toml": example()}


def example() -> str:
    """`headwater.example.toml`: every setting with its meaning, unit and default."""
    settings = Settings()
    tables = [_table(table.name, getattr(settings, table.name)) for table in dataclasses.fields(settings)]
    return "\n".join([_EXAMPLE_HEAD, *tables])


_EXAMPLE_HEAD: Final = """\
# Every setting with its default: copy this file to headwater.toml, and take the # from the lines you change.
# Made from the code by `make schemas`. The environment overrules the file: HEADWATER_JOIN_SESSION_GAP_MS for
# session_gap_ms in [join], and so on; HEADWATER_BROKER is short for HEADWATER_STREAMS_BROKERS.
"""


def _table(name: str, settings: Any) -> str:
    summary, about = schemas.meanings(type(settings))
    lines = [*_comment(summary), f"[{name}]"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) or about[field.name].startswith(_FOR_TESTS):
            continue
        lines += ["", *_comment(about[field.name])]
        lines.append(f"# {field.name} is unset" if value is None else f"#{field.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:_}" if isinstance(value, int) else repr(value)
        case tuple() | list():
            return f"[{', '.join(_toml(part) for part in value)}]"
        case Mapping():
            return f"{{ {', '.join(f'{name} = {_toml(part)}' for name, part in value.items())} }}"
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def main() -> None:
    """Write them, and remove schemas of topics that are no more."""
    contents = files()
    for name, content in contents.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(content, encoding="utf-8")
    for path in (ROOT / "docs" / "events").glob("*.schema.json"):
        if path.relative_to(ROOT).as_posix() not in contents:
            path.unlink()


if __name__ == "__main__":
    main()

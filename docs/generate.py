"""Writes `docs/events/` anew from the record types: `make schemas`."""

import json
from pathlib import Path

from model_core import schemas

EVENTS = Path(__file__).parent / "events"


def files() -> dict[str, str]:
    """Content of every generated file of `docs/events/`, by name."""
    contents = {
        f"{topic}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for topic, schema in schemas.schemas().items()
    }
    return {**contents, "README.md": schemas.page()}


def main() -> None:
    """Write them, and remove schemas of topics that are no more."""
    EVENTS.mkdir(exist_ok=True)
    contents = files()
    for name, content in contents.items():
        (EVENTS / name).write_text(content, encoding="utf-8")
    for path in EVENTS.glob("*.schema.json"):
        if path.name not in contents:
            path.unlink()


if __name__ == "__main__":
    main()

"""What advisories say of the locked dependencies: `python -m tests.audit`, a part of `make check`.

Asks the OSV database, whose service takes names and versions and answers with the ids of advisories. Where it does not
answer, nothing was audited, and the last line says so; the exit code is 0, since a check must not need the network.
With `--require` that is a failure too. An advisory that does not concern us stands in `ACCEPTED` with its reason.
"""

import argparse
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = ("requirements.lock", "requirements-installer.lock")
SERVICE: Final = "https://api.osv.dev/v1/querybatch"
ACCEPTED: Final[Mapping[str, str]] = {}
"""Advisories that do not concern this project, by id, each with the reason."""

_PINNED: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_ASKED_AT_ONCE: Final = 500
_PATIENCE_S: Final = 10.0


class AuditUnavailableError(Exception):
    """The service did not answer, or not in a way that says anything."""


def locked(folder: Path = ROOT) -> set[tuple[str, str]]:
    """Name and version of everything that the locks pin."""
    return {pin for name in LOCKS for pin in _PINNED.findall((folder / name).read_text())}


def advisories(pins: Iterable[tuple[str, str]], service: str = SERVICE) -> dict[tuple[str, str], list[str]]:
    """Ids of advisories, by name and version, of those that have any.

    Raises:
        AuditUnavailableError: nothing can be said.
    """
    wanted = sorted(pins)
    found: dict[tuple[str, str], list[str]] = {}
    for first in range(0, len(wanted), _ASKED_AT_ONCE):
        asked = wanted[first : first + _ASKED_AT_ONCE]
        for pin, answer in zip(asked, _ask(asked, service), strict=True):
            if ids := [str(one["id"]) for one in answer.get("vulns", ())]:
                found[pin] = ids
    return found


def _ask(pins: Sequence[tuple[str, str]], service: str) -> list[dict[str, list[dict[str, str]]]]:
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins]
    request = urllib.request.Request(  # noqa: S310 - the scheme is ours
        service, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:  # noqa: S310 - as above
            results: list[dict[str, list[dict[str, str]]]] = json.load(answer)["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditUnavailableError(f"{service}: {error}") from error
    if len(results) != len(pins):
        raise AuditUnavailableError(f"{service}: {len(results)} answers to {len(pins)} questions")
    return results


def main(arguments: Sequence[str] | None = None, *, service: str = SERVICE) -> int:
    """Audit the locks; 1 where an advisory stands, or where `--require` and the service is away."""
    parser = argparse.ArgumentParser(description="Known advisories against the locked dependencies.")
    parser.add_argument("--require", action="store_true", help="fail where the service does not answer")
    required = parser.parse_args(arguments).require
    pins = locked()
    try:
        found = advisories(pins, service)
    except AuditUnavailableError as error:
        print(f"dependency audit: SKIPPED, nothing was audited: no answer from {error}")  # noqa: T201 - its output
        return int(required)
    standing = {pin: kept for pin, ids in found.items() if (kept := [one for one in ids if one not in ACCEPTED])}
    for (name, version), ids in standing.items():
        print(f"{name} {version}: {', '.join(ids)}")  # noqa: T201 - its output
    print(f"dependency audit: {len(pins)} locked versions, {len(standing)} with advisories")  # noqa: T201 - its output
    return int(bool(standing))


if __name__ == "__main__":
    raise SystemExit(main())

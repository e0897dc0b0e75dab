"""Pages point to what exists, name what is there, and give nothing of a machine away."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final, get_args

import pytest

from model_core.errors import Reason
from streams.metrics import Metrics
from streams.training.metrics import TrainerMetrics

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TRACKED: Final = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
).stdout.splitlines()


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Each relative link names a file of the tree, and its anchor a heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), target
        if anchor and aim.suffix == ".md":
            assert anchor in anchors(aim), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_make_targets_that_exist(page: Path) -> None:
    """Each `make TARGET` on a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))) <= targets


def test_every_dependency_has_its_reason() -> None:
    """Each dependency of `pyproject.toml` is named in the decision about dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    reasons = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text(encoding="utf-8")
    missing = [name for name in wanted if f"`{re.split(r'[^A-Za-z0-9_-]', name)[0]}`" not in reasons]
    assert not missing


def test_every_lint_exception_has_its_reason() -> None:
    """A rule that ruff is told to leave out has a comment beside it that says why."""
    table = (
        (ROOT / "pyproject.toml")
        .read_text(encoding="utf-8")
        .split("[tool.ruff.lint]")[1]
        .split("[tool.importlinter]")[0]
    )
    rules = [line for line in table.splitlines() if re.search(r'"[A-Z]+[0-9]+"', line)]
    assert rules
    assert all("#" in line for line in rules)


@pytest.mark.parametrize("suffix", [".md", ".py", ".toml", ".yml", ".lock", "Makefile", "Dockerfile", "run"])
def test_nothing_of_a_machine_is_written_down(suffix: str) -> None:
    """No home or work folder, and no package registry's host, stands in a tracked file."""
    places = re.compile(r"/(?:root|home)/|/work/|files\.pythonhosted|pypi\.org|repo1?\.maven|registry\.npmjs")
    guilty = [
        name
        for name in TRACKED
        if name.endswith(suffix)
        and (ROOT / name).is_file()
        and name != Path(__file__).relative_to(ROOT).as_posix()
        and places.search((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not guilty


def test_every_metric_is_explained() -> None:
    """The operations page names each metric that a worker or the trainer shows."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    families = [*Metrics().registry.collect(), *TrainerMetrics().registry.collect()]
    names = [f"{family.name}_total" if family.type == "counter" else family.name for family in families]
    assert len(names) > 20
    assert not [name for name in names if f"`{name}" not in page]


def test_every_reason_of_a_dead_letter_has_its_remedy() -> None:
    """The operations page says of each reason what to do."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert not [reason for reason in get_args(Reason) if f"`{reason}`" not in page]

"""What is shipped, what it needs, and what an import of it brings."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import pytest

ROOT: Final = Path(__file__).parents[2]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED: Final = {"headwater", "streams", "model_core", "producers"}
LOCKS: Final = ["requirements.lock", "requirements-installer.lock", "deploy/train.lock", "deploy/serve.lock"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from a copy of the tree by the backend that the lock names, without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*SHIPPED, "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, text=True)
    return ZipFile(tree / built.stdout.splitlines()[-1])


def test_the_wheel_ships_the_four_packages_and_nothing_else(wheel: ZipFile) -> None:
    """Tests, benchmarks and docs stay at home."""
    version = PYPROJECT["project"]["version"]
    assert {name.split("/")[0] for name in wheel.namelist()} == {*SHIPPED, f"headwater-{version}.dist-info"}


def test_the_wheel_ships_every_module_and_its_types(wheel: ZipFile) -> None:
    """No module of the four packages is left out, and each package says that it is typed."""
    sources = {
        path.relative_to(ROOT).as_posix()
        for name in SHIPPED
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(wheel.namelist())
    assert {f"{name}/py.typed" for name in SHIPPED} <= sources


def test_the_wheel_says_its_licence_and_its_command(wheel: ZipFile) -> None:
    """Apache-2.0 with its text, and one command, `headwater`."""
    names = {name.rsplit("/", 1)[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "License-Expression: Apache-2.0" in wheel.read(names["METADATA"]).decode()
    assert wheel.read(names["LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert wheel.read(names["entry_points.txt"]).decode().split() == [
        "[console_scripts]",
        "headwater",
        "=",
        "headwater.cli:main",
    ]


@pytest.mark.parametrize("path", LOCKS)
def test_a_lock_has_hashes_and_no_addresses(path: str) -> None:
    """Whoever installs chooses where from; what is installed is fixed to the byte."""
    lock = (ROOT / path).read_text(encoding="utf-8")
    assert "://" not in lock
    pins = re.findall(r"^[a-z][^\n]*==[^\n]*", lock, re.MULTILINE)
    assert pins
    assert all(pin.endswith("\\") for pin in pins)
    assert len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)) >= len(pins)


def test_the_lock_covers_every_dependency() -> None:
    """Each dependency of the project and of its extras is in the lock."""
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower() for requirement in wanted}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert names <= set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))


@pytest.mark.parametrize("module", ["headwater.cli", "headwater.workers", "streams.app"])
def test_serving_never_imports_torch(module: str) -> None:
    """A worker that serves starts without torch, which the serving image does not have."""
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("requirement", PYPROJECT["project"]["dependencies"])
def test_every_dependency_to_run_is_imported(requirement: str) -> None:
    """What is installed with the wheel is used by what the wheel ships."""
    name = re.split(r"[^A-Za-z0-9_-]", requirement)[0]
    module = {"faust-streaming": "faust", "kafka-python": "kafka"}.get(name, name.replace("-", "_"))
    sources = [path.read_text(encoding="utf-8") for part in SHIPPED for path in (ROOT / part).rglob("*.py")]
    assert any(re.search(rf"^\s*(import|from) {module}\b", source, re.MULTILINE) for source in sources)

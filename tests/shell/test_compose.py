"""`docker-compose.yml` and `Dockerfile` say what is true of this tree, checked without Docker."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft7Validator

from headwater.settings import load

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
OURS: Final = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def locked(path: str) -> set[str]:
    return set(re.findall(r"^([a-z][^ ]*==[^ ]*)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))


def test_compose_file_holds_against_the_compose_specification() -> None:
    """The schema is the one that the package check-jsonschema carries."""
    package = distribution("check-jsonschema")
    schema = package.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    Draft7Validator(json.loads(Path(str(schema)).read_text(encoding="utf-8"))).validate(COMPOSE)


@pytest.mark.parametrize("name", OURS)
def test_a_services_command_is_one_that_headwater_knows(name: str) -> None:
    """`headwater COMMAND --help` explains each service's command, so it exists with that spelling."""
    from headwater.cli import cli  # noqa: PLC0415 - the rest of this file needs no command line

    result = CliRunner().invoke(cli, [*OURS[name]["command"], "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", OURS)
def test_a_services_command_is_one_that_the_tests_run(name: str) -> None:
    """Some test starts the same command, word for word."""
    words = r"[\"'],\s*[\"']".join(map(re.escape, OURS[name]["command"]))
    sources = [path for part in ("shell", "broker") for path in (ROOT / "tests" / part).rglob("*.py")]
    assert any(re.search(rf"[\"']{words}[\"']", path.read_text(encoding="utf-8")) for path in sources)


@pytest.mark.parametrize("name", OURS)
def test_a_services_environment_is_made_of_settings(name: str) -> None:
    """Each variable is a setting that exists and takes the value."""
    variables = OURS[name]["environment"]
    loaded = load(environment=variables)
    assert loaded.settings.streams.brokers == ("kafka:19092",)
    assert {source for source in loaded.sources.values() if source != "default"} == set(variables)


def test_topics_exist_before_anything_reads_them() -> None:
    """The broker is healthy first, then the topics are declared, then the rest starts."""
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    for name in OURS.keys() - {"topics"}:
        assert OURS[name]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


def test_a_service_is_stopped_no_sooner_than_a_worker_needs() -> None:
    """Docker waits longer than the 10 s within which a worker ends by itself."""
    assert {service["stop_grace_period"] for service in OURS.values()} == {"15s"}


def test_every_volume_that_is_named_is_declared_and_used() -> None:
    """State outlives a container: broker and trainer on named volumes, a worker on one of its own."""
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert named - {"/var/lib/headwater"} == set(COMPOSE["volumes"])
    assert OURS["personalize"]["volumes"] == ["/var/lib/headwater"]


def test_only_the_gpu_profile_asks_for_a_gpu() -> None:
    """Without `--profile gpu` nothing needs an NVIDIA driver."""
    asking = {name for name, service in SERVICES.items() if "deploy" in service}
    assert asking == {"train-gpu"}
    assert SERVICES["train-gpu"]["profiles"] == ["gpu"]
    (device,) = SERVICES["train-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_broker_is_the_version_that_the_tests_start() -> None:
    """The image and the jars of the `broker` tests are one version of Apache Kafka."""
    (version,) = re.findall(r"^apache/kafka:([0-9.]+)$", SERVICES["kafka"]["image"])
    poms = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "broker").rglob("*") if path.is_file()]
    assert any(version in pom for pom in poms if "kafka_2.13" in pom)


def test_the_health_check_asks_where_the_worker_answers() -> None:
    """The image's probe and the settings in the compose file name one port."""
    ports = {service["environment"]["HEADWATER_STREAMS_WEB_PORT"] for service in OURS.values()}
    assert re.findall(r"127\.0\.0\.1:([0-9]+)/healthz", DOCKERFILE) == list(ports)


def test_images_run_as_nobody_in_particular() -> None:
    """The last stage leaves root behind before its entry point."""
    stage = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert stage.index("\nUSER headwater") < stage.index("\nENTRYPOINT")


def test_images_are_built_from_files_that_are_there_and_not_ignored() -> None:
    """Each COPY from the tree names a tracked path that `.dockerignore` lets through."""
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source


def test_images_install_the_versions_that_the_tests_ran_with() -> None:
    """The images' locks are parts of the tests' lock; the serving one has neither torch nor CUDA."""
    everything, train, serve = map(locked, ("requirements.lock", "deploy/train.lock", "deploy/serve.lock"))
    assert serve < train < everything
    assert not [name for name in serve if re.match("torch|triton|nvidia|cuda", name)]
    arguments = {name: service["build"]["args"]["LOCK"] for name, service in OURS.items()}
    assert {name for name, lock in arguments.items() if lock == "deploy/train.lock"} == {"train", "train-gpu"}

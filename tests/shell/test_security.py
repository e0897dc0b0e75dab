"""What keeps others out: no code in what is read, secrets that are not shown, ports on loopback, an audit."""

import ast
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headwater import cli
from headwater.settings import load
from model_core.errors import SettingsError
from streams.settings import StreamSettings
from streams.web.server import WebServer
from tests import audit

ROOT = Path(__file__).resolve().parents[2]
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SECRET = "open sesame, please"  # noqa: S105 - opens nothing


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("model_core", "streams", "producers", "headwater", "benchmarks", "docs", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path, ast.parse(path.read_text())


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def unsafe(tree: ast.Module) -> Iterator[str]:
    """What runs, or may run, what it reads."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"imports {name}" for name in names if name.split(".")[0] in RUNS_WHAT_IT_READS)
        if not isinstance(node, ast.Call):
            continue
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if called(node) == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if "allow_pickle" in given or called(node) in ("eval", "exec", "yaml.load", "torch.save"):
            yield ast.unparse(node)


def test_nothing_that_is_read_can_run() -> None:
    """No pickle, no torch.load that would unpickle, no eval, in any module of the repository."""
    found = {f"{path.relative_to(ROOT)}: {what}" for path, tree in sources() for what in unsafe(tree)}
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    """A search that finds nothing would hold of any code."""
    assert list(unsafe(ast.parse(code)))


def test_http_listens_on_loopback_unless_told_otherwise() -> None:
    """Metrics name partitions and lags, and have no password."""
    web = WebServer(StreamSettings().web_host, 0, CollectorRegistry(), list, list)
    web.start()
    try:
        assert web.address[0] == "127.0.0.1"
    finally:
        web.stop()
    assert load(environment={}).settings.streams.web_host == "127.0.0.1"
    assert StreamSettings().web_port is None, "and not at all unless asked to"


@pytest.mark.parametrize("name", ["password", "key_password", "erasure_secret"])
def test_a_secret_may_stand_in_a_file(tmp_path: Path, name: str) -> None:
    """As orchestrators mount them; the newline that editors leave is none of it."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    variable = f"HEADWATER_SECURITY_{name.upper()}"
    loaded = load(environment={f"{variable}_FILE": str(tmp_path / "secret")})
    assert getattr(loaded.settings.streams.security, name) == SECRET
    assert loaded.sources[f"security.{name}"] == f"security.{name}_file"
    with pytest.raises(SettingsError, match="expected one of them"):
        load(environment={f"{variable}_FILE": str(tmp_path / "secret"), variable: SECRET})
    with pytest.raises(SettingsError, match="expected a text file"):
        load(environment={f"{variable}_FILE": str(tmp_path / "elsewhere")})


def test_the_command_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect config`, for people and as JSON, has *** in the place of each, and where it came from."""
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("HEADWATER_SECURITY_PASSWORD_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("HEADWATER_SECURITY_KEY_PASSWORD", SECRET)
    monkeypatch.setenv("HEADWATER_SECURITY_ERASURE_SECRET", SECRET)
    said = ""
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", "config", *more])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert SECRET not in said
    shown = json.loads(said)
    assert shown["security.password"] == {"value": "***", "source": "security.password_file"}
    assert shown["security.key_password"]["value"] == shown["security.erasure_secret"]["value"] == "***"


@contextmanager
def advisory_service(vulnerable: dict[str, str], status: int = 200) -> Iterator[str]:
    """A service as OSV's, which knows of these packages; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            results: list[dict[str, Any]] = [
                {"vulns": [{"id": vulnerable[name]}]} if (name := one["package"]["name"]) in vulnerable else {}
                for one in queries
            ]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"results": results}).encode())

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_advisory_against_a_locked_version_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    """It names package, version and advisory; without any, all is well."""
    with advisory_service({"numpy": "PYSEC-0000-1"}) as service:
        assert audit.main([], service=service) == 1
    assert "PYSEC-0000-1" in capsys.readouterr().out
    with advisory_service({}) as service:
        assert audit.main([], service=service) == 0
    pins = dict(audit.locked())
    assert f"{len(audit.locked())} locked versions, 0 with advisories" in capsys.readouterr().out
    assert {"numpy", "torch", "faust-streaming", "uv"} <= pins.keys()


def test_an_audit_without_its_service_says_that_it_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """A check does not fail for lack of network, and does not claim what it has not done."""
    with advisory_service({}, status=503) as service:
        assert audit.main([], service=service) == 0
        assert "SKIPPED, nothing was audited" in capsys.readouterr().out
        assert audit.main(["--require"], service=service) == 1


def test_every_locked_package_has_a_hash() -> None:
    """So that an index cannot hand out something else under the same version."""
    for lock in ("requirements.lock", "requirements-installer.lock", "deploy/serve.lock", "deploy/train.lock"):
        entries = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
        pinned = [line for line in entries if "==" in line and not line.startswith("#")]
        assert pinned
        assert not [line for line in pinned if "--hash=sha256:" not in line]

"""`/metrics`, `/healthz` and `/readyz`: what a probe and a scraper see."""

import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator

import pytest

from streams.metrics import Metrics
from streams.web.server import WebServer


class Worker:
    """Reasons against its health and its readiness, and its metrics."""

    def __init__(self) -> None:
        self.unwell: list[str] = []
        self.unready: list[str] = ["partitions are not open yet"]
        self.metrics = Metrics(now_s=lambda: 1_000.0)
        self.server = WebServer("127.0.0.1", 0, self.metrics.registry, lambda: self.unwell, lambda: self.unready)

    def get(self, path: str) -> tuple[int, str]:
        host, port = self.server.address
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    made.server.start()
    yield made
    made.server.stop()


def test_readiness_and_health_say_why_not(worker: Worker) -> None:
    """503 with the reasons, 200 once there is none; a query changes nothing."""
    assert worker.get("/readyz") == (503, '{"ok": false, "reasons": ["partitions are not open yet"]}')
    worker.unready = []
    assert worker.get("/readyz?verbose") == (200, '{"ok": true, "reasons": []}')
    assert worker.get("/healthz")[0] == 200
    worker.unwell = ["the event loop has not run for 20 s"]
    assert json.loads(worker.get("/healthz")[1])["reasons"] == worker.unwell


def test_metrics_have_each_named_outcome_and_the_model(worker: Worker) -> None:
    """Outcomes by name, model version and age, in the format of Prometheus."""
    worker.metrics.count(Counter(joined=3, orphan=1))
    worker.metrics.model(7)
    status, text = worker.get("/metrics")
    assert status == 200
    assert 'headwater_outcomes_total{outcome="joined"} 3.0' in text
    assert "headwater_model_version 7.0" in text
    assert "headwater_model_age_seconds 0.0" in text


def test_another_path_names_those_there_are(worker: Worker) -> None:
    """404 with the list."""
    status, text = worker.get("/")
    assert status == 404
    assert json.loads(text)["paths"] == ["/metrics", "/healthz", "/readyz"]

"""`/metrics`, `/healthz` and `/readyz`, from a thread: they answer even where the event loop does not."""

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["WebServer"]

_JSON: Final = "application/json"


class WebServer:
    """A small HTTP server on its own thread.

    Args:
        host: address to listen on.
        port: 0 for a free one.
        registry: what `/metrics` shows.
        healthy: reasons why the worker should be restarted; empty where it is well.
        ready: reasons why it does not serve yet; empty where it does.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        healthy: Callable[[], list[str]],
        ready: Callable[[], list[str]],
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = _answer(self.path, registry, healthy, ready)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Requests of probes are no news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.address: tuple[str, int] = (str(self._server.server_address[0]), self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)

    def start(self) -> None:
        """Answer from here on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(
    path: str,
    registry: CollectorRegistry,
    healthy: Callable[[], list[str]],
    ready: Callable[[], list[str]],
) -> tuple[HTTPStatus, str, bytes]:
    match path.partition("?")[0]:
        case "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)
        case "/healthz":
            return _state(healthy())
        case "/readyz":
            return _state(ready())
        case _:
            return HTTPStatus.NOT_FOUND, _JSON, b'{"paths": ["/metrics", "/healthz", "/readyz"]}'


def _state(reasons: list[str]) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return status, _JSON, json.dumps({"ok": not reasons, "reasons": reasons}).encode()

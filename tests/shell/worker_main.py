"""Entry of a worker subprocess in tests: `python -m tests.shell.worker_main '{"brokers": [...], ...}'`."""

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import structlog

from headwater.logs import Unfailing
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core.config import JoinSettings
from streams import failpoints
from streams.app import run_worker
from streams.ports import Engine
from streams.settings import StreamSettings
from tests.shell.counting_engine import CountingEngine


class Catalogue(dict[str, Any]):
    def set(self, item: Any) -> None:
        self[item.item_id] = item

    def remove(self, item_id: str) -> None:
        self.pop(item_id, None)


def main() -> int:
    """Run a worker with the counting engine, or with the real one where `join` gives its rules."""
    options = json.loads(sys.argv[1])
    failpoints.arm(options.pop("failpoints", ""))
    state_bytes = options.pop("state_bytes", 0)
    join = options.pop("join", None)
    if file_bytes := options.pop("file_bytes", 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))  # As if the disk were full from there on.
    options["brokers"] = tuple(options["brokers"])
    options["data_dir"] = Path(options["data_dir"])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(Unfailing(sys.stderr)),  # type: ignore[arg-type]  # all that it uses
    )
    engine: Engine = CountingEngine(state_bytes=state_bytes, catalogue=Catalogue())
    if join is not None:
        engine = engine_of(Settings(join=JoinSettings(**join)))
    return run_worker(StreamSettings(**options), lambda: engine, configuration="test", seed=0)


if __name__ == "__main__":
    raise SystemExit(main())

"""Entry of a trainer subprocess in tests: `python train_main.py '{"stream": {...}, "trainer": {...}}'`."""

import json
import logging
import sys
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model_core.config import EncoderSettings, LearnerSettings
from streams import failpoints
from streams.settings import StreamSettings
from streams.trainer import TrainerSettings, run_trainer
from streams.training.process import CHILD
from streams.web.server import WebServer
from tests.shell.train_helpers import FAKE_CHILD


def ready(web: WebServer | None) -> None:
    """Say where the web server listens."""
    sys.stdout.write(json.dumps({"ready": None if web is None else web.address[1]}) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the trainer role, around the quick learner unless told otherwise."""
    options = json.loads(sys.argv[1])
    failpoints.arm(options.get("failpoints", ""))
    stream = options["stream"]
    settings = StreamSettings(**{**stream, "brokers": tuple(stream["brokers"]), "data_dir": Path(stream["data_dir"])})
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    return run_trainer(
        settings,
        LearnerSettings(**options.get("learner", {"batch_size": 8})),
        EncoderSettings(),
        TrainerSettings(**options["trainer"]),
        ready=ready,
        command=CHILD if options.get("real") else FAKE_CHILD,
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""The child process with the real learner, small: what it publishes can be served, and a kill changes no bit."""

import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from model_core import model_file
from model_core.config import EncoderSettings, LearnerSettings
from streams.training.messages import Start
from streams.training.metrics import TrainerMetrics
from streams.training.process import TrainerDied
from streams.training.service import TrainerService
from tests.shell.train_helpers import MemorySink, records, start, until

ITEMS = [(f"m{number}", b'{"item_id":"m%d","title":"film %d"}' % (number, number)) for number in range(5)]


def begin(directory: Path, failpoints: str = "") -> Start:
    """A small real learner: a step for every 8 transitions, a model at the 16th and at every 40th."""
    small = start(
        directory,
        device="cpu",
        min_transitions=16,
        steps_per_round=1,
        replay_ratio=1.0,
        publish_every_transitions=40,
        stop_timeout_s=60.0,
        failpoints=failpoints,
    )
    return msgspec.structs.replace(
        small,
        learner=LearnerSettings(batch_size=8, buffer_size=100, candidates=4, negatives=4, slate_size=2),
        encoder=EncoderSettings(dimension=12, hidden=8, embedding=8, id_rows=64, token_rows=64),
    )


async def learn(start_from: Start, first: int, last: int) -> tuple[MemorySink, CollectorRegistry]:
    """Consume transitions, wait until they are, stop; raises what the child died of."""
    sink, registry = MemorySink(), CollectorRegistry()
    trainer = TrainerService(start_from, sink, TrainerMetrics(registry))
    await trainer.start()
    try:
        await trainer.set_items(ITEMS)
        await trainer.add(0, records(first, last))
        failed = asyncio.create_task(trainer.failed())
        await until(lambda: failed.done() or trainer.in_flight_bytes == 0, 60)
        failed.cancel()
        assert await trainer.stop()
    finally:
        with contextlib.suppress(TrainerDied):
            await trainer.stop()
    return sink, registry


def test_real_models_serve_and_a_kill_within_a_checkpoint_changes_no_bit(tmp_path: Path) -> None:
    """The last model of a killed and resumed run has the hash of the undisturbed run's."""
    whole, registry = asyncio.run(learn(begin(tmp_path / "whole"), 0, 80))
    for manifest, joined in whole.models:
        model = model_file.unpack(manifest, [joined])
        assert (model.version, model.trained_transitions > 0) == (manifest.version, True)
    assert [manifest.version for manifest, _ in whole.models] == [1, 2, 3]
    for metric in ("loss", "td_error", "q_spread", "buffer_size", "examples_per_s"):
        assert registry.get_sample_value(f"headwater_trainer_{metric}") is not None

    asyncio.run(learn(begin(tmp_path / "killed"), 0, 30))
    with pytest.raises(TrainerDied, match="SIGKILL"):
        asyncio.run(learn(begin(tmp_path / "killed", "checkpoint-half=kill"), 30, 50))
    resumed, _ = asyncio.run(learn(begin(tmp_path / "killed"), 30, 80))
    assert resumed.models[-1][0].hash == whole.models[-1][0].hash
    assert resumed.offsets == [{0: 80}]


def test_the_parent_never_imports_torch() -> None:
    """Torch is the child's alone: the role's own modules do without."""
    code = "import sys, streams.trainer; raise SystemExit('torch' in sys.modules)"
    root = Path(__file__).parents[2]

    async def run() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root)
        return await process.wait()

    assert asyncio.run(run()) == 0

"""The child process with the real learner, small: what it publishes can be served, and a kill changes no bit."""

import asyncio
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from model_core import model_file
from model_core.config import Algorithm, EncoderSettings, LearnerSettings
from model_core.records import ModelManifest, Transition, decode_as, encode
from streams.training.checkpoint import CheckpointStore
from streams.training.learner import PackingLearner
from streams.training.loop import TrainableLearner, TrainingLoop
from streams.training.messages import FromChild, Items, Model, Progress, Ready, Start, Transitions
from streams.training.metrics import TrainerMetrics
from streams.training.process import TrainerDied
from streams.training.service import TrainerService
from tests.shell.train_helpers import MemorySink, erased, records, start, transition, until

ITEMS: list[tuple[str, bytes | None]] = [
    (f"m{number}", b'{"item_id":"m%d","title":"film %d"}' % (number, number)) for number in range(5)
]


def begin(directory: Path, **trainer: Any) -> Start:
    """A small real learner: a step for every 8 transitions, a model at the 16th and at every 40th."""
    small = start(
        directory,
        device="cpu",
        min_transitions=16,
        steps_per_round=1,
        replay_ratio=1.0,
        publish_every_transitions=40,
        **trainer,
    )
    return msgspec.structs.replace(
        small,
        learner=LearnerSettings(batch_size=8, buffer_size=100, candidates=4, negatives=4, slate_size=2),
        encoder=EncoderSettings(dimension=12, hidden=8, embedding=8, id_rows=64, token_rows=64),
    )


def loop_of(begin_with: Start) -> tuple[TrainingLoop, Ready, list[FromChild]]:
    """A real learner's loop in this process, opened, and what it will emit."""
    emitted: list[FromChild] = []
    learner = PackingLearner(begin_with.learner, begin_with.encoder, device="cpu", seed=0)
    store = CheckpointStore(Path(begin_with.checkpoint_dir))
    loop = TrainingLoop(begin_with, cast("TrainableLearner", learner), store, emitted.append)
    return loop, loop.open(), emitted


def consume(loop: TrainingLoop, first: int, last: int) -> None:
    """Items, then transitions."""
    loop.handle(Items(ITEMS))
    rows = records(first, last)
    loop.handle(Transitions(0, [offset for offset, _ in rows], [value for _, value in rows]))
    loop.close()


def models(emitted: list[FromChild]) -> list[tuple[ModelManifest, list[bytes]]]:
    """The models among the messages."""
    found = [message for message in emitted if isinstance(message, Model)]
    return [(decode_as(ModelManifest, message.manifest), message.parts) for message in found]


async def killed_child(begin_with: Start, registry: CollectorRegistry) -> None:
    """Two frames, a checkpoint as often as can be; raises what the child died of."""
    trainer = TrainerService(begin_with, MemorySink(), TrainerMetrics(registry))
    await trainer.start()
    try:
        await trainer.set_items(ITEMS)
        await trainer.add(0, records(0, 30))
        await until(lambda: bool(CheckpointStore(Path(begin_with.checkpoint_dir)).paths()), 60)
        await trainer.add(0, records(30, 50))
        await asyncio.wait_for(trainer.failed(), 60)
    finally:
        with contextlib.suppress(TrainerDied):
            await trainer.stop()


def test_real_models_serve_and_a_kill_within_a_checkpoint_changes_no_bit(tmp_path: Path) -> None:
    """The last model of a killed and resumed run has the hash of the undisturbed run's."""
    whole, _, emitted = loop_of(begin(tmp_path / "whole"))
    consume(whole, 0, 80)
    expected = models(emitted)
    assert [manifest.version for manifest, _ in expected] == [1, 2, 3]
    for manifest, parts in expected:
        assert model_file.unpack(manifest, parts).trained_transitions > 0

    registry = CollectorRegistry()
    dies = begin(tmp_path / "killed", checkpoint_interval_s=1e-9, failpoints="checkpoint-half=kill:3")
    with pytest.raises(TrainerDied, match="SIGKILL"):
        asyncio.run(killed_child(dies, registry))

    resumed, ready, emitted = loop_of(begin(tmp_path / "killed"))
    assert 0 < ready.offsets[0] < 50
    consume(resumed, ready.offsets[0], 80)
    assert models(emitted)[-1][0].hash == expected[-1][0].hash


@pytest.mark.parametrize("algorithm", ["sarsa", "reinforce", "a2c", "ppo"])
def test_every_learner_trains_in_the_loop_and_goes_on_from_its_checkpoint(algorithm: Algorithm, tmp_path: Path) -> None:
    """The last model of a run that was closed and opened again is the undisturbed one's; what is left out is told."""

    def named(directory: Path) -> Start:
        begun = begin(directory)
        return msgspec.structs.replace(begun, learner=replace(begun.learner, algorithm=algorithm))

    whole, _, emitted = loop_of(named(tmp_path / "whole"))
    consume(whole, 0, 80)
    expected = models(emitted)
    assert [manifest.version for manifest, _ in expected] == [1, 2, 3]
    assert model_file.unpack(*expected[-1]).trained_transitions > 0
    first, _, _ = loop_of(named(tmp_path / "parts"))
    consume(first, 0, 50)
    resumed, ready, emitted = loop_of(named(tmp_path / "parts"))
    consume(resumed, ready.offsets[0], 80)
    assert models(emitted)[-1][0].hash == expected[-1][0].hash

    unknown = decode_as(Transition, transition(90))
    unknown = msgspec.structs.replace(
        unknown, slate=[msgspec.structs.replace(item, propensity=None) for item in unknown.slate]
    )
    resumed.handle(Transitions(0, [80], [encode(unknown)]))
    resumed.close()
    reported = [message for message in emitted if isinstance(message, Progress)][-1].outcomes
    assert reported.get("left-out-propensity-unknown", 0) == (0 if algorithm == "sarsa" else 1)


def test_the_next_checkpoint_is_without_an_erased_user(tmp_path: Path) -> None:
    """The bytes of the file had the person before, and have nothing of the person after."""
    store = CheckpointStore(Path(begin(tmp_path).checkpoint_dir))
    first, _, _ = loop_of(begin(tmp_path))
    first.handle(Transitions(0, [0, 1], [transition(0, "someone-to-erase"), transition(1, "stays")]))
    first.close()
    assert b"someone-to-erase" in store.paths()[0].read_bytes()
    resumed, ready, _ = loop_of(begin(tmp_path))
    assert ready.offsets[0] == 2
    resumed.handle(Transitions(0, [2], [erased("someone-to-erase")]))
    resumed.close()
    newest = store.paths()[0].read_bytes()
    assert b"someone-to-erase" not in newest
    assert b"stays" in newest


def test_the_parent_never_imports_torch() -> None:
    """Torch is the child's alone: the role's own modules do without."""
    code = "import sys, streams.trainer; raise SystemExit('torch' in sys.modules)"
    root = Path(__file__).parents[2]

    async def run() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root)
        return await process.wait()

    assert asyncio.run(run()) == 0

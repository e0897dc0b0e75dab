"""The trainer service with a real child process around a quick learner."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from streams.training.checkpoint import CheckpointStore
from streams.training.messages import Ready, Start
from streams.training.metrics import TrainerMetrics
from streams.training.process import TrainerDied
from streams.training.service import TrainerService
from tests.shell.train_child import POISON, SLOW
from tests.shell.train_helpers import FAKE_CHILD, MemorySink, erased, records, start, transition, until


@asynccontextmanager
async def service(
    begin: Start, sink: MemorySink, command: Sequence[str] = FAKE_CHILD
) -> AsyncIterator[tuple[TrainerService, Ready, CollectorRegistry]]:
    """A started service, whose child is surely gone afterwards."""
    registry = CollectorRegistry()
    trainer = TrainerService(begin, sink, TrainerMetrics(registry), command=command)
    ready = await trainer.start()
    try:
        yield trainer, ready, registry
    finally:
        with contextlib.suppress(TrainerDied):
            await trainer.stop()
        assert not alive(trainer.pid)


def alive(pid: int | None) -> bool:
    """Whether a process runs (one that waits to be reaped does not)."""
    if pid is None:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def weights(sink: MemorySink) -> list[str]:
    """What the published models hash to."""
    return [manifest.hash for manifest, _ in sink.models]


async def consumed(trainer: TrainerService) -> None:
    """Wait until the child has consumed all it was given, or raise what it died of."""
    failed = asyncio.create_task(trainer.failed())
    await until(lambda: failed.done() or trainer.in_flight_bytes == 0)
    if failed.done():
        failed.result()
    failed.cancel()


async def run(begin: Start, sink: MemorySink, rows: Sequence[tuple[int, bytes | None]]) -> None:
    """Consume records and stop, or raise what the child died of."""
    async with service(begin, sink) as (trainer, _, _):
        await trainer.add(0, rows)
        await consumed(trainer)
        await trainer.stop()


async def undisturbed(directory: Path, count: int) -> list[str]:
    """The models of a run that nothing interrupts."""
    sink = MemorySink()
    async with service(start(directory), sink) as (trainer, _, _):
        await trainer.add(0, records(0, count))
        await until(lambda: len(sink.models) == 1 + count // 50)
    return weights(sink)


def test_models_and_offsets_come_out_of_transitions(tmp_path: Path) -> None:
    """Records in, whole models out; the offsets are committed only with the checkpoint, at the end."""

    async def scenario() -> None:
        sink = MemorySink()
        async with service(start(tmp_path), sink) as (trainer, ready, registry):
            assert (ready.offsets, ready.version) == ({}, 0)
            await trainer.set_items([("m1", b'{"item_id":"m1"}')])
            await trainer.add(0, records(0, 60))
            await trainer.add(2, records(0, 60))
            await until(lambda: len(sink.models) == 3)
            assert sink.offsets == []
            assert await trainer.stop()
            assert sink.offsets == [{0: 60, 2: 60}]
            assert [manifest.version for manifest, _ in sink.models] == [1, 2, 3]
            assert registry.get_sample_value("headwater_trainer_model_version") == 3
            assert registry.get_sample_value("headwater_trainer_transitions") == 120
            settled = {"outcome": "settled"}
            assert registry.get_sample_value("headwater_trainer_records_total", settled) == 120
            assert registry.get_sample_value("headwater_trainer_in_flight_bytes") == 0

    asyncio.run(scenario())


POINTS = [
    "checkpoint-before",
    "checkpoint-half",
    "checkpoint-half=kill:2",
    "checkpoint-written",
    "checkpoint-renamed",
    "checkpoint-after",
    "trainer-round=kill:9",
    "trainer-model=kill:2",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_resumed_run_makes_the_same_models(tmp_path: Path, point: str) -> None:
    """A kill -9 within a checkpoint or a round: what was checkpointed stands, the rest is learned again."""

    async def scenario() -> None:
        expected = await undisturbed(tmp_path / "whole", 150)
        directory = tmp_path / "killed"
        first = MemorySink()
        await run(start(directory), first, records(0, 30))
        armed = point if "=" in point else f"{point}=kill"
        sink = MemorySink()
        with pytest.raises(TrainerDied, match="SIGKILL"):
            await run(start(directory, failpoints=armed), sink, records(30, 120))
        resumed = MemorySink()
        async with service(start(directory), resumed) as (trainer, ready, _):
            resumed_at = ready.offsets[0]
            assert resumed_at in (30, 120)
            assert ready.refused == []
            await trainer.add(0, records(resumed_at, 150))
            await until(lambda: weights(resumed)[-1:] == expected[-1:])
        made = weights(first) + weights(sink) + weights(resumed)
        assert set(made) == set(expected)

    asyncio.run(scenario())


def test_a_corrupt_checkpoint_is_refused_and_the_one_before_goes_on_to_the_same_model(
    tmp_path: Path,
) -> None:
    """A flipped byte in the newest file costs only the time to learn again."""

    async def scenario() -> None:
        expected = await undisturbed(tmp_path / "whole", 100)
        directory = tmp_path / "flipped"
        for first, last in ((0, 30), (30, 70)):
            await run(start(directory), MemorySink(), records(first, last))
        newest = CheckpointStore(directory).paths()[0]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
        sink = MemorySink()
        async with service(start(directory), sink) as (trainer, ready, _):
            assert ready.offsets == {0: 30}
            assert newest.name in ready.refused[0]
            await trainer.add(0, records(30, 100))
            await until(lambda: weights(sink)[-1:] == expected[-1:])

    asyncio.run(scenario())


def test_an_error_of_the_learner_ends_the_trainer_with_that_error(tmp_path: Path) -> None:
    """The child's exception is what `failed` raises."""

    async def scenario() -> None:
        async with service(start(tmp_path), MemorySink()) as (trainer, _, _):
            await trainer.add(0, [(0, transition(0, POISON))])
            with pytest.raises(TrainerDied, match="ModelError: poisoned"):
                await asyncio.wait_for(trainer.failed(), 10)

    asyncio.run(scenario())


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What it wrote to stderr is part of the error."""

    async def scenario() -> None:
        command = (sys.executable, "-c", "raise SystemExit('no such device')")
        with pytest.raises(TrainerDied, match=r"exit status 1 \| no such device"):
            async with service(start(tmp_path), MemorySink(), command):
                pass

    asyncio.run(scenario())


def test_a_broker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Publication is tried again until it succeeds, and nothing is lost."""

    async def scenario() -> None:
        sink = MemorySink(away=1)
        async with service(start(tmp_path), sink) as (trainer, _, _):
            await trainer.add(0, records(0, 30))
            await until(lambda: len(sink.models) == 1)

    asyncio.run(scenario())


def test_input_waits_while_the_child_is_busy(tmp_path: Path) -> None:
    """No more than the limit is in flight: the next batch is taken when the child has consumed."""

    async def scenario() -> None:
        async with service(start(tmp_path, in_flight_bytes=1), MemorySink()) as (trainer, _, registry):
            await trainer.add(0, [(0, transition(0, SLOW))])
            waiting = asyncio.create_task(trainer.add(0, [(1, transition(1))]))
            await asyncio.sleep(0)
            assert not waiting.done()
            assert (registry.get_sample_value("headwater_trainer_in_flight_bytes") or 0) > 0
            await asyncio.wait_for(waiting, 10)

    asyncio.run(scenario())


def test_a_stop_does_not_wait_for_the_backlog(tmp_path: Path) -> None:
    """Told to stop with much in flight, the child checkpoints where it is and ends in time."""

    async def scenario() -> None:
        sink = MemorySink()
        async with service(start(tmp_path), sink) as (trainer, _, _):
            await trainer.add(0, [(number, transition(number, SLOW)) for number in range(100)])
            began = time.monotonic()
            assert await trainer.stop()
            assert time.monotonic() - began < 5
        assert len(sink.offsets) <= 1
        assert all(offsets[0] < 10 for offsets in sink.offsets)

    asyncio.run(scenario())


def test_a_child_that_hangs_is_killed_and_the_stop_says_so(tmp_path: Path) -> None:
    """A child stopped by the system does not hold up the end."""

    async def scenario() -> None:
        async with service(start(tmp_path, stop_timeout_s=0.3), MemorySink()) as (trainer, _, _):
            await trainer.add(0, records(0, 5))
            os.kill(trainer.pid or 0, signal.SIGSTOP)
            assert not await trainer.stop()

    asyncio.run(scenario())


def test_an_erasure_reaches_the_next_model(tmp_path: Path) -> None:
    """The fake model names its buffer's users; the erased one is not among them."""

    async def scenario() -> None:
        sink = MemorySink()
        rows = [(0, transition(0, "gone")), *records(1, 30), (30, erased("gone")), *records(31, 60)]
        async with service(start(tmp_path), sink) as (trainer, _, _):
            await trainer.add(0, rows)
            await until(lambda: len(sink.models) == 2)
        assert b"gone" in sink.models[0][1]
        assert b"gone" not in sink.models[1][1]

    asyncio.run(scenario())


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import structlog
from prometheus_client import CollectorRegistry
from streams.training.metrics import TrainerMetrics
from streams.training.service import TrainerService
from tests.shell.train_helpers import FAKE_CHILD, MemorySink, start, records, transition

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    trainer = TrainerService(start(Path({directory!r})), MemorySink(), TrainerMetrics(CollectorRegistry()),
                             command=FAKE_CHILD)
    await trainer.start()
    await trainer.add(0, [(n, transition(n, "slow")) for n in range(1000)])
    sys.stdout.write(str(trainer.pid) + chr(10))
    sys.stdout.flush()
    await trainer.failed()

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """However the parent dies, the child sees its pipe close and is gone, in the middle of its work."""
    root = str(Path(__file__).parents[2])
    code = PARENT.format(root=root, directory=str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(number)
        parent.wait(10)
        asyncio.run(until(lambda: not alive(child), 5))
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()

"""Workers on Apache Kafka: coming, going and waiting, while nothing is lost and nothing counted twice."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.topics import CHANGELOG
from tests.kafka_cluster import KafkaBroker
from tests.shell.streams_harness import Deployment, Worker, decode_counts, deployment, expected_counts, wait_for

pytestmark = pytest.mark.broker

USERS = 200
CHUNK = 200
PAUSE_S = 0.05
"""Between two chunks: 4 000 events a second at most."""

SOME = 2_000
END_S = 10.0


def test_one_worker_then_two_then_one_keep_every_count_exact(broker: str, tmp_path: Path) -> None:
    """Partitions move to a second worker and back under load; each event counts once, in an unbroken chain."""
    with deployment(broker, tmp_path) as made:
        first = made.worker("first")
        wait_for(first.ready, "the first worker")
        with load(made) as sent:
            consumes(made)
            second = made.worker("second")
            wait_for(lambda: second.ready() and opened(second), "the second worker")
            wait_for(lambda: not {*opened(first)[-1]} & {*opened(second)[-1]}, "each has its own partitions")
            assert len(opened(second)[-1]) == 2
            consumes(made)
            assert first.terminate(END_S) == 0
            wait_for(lambda: len(opened(second)[-1]) == 4, "all partitions at the second worker")
            consumes(made)
        wait_for(lambda: made.consumed_count() == sent(), "all is consumed")
        assert second.terminate(END_S) == 0
        assert made.consumed_count() == sent()
        assert decode_counts(made.live_state()) == expected_counts(range(sent()), USERS)


def test_a_warm_copy_takes_over_from_a_worker_that_was_killed(broker: str, tmp_path: Path) -> None:
    """What is left to recover is the changelog's tail, though the heir never served those partitions."""
    with deployment(broker, tmp_path, standby_replicas=1) as made:
        lost, heir = made.worker("lost"), made.worker("heir")
        wait_for(lambda: lost.ready() and heir.ready(), "both workers")
        wait_for(lambda: [len(opened(each)[-1]) for each in (lost, heir)] == [2, 2], "each has its share")
        served = opened(lost)[-1]
        with load(made) as sent:
            consumes(made)
            consumes(made)
            lost.kill()
            wait_for(lambda: opened(heir)[-1] == [0, 1, 2, 3], "all partitions at the heir")
            consumes(made)
        wait_for(lambda: made.consumed_count() == sent(), "all is consumed")
        assert heir.terminate(END_S) == 0
        assert decode_counts(made.live_state()) == expected_counts(range(sent()), USERS)
        tails = recovered(heir)
        logged = Counter(message.partition() for message in made.read(CHANGELOG))
        assert all(tails[partition] < logged[partition] / 10 for partition in served), (tails, logged)


def test_sigterm_under_load_ends_a_worker_in_time(broker: str, tmp_path: Path) -> None:
    """It exits with 0 within 10 s, and its successor goes on where it stopped."""
    with deployment(broker, tmp_path) as made:
        with load(made) as sent:
            for _ in range(2):
                worker = made.worker()
                wait_for(worker.ready, "the worker")
                consumes(made)
                assert worker.terminate(END_S) == 0
        assert SOME < made.consumed_count() <= sent()


@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
def test_a_worker_that_sleeps_past_its_session_ends_when_it_wakes(broker: str, tmp_path: Path, point: str) -> None:
    """Another one has taken over: the zombie lands nothing, and its process is gone, not just its work."""
    with deployment(broker, tmp_path) as made:
        zombie = made.worker("zombie", failpoints=f"{point}=stop:9")
        with load(made) as sent:
            wait_for(lambda: made.consumed_count() > 0 and stopped(zombie), "the worker sleeps")
            heir = made.worker("heir")
            wait_for(lambda: [0, 1, 2, 3] in opened(heir), "all partitions at the other worker")
            consumes(made)
            zombie.process.send_signal(signal.SIGCONT)
            assert wait_for(zombie.process.poll, "the zombie's end") == 1
        wait_for(lambda: made.consumed_count() == sent(), "all is consumed")
        assert heir.terminate(END_S) == 0
        assert decode_counts(made.live_state()) == expected_counts(range(sent()), USERS)


def test_a_full_disk_ends_a_worker_which_goes_on_when_there_is_room(broker: str, tmp_path: Path) -> None:
    """It ends with 1 and says why, though it cannot flush what it closes; what is on disk is whole, if older."""
    with deployment(broker, tmp_path) as made:
        made.events(0, 2 * CHUNK, USERS)
        full = made.worker(file_bytes=40_000, state_bytes=3_000)
        assert wait_for(full.process.poll, "the end of a worker without room") == 1
        said = full.said()
        assert "worker-failed" in said
        assert "File too large" in said
        heir = made.worker(state_bytes=3_000)
        wait_for(lambda: heir.ready() and made.consumed_count() == 2 * CHUNK, "all is consumed")
        assert heir.terminate(END_S) == 0
        assert decode_counts(made.live_state()) == expected_counts(range(2 * CHUNK), USERS)


@pytest.mark.usefixtures("can_run_kafka")
def test_a_worker_started_before_its_broker_waits_for_it(tmp_path: Path) -> None:
    """One serves once the broker is there; another one, told to end while it waits, ends with 0."""
    with KafkaBroker() as kafka, deployment(kafka.address, tmp_path) as made:
        kafka.stop()
        patient, other = made.worker("patient"), made.worker("other")
        wait_for(lambda: waits(patient) and waits(other), "a word that the broker is away")
        assert other.terminate(END_S) == 0
        kafka.start()
        wait_for(patient.ready, "the worker that waited")
        made.events(0, CHUNK, USERS)
        wait_for(lambda: made.consumed_count() == CHUNK, "all is consumed")
        assert patient.terminate(END_S) == 0
        assert decode_counts(made.live_state()) == expected_counts(range(CHUNK), USERS)


@contextmanager
def load(made: Deployment) -> Iterator[Callable[[], int]]:
    """Events all the while; yields how many there are, which is final once it has ended."""
    ended, sent = threading.Event(), 0

    def produce() -> None:
        nonlocal sent
        while not ended.wait(PAUSE_S):
            made.events(sent, sent + CHUNK, USERS)
            sent += CHUNK

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield lambda: sent
    finally:
        ended.set()
        thread.join()


def consumes(made: Deployment) -> None:
    """Wait until some more is consumed."""
    before = made.consumed_count()
    wait_for(lambda: made.consumed_count() > before + SOME, "more is consumed")


def waits(worker: Worker) -> bool:
    """Whether it has said that the broker is away."""
    return '"broker-away"' in worker.said()


def stopped(worker: Worker) -> bool:
    """Whether SIGSTOP has it."""
    return os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def recovered(worker: Worker) -> dict[int, int]:
    """Records that the last opening of each partition had to recover."""
    lines = [json.loads(line) for line in worker.said().splitlines() if '"task-recovered"' in line]
    return {line["partition"]: line["records"] for line in lines}


def opened(worker: Worker) -> list[list[int]]:
    """Partitions the worker opened, assignment by assignment."""
    lines = [json.loads(line) for line in worker.said().splitlines() if '"tasks-open"' in line]
    return [line["partitions"] for line in lines]

"""The child's loop around a learner, in this process, with a clock that tests move."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_core.config import EncoderSettings
from streams.training.checkpoint import CheckpointError, CheckpointStore
from streams.training.loop import TrainingLoop
from streams.training.messages import (
    Checkpointed,
    Consumed,
    FromChild,
    Items,
    Model,
    Progress,
    Start,
    Transitions,
)
from tests.shell.train_child import FakeLearner
from tests.shell.train_helpers import erased, records, start, transition


class Bench:
    """A loop with everything it emitted."""

    def __init__(self, begin: Start, stop_after: int | None = None) -> None:
        self.now_s = 100.0
        self.learner = FakeLearner()
        self.emitted: list[FromChild] = []
        self.asked = 0
        self.stop_after = stop_after
        self.store = CheckpointStore(Path(begin.checkpoint_dir))
        self.loop = TrainingLoop(
            begin,
            self.learner,
            self.store,
            self.emitted.append,
            stopping=self._stopping,
            clock=lambda: self.now_s,
        )
        self.ready = self.loop.open()

    def _stopping(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after

    def feed(self, rows: list[tuple[int, bytes | None]], partition: int = 0) -> None:
        self.loop.handle(Transitions(partition, [row[0] for row in rows], [row[1] for row in rows]))

    def versions(self) -> list[int]:
        return [message.version for message in self.emitted if isinstance(message, Model)]

    def last(self, kind: type[Any]) -> Any:
        return [message for message in self.emitted if isinstance(message, kind)][-1]


def test_the_weights_do_not_depend_on_how_records_are_cut_into_frames(tmp_path: Path) -> None:
    """One frame or many give the same bits and the same models."""
    whole, pieces = Bench(start(tmp_path / "a")), Bench(start(tmp_path / "b"))
    whole.feed(records(0, 120))
    for first in range(0, 120, 17):
        pieces.feed(records(first, min(120, first + 17)))
    assert whole.learner.weights == pieces.learner.weights
    assert whole.versions() == pieces.versions() == [1, 2, 3]
    assert whole.last(Model).evaluations.keys() == {"fake"}


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """Wherever the checkpoint falls, going on from its offsets gives the same bits."""
    undisturbed = Bench(start(tmp_path / "whole"))
    undisturbed.feed(records(0, 60))
    for cut in range(1, 60, 7):
        first = Bench(start(tmp_path / str(cut)))
        first.feed(records(0, cut))
        first.loop.checkpoint()
        first.feed(records(cut, min(60, cut + 5)))  # learned, and lost with the crash
        second = Bench(start(tmp_path / str(cut)))
        assert second.ready.offsets == {0: cut}
        second.feed(records(cut, 60))
        assert second.learner.weights == undisturbed.learner.weights


def test_a_stop_in_the_middle_of_a_frame_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A stop between any two steps, due rounds included, resumes to the same bits."""
    undisturbed = Bench(start(tmp_path / "whole"))
    undisturbed.feed(records(0, 40))
    for stop_after in range(0, 60, 3):
        directory = tmp_path / str(stop_after)
        stopped = Bench(start(directory), stop_after=stop_after)
        stopped.feed(records(0, 40))
        stopped.loop.close()
        resumed = Bench(start(directory))
        resumed.feed(records(0, 40))  # what came before is known by its offset
        assert resumed.learner.weights == undisturbed.learner.weights, stop_after


def test_records_that_come_again_are_consumed_once(tmp_path: Path) -> None:
    """After a rebalance the consumer may start before what is known; offsets decide."""
    bench, twice = Bench(start(tmp_path / "a")), Bench(start(tmp_path / "b"))
    bench.feed(records(0, 30))
    twice.feed(records(0, 20))
    twice.feed(records(5, 30))
    twice.loop.close()
    assert twice.learner.weights == bench.learner.weights
    assert twice.last(Progress).outcomes["replayed"] == 15


def test_an_erased_user_leaves_the_buffer(tmp_path: Path) -> None:
    """An erasure on `transitions` drops the user, and no later checkpoint or model has them."""
    bench = Bench(start(tmp_path))
    bench.feed([(0, transition(0, "gone")), (1, transition(1, "stays")), (2, erased("gone"))])
    bench.loop.close()
    assert bench.learner.users == ["stays"]
    assert b"gone" not in b"".join(path.read_bytes() for path in bench.store.paths())
    assert bench.last(Progress).outcomes == {"settled": 2, "erased": 1}


def test_what_cannot_be_decoded_is_counted_and_passed(tmp_path: Path) -> None:
    """Neither a null nor garbage nor an unsettled record stops or schedules training."""
    bench = Bench(start(tmp_path))
    bench.feed([(0, None), (1, b"{"), (2, b"[]"), (3, b"{}"), (4, transition(4, settled=False))])
    bench.loop.close()
    progress = bench.last(Progress)
    assert progress.outcomes == {"null": 1, "not-json": 1, "schema": 2, "unsettled": 1}
    assert progress.transitions == 0
    assert bench.last(Checkpointed).offsets == {0: 5}


def test_items_reach_the_learner_and_nulls_remove_them(tmp_path: Path) -> None:
    """Items are set and removed in order; a bad one is counted; room is given back."""
    bench, expected = Bench(start(tmp_path)), FakeLearner()
    bench.loop.handle(Items([("m1", b'{"item_id":"m1"}'), ("m2", b"{"), ("m1", None)]))
    expected._mix("item", "m1")
    expected._mix("remove", "m1")
    assert bench.learner.weights == expected.weights
    assert bench.last(Consumed).bytes == len(b'{"item_id":"m1"}') + 1


def test_by_the_clock_the_first_model_goes_out_at_once_and_the_next_after_the_interval(
    tmp_path: Path,
) -> None:
    """A model goes out when something was learned and the interval has passed; never without learning."""
    bench = Bench(start(tmp_path, publish_every_transitions=0, publish_interval_s=15.0))
    bench.feed(records(0, 9))
    assert bench.versions() == []
    bench.feed(records(9, 30))
    assert bench.versions() == [1]
    bench.now_s += 16
    bench.loop.tick()
    assert bench.versions() == [1, 2]
    bench.now_s += 16
    bench.loop.tick()
    assert bench.versions() == [1, 2]


def test_by_the_count_a_pause_flushes_what_was_learned_without_training(tmp_path: Path) -> None:
    """When input pauses, one more model goes out; the weights stay as they are."""
    bench = Bench(start(tmp_path, publish_interval_s=5.0))
    bench.feed(records(0, 30))
    weights = bench.learner.weights
    bench.now_s += 6
    bench.loop.tick()
    bench.loop.tick()
    assert bench.versions() == [1, 2]
    assert bench.learner.weights == weights
    bench.feed(records(30, 100))
    assert bench.versions() == [1, 2, 3, 4]


def test_versions_go_on_above_the_last_one_published(tmp_path: Path) -> None:
    """An old checkpoint, or none, never takes a version number that readers have seen."""
    begin = start(tmp_path)
    first = Bench(begin)
    first.feed(records(0, 60))
    first.loop.close()
    later = Bench(msgspec.structs.replace(begin, last_version=9))
    later.feed(records(60, 100))
    assert later.versions() == [10]


def test_a_model_that_never_arrived_is_made_again(tmp_path: Path) -> None:
    """Where the checkpoint knows of a version that the topic has not, one goes out without new learning."""
    begin = start(tmp_path, publish_interval_s=1.0)
    first = Bench(begin)
    first.feed(records(0, 50))
    first.loop.close()
    again = Bench(begin)
    again.now_s += 2
    again.loop.tick()
    assert again.versions() == [3]


def test_checkpoints_wait_for_twenty_times_their_own_duration(tmp_path: Path) -> None:
    """Where writing takes long, it is done more seldom than the interval says."""
    bench = Bench(start(tmp_path, checkpoint_interval_s=10.0))
    write = bench.store.write

    def slow(*arguments: Any) -> Any:
        bench.now_s += 3.0
        return write(*arguments)

    bench.store.write = slow  # type: ignore[method-assign, assignment]
    written = []
    for second in range(200):
        bench.feed(records(second, second + 1))
        bench.now_s += 1.0
        written.append(len([message for message in bench.emitted if isinstance(message, Checkpointed)]))
    assert written[-1] == 4  # at 10, 70, 130 and 190; every 10 seconds it would be 20


def test_a_checkpoint_of_another_input_or_encoder_is_refused(tmp_path: Path) -> None:
    """Offsets of another topic, or weights of another shape, end the start with what to do."""
    begin = start(tmp_path)
    bench = Bench(begin)
    bench.feed(records(0, 20))
    bench.loop.close()
    with pytest.raises(CheckpointError, match="the input is transitions@2"):
        Bench(msgspec.structs.replace(begin, source="transitions@2"))
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        Bench(msgspec.structs.replace(begin, encoder=EncoderSettings(dimension=16)))

"""What the child process does with each message: bookkeeping around a learner; no pipes, threads or Kafka.

The learner's state is a function of the sequence of records consumed (and the settings): a record is taken
whole, then the training it makes due is done, then the next is taken. A stop falls between two of these, and
what is still due is part of the checkpoint. Within one partition that sequence is the partition's order.
Between partitions, and between `items` and `transitions`, it is the order in which they were consumed: what
is before the checkpoint is part of it; what came after is read again, perhaps interleaved otherwise.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from model_core.config import EncoderSettings
from model_core.errors import DecodeError
from model_core.records import Erased, Evaluation, Item, ModelManifest, Transition, decode, decode_as, encode
from streams.failpoints import failpoint
from streams.training.checkpoint import CheckpointError, CheckpointStore, Header
from streams.training.messages import (
    Checkpointed,
    Consumed,
    FromChild,
    Items,
    Model,
    Progress,
    Ready,
    Start,
    Transitions,
)
from streams.training.schedule import Schedule, ScheduleState

__all__ = ["TrainableLearner", "TrainingLoop"]

_PROGRESS_INTERVAL_S = 1.0
_CHECKPOINT_SHARE = 20
"""A checkpoint waits for this many durations of the last one: writing takes 5 % of the time at most."""
_PUBLISH_SHARE = 10
"""A model by the clock waits for this many durations of making the last one: 10 % of the time at most."""


class TrainableLearner(Protocol):
    """What the loop needs of a learner; `version` is that of the last model made, and may be set."""

    version: int
    device: str

    @property
    def buffer_size(self) -> int:
        """Transitions in the replay buffer."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many transitions are not learned from, by reason."""

    def set_item(self, item: Item) -> None:
        """Add or replace an item."""

    def remove_item(self, item_id: str) -> None:
        """Forget an item."""

    def add(self, transition: Transition) -> None:
        """Put a transition into the buffer."""

    def erase(self, user_id: str) -> None:
        """Drop a user from the buffer."""

    def train(self, steps: int) -> dict[str, float]:
        """Do training steps; returns metrics, empty where there was nothing to learn from."""

    def publish(self) -> tuple[ModelManifest, list[bytes]]:
        """Make the next version; changes nothing that training depends on."""

    def evaluations(self) -> list[Evaluation]:
        """What policies are worth by what was learned from."""

    def checkpoint(self) -> bytes:
        """Everything, so that a resumed run equals an undisturbed one."""

    def restore(self, blob: bytes) -> None:
        """Take back what `checkpoint` gave."""


class TrainingLoop:
    """Feeds a learner, trains it on schedule, and emits models, checkpoints and progress.

    Args:
        start: settings and identity of the input.
        learner: new, to be restored by `open` where there is a checkpoint.
        store: of checkpoints.
        emit: takes what the parent should know.
        stopping: True asks to return between two steps; the rest of a frame is then left unconsumed.
        clock: seconds, monotonic; decides when something is written out, never what is learned.
    """

    def __init__(
        self,
        start: Start,
        learner: TrainableLearner,
        store: CheckpointStore,
        emit: Callable[[FromChild], None],
        *,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._settings = start.trainer
        self._learner = learner
        self._store = store
        self._emit = emit
        self._stopping = stopping
        self._clock = clock
        self._schedule = Schedule(start.trainer, start.learner.batch_size, ScheduleState())
        self._encoder = msgspec.json.encode(start.encoder).decode()
        self._offsets: dict[int, int] = {}
        self._sequence = 0
        self._outcomes: Counter[str] = Counter()
        self._metrics: dict[str, float] = {}
        self._training_s = 0.0
        self._steps = 0
        self._checkpointed_offsets: dict[int, int] = {}
        self._reported_offsets: dict[int, int] = {}
        now = clock()
        self._published_s: float | None = now
        self._checkpointed_s = self._progress_s = self._input_s = now
        self._checkpoint_cost_s = self._publish_cost_s = 0.0

    def open(self) -> Ready:
        """Restore the newest whole checkpoint, or begin anew.

        Raises:
            CheckpointError: it does not belong to this input or these settings, or no file is whole.
        """
        checkpoint, refused = self._store.latest()
        if checkpoint is None:
            self._learner.version = self._start.last_version
            path = ""
        else:
            self._check_fits(checkpoint.header, checkpoint.path)
            self._learner.restore(checkpoint.learner)
            path, header = checkpoint.path, checkpoint.header
            self._learner.version = max(header.version, self._start.last_version)
            self._offsets = dict(header.offsets)
            self._checkpointed_offsets = dict(header.offsets)
            self._sequence = header.sequence + len(refused)
            self._schedule = Schedule(self._settings, self._start.learner.batch_size, header.schedule)
            if header.version > self._start.last_version:
                self._schedule.never_arrived()
        if self._learner.version == 0:
            self._published_s = None
        return Ready(
            offsets=dict(self._offsets),
            transitions=self._schedule.state.transitions,
            version=self._learner.version,
            device=self._learner.device,
            checkpoint=path,
            refused=refused,
        )

    def handle(self, message: Items | Transitions) -> None:
        """Consume one frame of records."""
        if isinstance(message, Items):
            for item_id, value in message.records:
                self._take_item(item_id, value)
            self._emit(Consumed(_size(value for _, value in message.records)))
            return
        self._train_due()
        self._input_s = self._clock()
        for offset, value in zip(message.offsets, message.values, strict=True):
            if self._stopping():
                return
            if offset < self._offsets.get(message.partition, 0):
                self._outcomes["replayed"] += 1
                continue
            self._take(value)
            self._offsets[message.partition] = offset + 1
            self._train_due()
        self._input_s = self._clock()
        self._emit(Consumed(_size(message.values)))
        self.tick()

    def tick(self) -> None:
        """Write out what the clock makes due: a model, a checkpoint, progress."""
        now = self._clock()
        if self._publication_due(now):
            self._publish()
        if now - self._checkpointed_s >= max(
            self._settings.checkpoint_interval_s, _CHECKPOINT_SHARE * self._checkpoint_cost_s
        ):
            self.checkpoint()
        news = self._offsets != self._reported_offsets
        if news and now - self._progress_s >= _PROGRESS_INTERVAL_S:
            self._progress()

    def checkpoint(self) -> None:
        """Write a checkpoint, if anything was consumed since the last one."""
        if self._offsets == self._checkpointed_offsets:
            self._checkpointed_s = self._clock()
            return
        began = self._clock()
        learner = self._learner.checkpoint()
        self._sequence += 1
        header = Header(
            sequence=self._sequence,
            source=self._start.source,
            encoder=self._encoder,
            offsets=dict(self._offsets),
            schedule=self._schedule.state,
            version=self._learner.version,
            learner_bytes=len(learner),
        )
        path, size = self._store.write(header, learner)
        self._checkpointed_offsets = dict(self._offsets)
        self._checkpointed_s = self._clock()
        self._checkpoint_cost_s = self._checkpointed_s - began
        self._emit(
            Checkpointed(path=str(path), bytes=size, seconds=self._checkpoint_cost_s, offsets=dict(self._offsets))
        )

    def close(self) -> None:
        """Checkpoint and report for the last time."""
        self.checkpoint()
        self._progress()

    def _check_fits(self, header: Header, path: str) -> None:
        if header.source != self._start.source:
            raise CheckpointError(
                f"{path} was trained from {header.source}, the input is {self._start.source}; "
                "its offsets mean nothing there: name another trainer.checkpoint_dir or move it away"
            )
        if msgspec.json.decode(header.encoder, type=EncoderSettings) != self._start.encoder:
            raise CheckpointError(
                f"{path} was trained with encoder settings {header.encoder}, now they are {self._encoder}; "
                "its weights do not fit: name another trainer.checkpoint_dir or restore the settings"
            )

    def _take_item(self, item_id: str, value: bytes | None) -> None:
        if value is None:
            self._learner.remove_item(item_id)
            return
        try:
            item = decode("items", value)
        except DecodeError as error:
            self._outcomes[f"item-{error.reason}"] += 1
            return
        if isinstance(item, Item):
            self._learner.set_item(item)

    def _take(self, value: bytes | None) -> None:
        if value is None:
            self._outcomes["null"] += 1
            return
        try:
            record = _decode_transition(value)
        except DecodeError as error:
            self._outcomes[error.reason] += 1
            return
        if isinstance(record, Erased):
            self._learner.erase(record.user_id)
            self._outcomes["erased"] += 1
            return
        self._learner.add(record)
        if record.settled:
            self._outcomes["settled"] += 1
            self._schedule.consume()
        else:
            self._outcomes["unsettled"] += 1

    def _train_due(self) -> None:
        while self._schedule.round_due():
            if self._stopping():
                return
            began = self._clock()
            metrics = self._learner.train(self._settings.steps_per_round)
            self._schedule.trained(learned=bool(metrics))
            if metrics:
                self._metrics = metrics
                self._training_s += self._clock() - began
                self._steps += self._settings.steps_per_round
            else:
                self._outcomes["rounds-without-items"] += 1
            failpoint("trainer-round")
            self.tick()
        if self._schedule.publication_due():
            self._publish()

    def _publication_due(self, now: float) -> bool:
        if self._schedule.state.unpublished_steps == 0:
            return False
        if self._settings.publish_every_transitions > 0:
            return now - self._input_s >= self._settings.publish_interval_s
        if self._published_s is None:  # the first model: as soon as it has learned what it can from what there is
            return not self._schedule.round_due()
        interval_s = max(self._settings.publish_interval_s, _PUBLISH_SHARE * self._publish_cost_s)
        return now - self._published_s >= interval_s

    def _publish(self) -> None:
        began = self._clock()
        manifest, parts = self._learner.publish()
        evaluations = {one.policy: encode(one) for one in self._learner.evaluations()}
        self._schedule.published()
        self._published_s = self._clock()
        self._publish_cost_s = self._published_s - began
        failpoint("trainer-model")
        self._emit(
            Model(
                version=manifest.version,
                manifest=encode(manifest),
                parts=parts,
                seconds=self._publish_cost_s,
                evaluations=evaluations,
            )
        )

    def _progress(self) -> None:
        self._progress_s = self._clock()
        self._reported_offsets = dict(self._offsets)
        left_out = {f"left-out-{reason}": n for reason, n in self._learner.left_out.items()}
        examples = self._steps * self._start.learner.batch_size
        self._emit(
            Progress(
                transitions=self._schedule.state.transitions,
                steps=self._schedule.state.steps,
                examples_per_s=examples / self._training_s if self._training_s else 0.0,
                buffer_size=self._learner.buffer_size,
                outcomes={**self._outcomes, **left_out},
                metrics=self._metrics,
            )
        )


def _decode_transition(value: bytes) -> Transition | Erased:
    try:
        return decode_as(Transition, value)
    except DecodeError:
        try:
            return decode_as(Erased, value)
        except DecodeError:
            pass
        raise


def _size(values: Iterable[bytes | None]) -> int:
    return sum(len(value) for value in values if value is not None)

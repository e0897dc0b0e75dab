"""Prometheus metrics of the trainer role."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from streams.training.messages import Checkpointed, Model, Progress

__all__ = ["TrainerMetrics"]


class TrainerMetrics:
    """What the trainer shows; every number comes from the child's messages.

    Args:
        registry: where they are registered; one of their own by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = self.registry = registry or CollectorRegistry()
        self._learning: dict[str, Gauge] = {}
        self._seen: dict[str, int] = {}
        self._records = Counter(
            "headwater_trainer_records",
            "Records of transitions by outcome, since this process started.",
            ["outcome"],
            registry=registry,
        )
        self._transitions = self._gauge("transitions", "Settled transitions learned from, over all time.")
        self._steps = self._gauge("steps", "Training steps done, over all time.")
        self._examples_per_s = self._gauge("examples_per_s", "Samples trained on per second of training.")
        self._buffer_size = self._gauge("buffer_size", "Transitions in the replay buffer.")
        self._version = self._gauge("model_version", "Version of the last model published.")
        self._model_bytes = self._gauge("model_bytes", "Size of the last model published.")
        self._make_seconds = self._gauge("model_make_seconds", "Time to make the last model.")
        self._publish_seconds = self._gauge("publish_seconds", "Time of the last model's transaction.")
        self._published_at = self._gauge("published_timestamp_seconds", "Unix time of the last publication.")
        self._checkpoint_bytes = self._gauge("checkpoint_bytes", "Size of the last checkpoint.")
        self._checkpoint_seconds = self._gauge("checkpoint_seconds", "Time to write the last checkpoint.")
        self._lag = Gauge(
            "headwater_trainer_lag_records", "Transitions not fetched yet.", ["partition"], registry=registry
        )
        self._in_flight_bytes = self._gauge("in_flight_bytes", "Bytes of records handed over, not yet consumed.")

    def progress(self, message: Progress) -> None:
        """Take a progress report."""
        self._transitions.set(message.transitions)
        self._steps.set(message.steps)
        self._examples_per_s.set(message.examples_per_s)
        self._buffer_size.set(message.buffer_size)
        for outcome, total in message.outcomes.items():
            self._records.labels(outcome).inc(max(0, total - self._seen.get(outcome, 0)))
            self._seen[outcome] = total
        for name, value in message.metrics.items():
            if name not in self._learning:
                self._learning[name] = self._gauge(name, "Of the last round of training; see the learner.")
            self._learning[name].set(value)

    def checkpointed(self, message: Checkpointed) -> None:
        """Take a checkpoint's size and time."""
        self._checkpoint_bytes.set(message.bytes)
        self._checkpoint_seconds.set(message.seconds)

    def published(self, message: Model, seconds: float) -> None:
        """Take a publication that took `seconds`."""
        self._version.set(message.version)
        self._model_bytes.set(sum(map(len, message.parts)))
        self._make_seconds.set(message.seconds)
        self._publish_seconds.set(seconds)
        self._published_at.set_to_current_time()

    def lag(self, partition: int, count: int) -> None:
        """Take the number of records of a partition that were not fetched yet."""
        self._lag.labels(partition).set(count)

    def in_flight(self, count: int) -> None:
        """Take the number of bytes that the child has yet to consume."""
        self._in_flight_bytes.set(count)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"headwater_trainer_{name}", documentation, registry=self.registry)

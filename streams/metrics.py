"""Prometheus metrics of a worker: named outcomes, lag, batch size, commit time, model version and age."""

import time
from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_RECORDS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class Metrics:
    """All metrics of one worker, in a registry of their own.

    Args:
        now_s: the wall clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        registry = self.registry = CollectorRegistry()
        self._model_at_s = 0.0
        self.outcomes = Counter("headwater_outcomes", "Named outcomes", ["outcome"], registry=registry)
        self.records = Counter("headwater_records", "Source records taken", ["partition"], registry=registry)
        self.batches = Counter("headwater_batches", "Transactions landed", ["partition"], registry=registry)
        self.users = Counter("headwater_users_written", "User records written", registry=registry)
        self.batch_records = Histogram(
            "headwater_batch_records", "Source records of a batch", buckets=_RECORDS, registry=registry
        )
        self.step_seconds = Histogram(
            "headwater_step_seconds", "Computing a batch", buckets=_SECONDS, registry=registry
        )
        self.commit_seconds = Histogram(
            "headwater_commit_seconds", "Landing a batch: transaction and store", buckets=_SECONDS, registry=registry
        )
        self.recovery_seconds = Histogram(
            "headwater_recovery_seconds", "Bringing a store to its changelog's end", buckets=_SECONDS, registry=registry
        )
        self.lag = Gauge(
            "headwater_lag_records", "Records after the position", ["topic", "partition"], registry=registry
        )
        self.watermark_ms = Gauge(
            "headwater_watermark_ms", "min(M) of both topics, event time", ["partition"], registry=registry
        )
        self.model_version = Gauge("headwater_model_version", "Of the model that serves", registry=registry)
        self.model_age = Gauge(
            "headwater_model_age_seconds", "Since the serving model was swapped in", registry=registry
        )
        self.model_age.set_function(lambda: now_s() - self._model_at_s if self._model_at_s else 0.0)
        self.models_refused = Counter("headwater_models_refused", "Models that failed verification", registry=registry)
        self.items = Gauge("headwater_items", "Items in the catalogue", registry=registry)
        self.items_refused = Counter(
            "headwater_items_refused", "Records of items that cannot be used", ["reason"], registry=registry
        )
        self._now_s = now_s

    def count(self, outcomes: Tally[str]) -> None:
        """Add named outcomes."""
        for outcome, number in outcomes.items():
            self.outcomes.labels(outcome).inc(number)

    def model(self, version: int) -> None:
        """A model was swapped in."""
        self.model_version.set(version)
        self._model_at_s = self._now_s()

    def forget(self, partition: int, topics: list[str]) -> None:
        """A partition moved away: its gauges go with it."""
        self.watermark_ms.remove(partition)
        for topic in topics:
            self.lag.remove(topic, partition)

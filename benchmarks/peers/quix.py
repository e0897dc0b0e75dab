"""Quix Streams: the bare job, and the full job by calling the same `engine.step` with each event.

    python -m benchmarks.peers.quix bare|full GUARANTEE BROKER SOURCE[,CLICKS] OUTPUT NAME FOLDER

Quix Streams wants another confluent-kafka than Headwater, so it stands in a folder of its own: `start.py` says how.
"""

import sys
from typing import Any, Final

from quixstreams import Application, State, message_context

from benchmarks.load import catalogue
from benchmarks.peers.job import apply
from model_core.engine import Engine, EngineSettings
from model_core.intake import Role, SourceRecord
from model_core.serving import ServingModel

_STATE: Final = "user"


def _bare(value: bytes, state: State) -> bytes:
    new, count = apply(state.get_bytes(_STATE), value)
    state.set_bytes(_STATE, new)
    return count


class Full:
    """The full job, one event at a time. Its clocks are in memory alone, which is less than exactly once would ask."""

    def __init__(self, engine: Engine, impressions: str) -> None:
        self._engine = engine
        self._impressions = impressions
        self._clocks: dict[int, bytes] = {}

    def __call__(self, value: bytes, key: bytes, timestamp: int, _headers: Any, state: State) -> list[bytes]:
        """The records that the event causes."""
        context = message_context()
        partition = context.partition
        role: Role = "impressions" if context.topic == self._impressions else "clicks"
        record = SourceRecord(role, context.offset, timestamp, key, value)
        intake = self._engine.intake(self._clocks.get(partition), partition, [record])
        effects = self._engine.step(intake, {key: state.get_bytes(_STATE)})
        self._clocks[partition] = effects.clock
        for new in effects.states.values():
            if new is None:
                state.delete(_STATE)
            else:
                state.set_bytes(_STATE, new)
        return [output.value for output in effects.outputs if output.value is not None]


def run(job: str, guarantee: Any, broker: str, sources: str, output: str, name: str, folder: str) -> None:
    """Until it is told to stop."""
    app = Application(
        broker_address=broker,
        consumer_group=name,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        state_dir=folder,
        loglevel="WARNING",
    )
    names = sources.split(",")
    frames = [
        app.dataframe(app.topic(source, key_deserializer="bytes", value_deserializer="bytes")) for source in names
    ]
    results = app.topic(output, key_serializer="bytes", value_serializer="bytes")
    frame = frames[0]
    for other in frames[1:]:
        frame = frame.concat(other)
    if job == "bare":
        frame = frame.apply(_bare, stateful=True)
    else:
        defaults = EngineSettings()
        engine = Engine(defaults, catalogue(), ServingModel.initial(defaults.encoder), seed=0)
        frame = frame.apply(Full(engine, names[0]), stateful=True, expand=True, metadata=True)
    frame.to_topic(results)
    app.run()


if __name__ == "__main__":
    run(*sys.argv[1:])

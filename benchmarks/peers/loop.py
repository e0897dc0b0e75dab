"""The bare job as a plain loop over librdkafka: consume, multi-get, one transaction, one write batch; no framework.

    python -m benchmarks.peers.loop BROKER SOURCE OUTPUT NAME FOLDER

It has none of what makes a worker: no recovery, no rebalance, no fencing of zombies. It is the floor under them.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition
from rocksdict import Options, Rdict, WriteBatch

from benchmarks.peers.job import apply

_BATCH: Final = 10_000
_TURNS: Final = 2
"""Transactional ids that take turns: the broker is still writing the markers of the last transaction."""


def _producers(broker: str, name: str) -> Iterator[Producer]:
    for turn in range(_TURNS):
        producer = Producer(
            {
                "bootstrap.servers": broker,
                "transactional.id": f"{name}-{turn}",
                "linger.ms": 0,
                "retry.backoff.ms": 2,
                "batch.num.messages": 20_000,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        producer.init_transactions(30.0)
        yield producer


def _step(messages: Sequence[Any], database: Rdict) -> tuple[dict[bytes, bytes], dict[int, list[Any]]]:
    """New states, and outputs by partition."""
    users = list({message.key() for message in messages})
    states: dict[bytes, Any] = dict(zip(users, database.get(users), strict=True))
    outputs: dict[int, list[Any]] = {}
    for message in messages:
        user = message.key()
        states[user], count = apply(states[user], message.value())
        outputs.setdefault(message.partition(), []).append({"key": user, "value": count})
    return states, outputs


def run(broker: str, source: str, output: str, name: str, folder: str) -> None:
    """Until it is killed."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": name,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([source])
    database = Rdict(folder, options=Options(raw_mode=True))
    producers = list(_producers(broker, name))
    turn = 0
    while True:
        messages = [message for message in consumer.consume(_BATCH, 0.02) if message.error() is None]
        if not messages:
            continue
        states, outputs = _step(messages, database)
        offsets = {message.partition(): message.offset() + 1 for message in messages}
        where = {message.key(): message.partition() for message in messages}
        changes: dict[int, list[Any]] = {}
        for user, state in states.items():
            changes.setdefault(where[user], []).append({"key": user, "value": state})
        producer, turn = producers[turn], (turn + 1) % _TURNS
        producer.begin_transaction()
        for partition in outputs:
            producer.produce_batch(f"{name}-changelog", changes[partition], partition=partition)
            producer.produce_batch(output, outputs[partition], partition=partition)
        following = [TopicPartition(source, partition, offset) for partition, offset in offsets.items()]
        producer.send_offsets_to_transaction(following, consumer.consumer_group_metadata())
        producer.commit_transaction()
        batch = WriteBatch(raw_mode=True)
        for user, state in states.items():
            batch.put(user, state)
        database.write(batch)


if __name__ == "__main__":
    run(*sys.argv[1:])

"""Poison on Apache Kafka, 10 MB payloads among it: each dead letter right, the good ones exact; and mended."""

import functools
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from headwater import dead
from headwater.settings import Settings
from model_core.records import Transition, decode_as
from streams.topics import MAX_MESSAGE_BYTES, SOURCES
from tests.broker.traffic import ITEMS, JOIN, RULES, Sent, Traffic, outcome_of
from tests.broker.traffic import generate as traffic_of
from tests.poison.generate import HUGE_BYTES, LOG_MS, Bad
from tests.poison.generate import generate as poison
from tests.property.test_join import fields_of
from tests.shell.streams_harness import Deployment, deployment, wait_for

pytestmark = pytest.mark.broker

GOOD, BAD, USERS = 600, 1_200, 40
FIRST_GOOD = 20
FOR_EVER_MS = 100 * 365 * 86_400_000


def test_poison_is_refused_the_rest_is_exact_and_what_is_mended_comes_back(broker: str, tmp_path: Path) -> None:
    """`dead-letters list` counts what came; `replay` brings back the click whose kind has a weight by now.

    A compacted topic takes nothing without a key, so that `users` has none of those.
    """
    with deployment(broker, tmp_path, partitions=1, personal_retention_ms=FOR_EVER_MS) as made:
        allow_large(made)
        probes = [Bad("10 MB", role, b"u1", bytes(HUGE_BYTES), "too-large") for role in SOURCES]
        for probe in probes:
            wait_for(functools.partial(produce, made, [], [probe], patient=True), "a topic that takes 10 MB")
        traffic = traffic_of(3, GOOD, USERS)
        bad = [one for one in islice(poison(3, USERS), BAD) if one.topic != "users" or one.key is not None]
        shown, ordered = order_after(traffic.records)
        count = len(probes) + produce(made, traffic.records, [*bad, shown, ordered])
        worker = made.worker(join=JOIN)
        wait_for(lambda: worker.ready() and made.consumed_count() == count, "all is consumed")
        assert worker.terminate() == 0
        known = {one.value: one.reason for one in (*probes, *bad, ordered) if one.value is not None}
        agree_with_the_oracle(made, traffic._replace(bad={**traffic.bad, **known}))
        settings = Settings(streams=made.settings)
        unknown = 1 + sum(one.reason == "unknown-kind" for one in bad)
        wanted = Counter((one.topic, one.reason, one.key, one.value) for one in (*probes, *bad, ordered))
        assert not wanted - Counter(map(seen, made.read("dead-letters")))
        listed = dead.listed(settings, reason="unknown-kind", limit=unknown)
        assert listed.reasons["unknown-kind"] == len(listed.latest) == unknown
        assert {letter.attempt for letter in listed.latest} == {1}

        assert dead.replayed(settings, reason="unknown-kind") == unknown
        worker = made.worker(join={**JOIN, "weights": {**RULES.weights, "order": 5.0}})
        settle = json.dumps({"heartbeat": True, "event_time_ms": LOG_MS}).encode()
        wait_for(lambda: worker.ready() and made.consumed_count() == count + unknown, "the click that is mended")
        count += unknown + produce(made, [Sent(role, None, settle) for role in SOURCES[:2]], [])
        wait_for(lambda: made.consumed_count() == count, "what settles all")
        assert worker.terminate() == 0
        assert last_revisions(made)["u1", "fresh"].reward == 5.0 + RULES.default
        again = dead.listed(settings, reason="unknown-kind", limit=unknown - 1).latest
        assert [letter.attempt for letter in again] == [2] * (unknown - 1)


def order_after(records: list[Sent]) -> tuple[Bad, Bad]:
    """An impression behind all others, and a click on it of a kind that nobody knows yet."""
    time_ms = json.loads(records[-1].value)["event_time_ms"] + 1_000
    shown = {"impression_id": "fresh", "user_id": "u1", "event_time_ms": time_ms}
    click = {**shown, "click_id": "order", "item_id": ITEMS[0], "kind": "order"}
    slate = {**shown, "slate": [{"item_id": ITEMS[0]}, {"item_id": ITEMS[1]}]}
    return (
        Bad("none", "impressions", b"u1", json.dumps(slate).encode(), "none"),
        Bad("order", "clicks", b"u1", json.dumps(click).encode(), "unknown-kind"),
    )


def produce(made: Deployment, goods: list[Sent], bads: list[Bad], *, patient: bool = False) -> int:
    """Good records with bad ones in between, all at one time of the log; how many of them the broker took.

    All, unless the caller is patient.
    """
    refused: list[KafkaError] = []
    producer = Producer(
        {"bootstrap.servers": made.settings.brokers[0], "message.max.bytes": MAX_MESSAGE_BYTES, "log_level": 0}
    )

    def delivered(error: KafkaError | None, _: Any) -> None:
        refused.extend([] if error is None else [error])

    mixed: list[Sent | Bad] = [*goods]
    for number, one in enumerate(bads):
        mixed.insert(min(len(mixed), FIRST_GOOD + number), one) if number < GOOD else mixed.append(one)
    for sent in mixed:
        if isinstance(sent, Bad):
            role, key, value = sent.topic, sent.key, sent.value
        else:
            role, key, value = sent.role, None if sent.user is None else sent.user.encode(), sent.value
        while True:
            try:
                producer.produce(made.settings.topic(role), value, key, 0, timestamp=LOG_MS, on_delivery=delivered)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush(30) == 0
    assert patient or not refused, refused
    return len(mixed) - len(refused)


def agree_with_the_oracle(made: Deployment, traffic: Traffic) -> None:
    """The last revisions of what settled."""
    impressions, clicks = ([message for message in made.read(role) if message.value()] for role in SOURCES[:2])
    expected = outcome_of(impressions, clicks, traffic).transitions
    assert {key: fields_of(last) for key, last in last_revisions(made).items()} == expected


def last_revisions(made: Deployment) -> dict[tuple[str, str], Transition]:
    sent = [decode_as(Transition, message.value()) for message in made.read("transitions")]
    return {(one.user_id, one.transition_id): one for one in sent}


def seen(message: Any) -> tuple[str, str, bytes | None, bytes | None]:
    headers = {name: value.decode() for name, value in message.headers()}
    return headers["topic"], headers["reason"], message.key(), message.value()


def allow_large(made: Deployment) -> None:
    """Sources that take 10 MB, as a team may have them."""
    client = AdminClient({"bootstrap.servers": made.settings.brokers[0], "log_level": 0})
    entry = ConfigEntry("max.message.bytes", str(MAX_MESSAGE_BYTES), incremental_operation=AlterConfigOpType.SET)
    topics = [
        ConfigResource(ResourceType.TOPIC, made.settings.topic(role), incremental_configs=[entry]) for role in SOURCES
    ]
    for future in client.incremental_alter_configs(topics).values():
        future.result()

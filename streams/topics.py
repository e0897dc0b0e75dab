"""Every topic: its role, how many partitions, how it is cleaned up; declared so that repeating it is safe."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import structlog
from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from model_core.errors import SettingsError
from model_core.intake import Role
from streams.clients import confluent_config
from streams.settings import StreamSettings

__all__ = [
    "CHANGELOG",
    "MAX_MESSAGE_BYTES",
    "ROLES",
    "SOURCES",
    "Declared",
    "Topic",
    "TopicState",
    "declare",
    "describe",
    "last_trace_ms",
    "partition_for",
    "topics",
]

SOURCES: Final[tuple[Role, ...]] = ("impressions", "clicks", "users")
"""Topics that a stream task consumes, partition by partition."""

CHANGELOG: Final = "state-changelog"
"""Every user's record, and the task's own under reserved keys."""

MAX_MESSAGE_BYTES: Final = 32 << 20
"""Of a record that Headwater writes: a user's may hold every open impression and waiting click that the caps allow."""

_TIMEOUT_S: Final = 30.0
_DAY_MS: Final = 86_400_000
_IMPERSONAL: Final = ("items", "steps", "erasures", "evaluations", "models")
"""Topics whose records name no person."""


class Topic(NamedTuple):
    """What a topic should be.

    Attributes:
        role: its name without the prefix.
        partitions: how many.
        config: of the broker, by its own names.
        ours: written by Headwater alone, so that a wrong configuration is put right.
    """

    role: str
    partitions: int
    config: dict[str, str]
    ours: bool


class Declared(NamedTuple):
    """What `declare` did with a topic: its name, and whether it was created, left, altered, or differs."""

    name: str
    outcome: Literal["created", "present", "altered", "differs"]
    detail: str = ""


class TopicState(NamedTuple):
    """A topic as the broker has it."""

    id: str
    partitions: int


def topics(settings: StreamSettings) -> list[Topic]:
    """All topics, as they should be under these settings."""
    keep = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.personal_retention_ms),
        "segment.ms": str(_DAY_MS),
    }
    compact = {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(settings.tombstone_retention_ms),
        "max.compaction.lag.ms": str(_DAY_MS),
    }
    forever = {"cleanup.policy": "delete", "retention.ms": "-1"}
    large = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    many = settings.partitions
    return [
        Topic("impressions", many, keep, ours=False),
        Topic("clicks", many, keep, ours=False),
        Topic("users", many, compact, ours=False),
        Topic("items", many, compact, ours=False),
        Topic("recommendations", many, compact | large, ours=True),
        Topic("transitions", many, keep | large, ours=True),
        Topic("dead-letters", many, keep | large, ours=True),
        Topic("steps", many, forever, ours=True),
        Topic("erasures", many, forever, ours=True),
        Topic("evaluations", 1, compact, ours=True),
        Topic("models", 1, compact, ours=True),
        Topic(CHANGELOG, many, compact | large, ours=True),
    ]


ROLES: Final = tuple(topic.role for topic in topics(StreamSettings()))
"""Names of all topics, without the prefix."""


def last_trace_ms(settings: StreamSettings) -> int:
    """How long after it was written the last byte about a person is gone from the topics, as they are declared.

    A record under `delete` goes with its segment. Under `compact`, what a null replaces goes when the segment is
    compacted, the null itself, whose key is the user's id, with a compaction after its own retention. A day more is
    for the broker's own pace.
    """
    return max(_gone_after_ms(topic.config) for topic in topics(settings) if topic.role not in _IMPERSONAL) + _DAY_MS


def _gone_after_ms(config: Mapping[str, str]) -> int:
    if config["cleanup.policy"] == "compact":
        return 2 * int(config["max.compaction.lag.ms"]) + int(config["delete.retention.ms"])
    return int(config["retention.ms"]) + int(config["segment.ms"])


def partition_for(key: bytes, partitions: int) -> int:
    """Partition of a key as Kafka's own default partitioner chooses it (murmur2, sign bit cleared)."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def declare(settings: StreamSettings, roles: Iterable[str] = ROLES) -> list[Declared]:
    """Create what is missing; put right what is ours; say what differs. Safe to repeat.

    Raises:
        KafkaException: the broker cannot be reached, or refuses.
    """
    wanted = {settings.topic(topic.role): topic for topic in topics(settings) if topic.role in set(roles)}
    admin = AdminClient(confluent_config(settings))
    created = _create(admin, wanted, settings.replication_factor)
    present = describe(settings, [name for name in wanted if name not in created], admin=admin)
    result = [Declared(name, "created") for name in created]
    result += [_compare(admin, name, wanted[name], state) for name, state in present.items()]
    return sorted(result)


def _create(admin: AdminClient, wanted: Mapping[str, Topic], replication_factor: int) -> list[str]:
    new = [
        NewTopic(
            name,
            num_partitions=topic.partitions,
            replication_factor=replication_factor,
            config=topic.config,
        )
        for name, topic in wanted.items()
    ]
    created = []
    for name, future in admin.create_topics(new, request_timeout=_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            created.append(name)
    return created


def _compare(admin: AdminClient, name: str, topic: Topic, state: TopicState) -> Declared:
    if state.partitions != topic.partitions:
        return Declared(name, "differs", f"{state.partitions} partitions, not {topic.partitions}")
    policy = _cleanup_policy(admin, name)
    wanted = topic.config["cleanup.policy"]
    if policy is None or policy == wanted:
        return Declared(name, "present")
    if not topic.ours:
        return Declared(name, "differs", f"cleanup.policy is {policy}, not {wanted}")
    changes = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in topic.config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=changes)
    for future in admin.incremental_alter_configs([resource], request_timeout=_TIMEOUT_S).values():
        future.result()
    return Declared(name, "altered", f"cleanup.policy was {policy}")


def _cleanup_policy(admin: AdminClient, name: str) -> str | None:
    """None where the broker does not answer such a question."""
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        (future,) = admin.describe_configs([resource], request_timeout=_TIMEOUT_S).values()
        entries: Mapping[str, Any] = future.result()
    except KafkaException as error:
        structlog.get_logger().info("topic-config-unknown", topic=name, error=str(error))
        return None
    entry = entries.get("cleanup.policy")
    return None if entry is None else str(entry.value)


def describe(
    settings: StreamSettings, names: Iterable[str], *, admin: AdminClient | None = None
) -> dict[str, TopicState]:
    """Id and partition count of each topic, by full name.

    Raises:
        SettingsError: a topic is not there.
        KafkaException: the broker cannot be reached, or refuses.
    """
    names = list(names)
    if not names:
        return {}
    admin = admin or AdminClient(confluent_config(settings))
    result = {}
    for name, future in admin.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT_S).items():
        try:
            description = future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise SettingsError(
                    f"topic {name} is not there: create it, or run `headwater topics create`"
                ) from error
            raise
        result[name] = TopicState(str(description.topic_id), len(description.partitions))
    return result

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
    "MODEL_VERSIONS",
    "ROLES",
    "SOURCES",
    "Declared",
    "Kept",
    "Topic",
    "TopicState",
    "declare",
    "describe",
    "kept",
    "last_trace_ms",
    "partition_for",
    "topics",
]

SOURCES: Final[tuple[Role, ...]] = ("impressions", "clicks", "users")
"""Topics that a stream task consumes, partition by partition."""

CHANGELOG: Final = "state-changelog"
"""Every user's record, and the task's own under reserved keys."""

MODEL_VERSIONS: Final = "model-versions"
"""Every model, for as long as steps that used it may be repeated, and longer; `models` has the newest alone."""

MAX_MESSAGE_BYTES: Final = 32 << 20
"""Of a record that Headwater writes: a user's may hold every open impression and waiting click that the caps allow."""

_TIMEOUT_S: Final = 30.0
_DAY_MS: Final = 86_400_000
_NEVER_MS: Final = 1 << 62
_IMPERSONAL: Final = ("items", "steps", "erasures", "evaluations", "models", MODEL_VERSIONS)
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
    """What `declare` did with a topic: its name, whether it was created, left or altered, or what is wrong with it."""

    name: str
    outcome: Literal["created", "present", "altered", "differs", "keeps longer"]
    detail: str = ""


class Kept(NamedTuple):
    """How long a topic keeps what names a person.

    Attributes:
        name: of the topic.
        gone_after_ms: how long after it was written a record is gone; None for never.
        allowed_ms: what the dates of receipts count on.
    """

    name: str
    gone_after_ms: int | None
    allowed_ms: int

    @property
    def advice(self) -> str | None:
        """What is wrong and what to do; None where nothing is."""
        if self.gone_after_ms is not None and self.gone_after_ms <= self.allowed_ms:
            return None
        long = "for ever" if self.gone_after_ms is None else f"up to {self.gone_after_ms / _DAY_MS:.1f} days"
        return (
            f"{self.name} keeps records of people {long}, and receipts of erasures count on "
            f"{self.allowed_ms / _DAY_MS:.1f}: lower its retention.ms and segment.ms (max.compaction.lag.ms and "
            "delete.retention.ms where it is compacted), or raise streams.personal_retention_ms"
        )


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
    versions = keep | {"retention.ms": str(settings.personal_retention_ms + 2 * _DAY_MS)}
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
        Topic("steps", many, keep, ours=True),
        Topic("erasures", many, forever, ours=True),
        Topic("evaluations", 1, compact, ours=True),
        Topic("models", 1, compact, ours=True),
        Topic(MODEL_VERSIONS, 1, versions, ours=True),
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
    declared = [_gone_after_ms(topic.config) for topic in topics(settings) if topic.role not in _IMPERSONAL]
    return max(after_ms for after_ms in declared if after_ms is not None) + _DAY_MS


def _gone_after_ms(config: Mapping[str, str]) -> int | None:
    """How long after it was written a record is gone; None for never. Of two policies the faster one counts."""
    policies = config["cleanup.policy"].split(",")
    ways = []
    if "compact" in policies:
        ways.append(2 * int(config["max.compaction.lag.ms"]) + int(config["delete.retention.ms"]))
    if "delete" in policies and int(config["retention.ms"]) >= 0:
        ways.append(int(config["retention.ms"]) + int(config["segment.ms"]))
    after_ms = min(ways, default=_NEVER_MS)
    return None if after_ms >= _NEVER_MS else after_ms


def kept(settings: StreamSettings) -> list[Kept]:
    """How long the topics that are there keep what names a person, by what the broker says of them.

    Raises:
        KafkaException: the broker cannot be reached.
    """
    allowed_ms = last_trace_ms(settings) - _DAY_MS
    names = [settings.topic(topic.role) for topic in topics(settings) if topic.role not in _IMPERSONAL]
    found = _configurations(AdminClient(confluent_config(settings)), names)
    return [Kept(name, _gone_after_ms(config), allowed_ms) for name, config in found.items() if _says(config)]


def _says(config: Mapping[str, str]) -> bool:
    """Whether the broker said what it takes to know."""
    return {"cleanup.policy", "retention.ms", "segment.ms", "max.compaction.lag.ms", "delete.retention.ms"} <= {*config}


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
    longest_ms = last_trace_ms(settings) - _DAY_MS
    result += [_compare(admin, name, wanted[name], state, longest_ms) for name, state in present.items()]
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


def _compare(admin: AdminClient, name: str, topic: Topic, state: TopicState, longest_ms: int) -> Declared:
    if state.partitions != topic.partitions:
        return Declared(name, "differs", f"{state.partitions} partitions, not {topic.partitions}")
    config = _configurations(admin, [name]).get(name, {})
    differs = {key: value for key, value in topic.config.items() if config.get(key, value) != value}
    if not topic.ours:
        return _judged(name, topic, config, longest_ms)
    if not differs:
        return Declared(name, "present")
    changes = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in topic.config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=changes)
    for future in admin.incremental_alter_configs([resource], request_timeout=_TIMEOUT_S).values():
        future.result()
    return Declared(name, "altered", ", ".join(f"{key} was {config[key]}" for key in differs))


def _judged(name: str, topic: Topic, config: Mapping[str, str], longest_ms: int) -> Declared:
    """A topic that is not ours: said what is wrong with it, and left."""
    wanted = topic.config["cleanup.policy"]
    if (policy := config.get("cleanup.policy", wanted)) != wanted:
        return Declared(name, "differs", f"cleanup.policy is {policy}, not {wanted}")
    if topic.role not in _IMPERSONAL and _says(config):
        advice = Kept(name, _gone_after_ms(config), longest_ms).advice
        if advice is not None:
            return Declared(name, "keeps longer", advice)
    return Declared(name, "present")


def _configurations(admin: AdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Configuration of each topic that the broker answers for."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found = {}
    for resource, future in admin.describe_configs(resources, request_timeout=_TIMEOUT_S).items():
        try:
            entries: Mapping[str, Any] = future.result()
        except KafkaException as error:
            structlog.get_logger().info("topic-config-unknown", topic=resource.name, error=str(error))
        else:
            found[resource.name] = {key: str(entry.value) for key, entry in entries.items() if entry.value is not None}
    return found


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

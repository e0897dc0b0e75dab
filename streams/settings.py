"""Settings of the Faust shell: frozen, each with its meaning and unit; `headwater.settings` reads them from outside."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model_core.errors import SettingsError

__all__ = ["SecuritySettings", "StreamSettings"]

_MIB = 1 << 20
_DAY_MS = 86_400_000
_SECRET_CHARACTERS = 16


def _expect(holds: bool, key: str, value: object, expected: str) -> None:  # noqa: FBT001 - an assertion's argument
    if not holds:
        raise SettingsError(f"{key} = {value!r}: expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySettings:
    """How every client proves who it is and checks who the broker is.

    Attributes:
        protocol: of the connection.
        ca_file: certificates that may sign the broker's; None for the system's.
        certificate_file: this client's certificate, PEM.
        key_file: its private key, PEM.
        key_password: of the private key.
        key_password_file: a file that holds it, as secrets are mounted; a newline at its end is none of it.
        sasl_mechanism: of SASL.
        username: of SASL.
        password: of SASL.
        password_file: a file that holds it, as above.
        erasure_secret: keys the HMAC that stands for an erased person's id; unset, each stream task makes a random
            key and keeps it in its changelog.
        erasure_secret_file: a file that holds it, as above.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    key_password_file: str | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    erasure_secret: str | None = field(default=None, repr=False)
    erasure_secret_file: str | None = None

    @property
    def sasl(self) -> bool:
        """Whether SASL is in use."""
        return self.protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")

    def check(self) -> None:
        """Raise `SettingsError` where a value is missing or out of range."""
        known = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
        _expect(self.protocol in known, "security.protocol", self.protocol, "one of " + ", ".join(known))
        if self.sasl:
            mechanisms = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
            _expect(
                self.sasl_mechanism in mechanisms,
                "security.sasl_mechanism",
                self.sasl_mechanism,
                "one of " + ", ".join(mechanisms),
            )
            _expect(bool(self.username), "security.username", self.username, f"a name under {self.protocol}")
            _expect(self.password is not None, "security.password", None, f"a password under {self.protocol}")
        if self.erasure_secret is not None:
            long_enough = len(self.erasure_secret) >= _SECRET_CHARACTERS
            _expect(long_enough, "security.erasure_secret", "***", f"at least {_SECRET_CHARACTERS} characters")
        for key in ("ca_file", "certificate_file", "key_file"):
            path = getattr(self, key)
            _expect(path is None or Path(path).is_file(), f"security.{key}", path, "a file that is there")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How workers meet the broker, keep state and answer.

    Attributes:
        brokers: `host:port` of the brokers to begin with.
        security: TLS and SASL.
        topic_prefix: before the name of every topic.
        group_prefix: before the name of every role, which is its consumer group.
        data_dir: where state lives; it is a cache of the changelog.
        partitions: of the topics that are declared.
        replication_factor: of the topics that are declared.
        personal_retention_ms: of what holds personal events.
        tombstone_retention_ms: `delete.retention.ms` of compacted topics.
        max_batch_records: records of one transaction at most.
        max_due_users: users that one batch settles at most, beside those with events.
        max_buffered_records: per topic-partition, gathered but not yet taken; more pauses it.
        max_buffered_bytes: per topic-partition, as above.
        fetch_wait_ms: how long the broker may hold back a fetch that finds nothing.
        session_timeout_ms: without a heartbeat for this long, a worker's partitions move.
        rebalance_timeout_ms: how long a rebalance waits for a member.
        standby_replicas: other workers that keep a warm copy of each partition, so that it is soon served again where
            its worker is lost; each reads the whole changelog of its copies.
        transaction_timeout_ms: after this the broker aborts what a stopped worker left open.
        compression: of what is written.
        stop_timeout_ms: a worker told to end ends within this.
        purge_interval_ms: a stream task's store is compacted after an erasure, at most once in this time.
        idle_ms: an idle partition gets a heartbeat after this; 0 for never.
        refresh_users_per_s: per stream task, users that get a fresh slate after a new model; 0 for none.
        max_active_users: per stream task, remembered for that refresh.
        block_cache_bytes: of each stream task's RocksDB.
        web_host: address of `/metrics`, `/healthz` and `/readyz`.
        web_port: their port; 0 picks a free one, None for none.
    """

    brokers: tuple[str, ...] = ("127.0.0.1:9092",)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    topic_prefix: str = ""
    group_prefix: str = "headwater-"
    data_dir: Path = Path(".headwater")
    partitions: int = 4
    replication_factor: int = 1
    personal_retention_ms: int = 7 * _DAY_MS
    tombstone_retention_ms: int = 7 * _DAY_MS
    max_batch_records: int = 4_000
    max_due_users: int = 1_000
    max_buffered_records: int = 20_000
    max_buffered_bytes: int = 32 * _MIB
    fetch_wait_ms: int = 20
    session_timeout_ms: int = 15_000
    rebalance_timeout_ms: int = 30_000
    standby_replicas: int = 0
    transaction_timeout_ms: int = 10_000
    compression: Literal["none", "gzip", "lz4", "zstd", "snappy"] = "none"
    stop_timeout_ms: int = 8_000
    purge_interval_ms: int = 3_600_000
    idle_ms: int = 5_000
    refresh_users_per_s: int = 200
    max_active_users: int = 50_000
    block_cache_bytes: int = 32 * _MIB
    web_host: str = "127.0.0.1"
    web_port: int | None = None

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        self.security.check()
        _expect(bool(self.brokers), "brokers", self.brokers, "at least one host:port")
        for broker in self.brokers:
            host, _, port = broker.rpartition(":")
            _expect(bool(host) and port.isdigit(), "brokers", broker, "host:port")
        for key in (
            "partitions",
            "replication_factor",
            "max_batch_records",
            "max_due_users",
            "max_buffered_records",
            "max_buffered_bytes",
            "block_cache_bytes",
            "transaction_timeout_ms",
            "stop_timeout_ms",
            "fetch_wait_ms",
            "personal_retention_ms",
            "tombstone_retention_ms",
        ):
            _expect(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        for key in ("standby_replicas", "purge_interval_ms", "idle_ms", "refresh_users_per_s", "max_active_users"):
            _expect(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        _expect(
            self.session_timeout_ms >= 6_000,  # noqa: PLR2004 - Kafka's group.min.session.timeout.ms
            "session_timeout_ms",
            self.session_timeout_ms,
            "at least 6000, the broker's group.min.session.timeout.ms",
        )
        _expect(
            self.web_port is None or 0 <= self.web_port < 1 << 16,
            "web_port",
            self.web_port,
            "a port, 0 for a free one",
        )

    def topic(self, role: str) -> str:
        """Name of the topic of a role."""
        return self.topic_prefix + role

    def group(self, role: str) -> str:
        """Consumer group of a worker role; each role is one of its own."""
        return self.group_prefix + role

"""One place where settings become configurations of the three Kafka clients: librdkafka, aiokafka, kafka-python."""

import logging
import ssl
import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from model_core.errors import HeadwaterError
from streams.settings import SecuritySettings, StreamSettings

__all__ = [
    "BrokerRefusedError",
    "aiokafka_config",
    "ask",
    "confluent_config",
    "group_metadata",
    "kafka_python_config",
    "librdkafka_log",
]

librdkafka_log: Final = logging.getLogger("librdkafka")
"""Where librdkafka's own log lines go."""

_METADATA_MAGIC: Final = b"CGMDv2:"
_REFUSED: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001 - their public names
_LOOK_S: Final = 0.5


class BrokerRefusedError(HeadwaterError):
    """A broker is there, and it and this client do not trust each other: waiting would change nothing."""


def ask(settings: StreamSettings, wait_s: float) -> None:
    """Ask the broker something.

    Raises:
        BrokerRefusedError: credentials or certificates are not accepted, on one side or the other.
        KafkaException: nobody answered in time.
    """
    refusals: list[KafkaError] = []

    def heard(error: KafkaError) -> None:
        if error.code() in _REFUSED:
            refusals.append(error)

    client = AdminClient(confluent_config(settings, error_cb=heard))
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            client.list_topics(timeout=min(_LOOK_S, wait_s))
        except KafkaException:
            client.poll(0)
            if refusals:
                brokers = ",".join(settings.brokers)
                raise BrokerRefusedError(
                    f"the broker at {brokers} and this client do not accept each other under "
                    f"security.protocol {settings.security.protocol}: {refusals[0].str()}; "
                    "look at security.username, security.password and the certificates"
                ) from None
            if time.monotonic() >= deadline_s:
                raise
        else:
            return


def confluent_config(settings: StreamSettings, **more: Any) -> dict[str, Any]:
    """Configuration of a librdkafka client; pass dots in names by `{"a.b": 1}` as `**`."""
    security = settings.security
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.brokers),
        "security.protocol": security.protocol,
        "logger": librdkafka_log,
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 2_000,
    }
    if security.tls:
        config |= _present(
            {
                "ssl.ca.location": security.ca_file,
                "ssl.certificate.location": security.certificate_file,
                "ssl.key.location": security.key_file,
                "ssl.key.password": security.key_password,
            }
        )
    if security.sasl:
        config |= {
            "sasl.mechanism": security.sasl_mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
        }
    return config | more


def aiokafka_config(settings: StreamSettings) -> dict[str, Any]:
    """Connection arguments of an aiokafka client."""
    security = settings.security
    config: dict[str, Any] = {
        "bootstrap_servers": list(settings.brokers),
        "security_protocol": security.protocol,
    }
    if security.tls:
        config["ssl_context"] = _ssl_context(security)
    if security.sasl:
        config |= {
            "sasl_mechanism": security.sasl_mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": security.password,
        }
    return config


def kafka_python_config(settings: StreamSettings) -> dict[str, Any]:
    """Connection arguments of a kafka-python client; the names are aiokafka's."""
    return aiokafka_config(settings)


def _ssl_context(security: SecuritySettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=security.ca_file)
    if security.certificate_file is not None:
        context.load_cert_chain(security.certificate_file, security.key_file, security.key_password)
    return context


def _present(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def group_metadata(group: str, generation: int, member: str) -> bytes:
    """A member's group metadata in librdkafka's serialised form (`rd_kafka_consumer_group_metadata_write`).

    With the real generation the broker refuses offsets of a member that a rebalance has left behind: a second
    wall beside the transactional id. The form is pinned by a test against librdkafka's own output.
    """
    no_instance = b"\x01"
    return b"".join(
        (
            _METADATA_MAGIC,
            generation.to_bytes(4, "little", signed=True),
            group.encode() + b"\0",
            member.encode() + b"\0",
            no_instance,
        )
    )

"""Topics that keep people's records longer than receipts of erasures say: told, and where they are ours put right."""

from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from headwater.check import check_topics
from headwater.settings import Settings
from streams.topics import declare, kept
from tests.shell.streams_harness import Deployment, deployment, wait_for

pytestmark = pytest.mark.broker

DAY_MS = 86_400_000


def configure(made: Deployment, role: str, **config: str) -> None:
    client = AdminClient({"bootstrap.servers": made.settings.brokers[0], "log_level": 0})
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, made.settings.topic(role), incremental_configs=entries)
    for future in client.incremental_alter_configs([resource]).values():
        future.result()


def outcomes(made: Deployment) -> dict[str, tuple[str, str]]:
    """What a second declaration says of topics that are not just there."""
    prefix = len(made.settings.topic_prefix)
    declared = declare(made.settings)
    return {one.name[prefix:]: (one.outcome, one.detail) for one in declared if one.outcome != "present"}


def test_a_topic_that_keeps_people_for_longer_is_named_and_ours_is_put_right(broker: str, tmp_path: Path) -> None:
    """By `topics create`, by `check` and by a worker that starts: which one, how long, and what to do."""
    with deployment(broker, tmp_path) as made:
        assert outcomes(made) == {}
        assert all(one.advice is None for one in kept(made.settings))
        configure(made, "impressions", retention_ms=str(30 * DAY_MS))
        configure(made, "users", max_compaction_lag_ms=str(2**63 - 1))
        configure(made, "dead-letters", retention_ms="-1", max_message_bytes="1048588")
        wait_for(lambda: sum(one.advice is not None for one in kept(made.settings)) == 3, "the changes")
        found = outcomes(made)
        assert {role: outcome for role, (outcome, _) in found.items()} == {
            "impressions": "keeps longer",
            "users": "keeps longer",
            "dead-letters": "altered",
        }
        assert "up to 31.0 days" in found["impressions"][1]
        assert "for ever" in found["users"][1]
        assert "retention.ms was -1" in found["dead-letters"][1]
        wait_for(lambda: "dead-letters" not in outcomes(made), "ours is as it should be")
        checked = check_topics(Settings(streams=made.settings), 10)
        assert checked.keeps_days[made.settings.topic("impressions")] == 31.0
        assert checked.keeps_days[made.settings.topic("users")] is None
        assert len(checked.warnings) == 2
        worker = made.worker()
        wait_for(lambda: worker.said().count("kept-too-long") == 2, "the worker's warning")
        patient = replace(made.settings, personal_retention_ms=30 * DAY_MS)
        assert [one.name for one in kept(patient) if one.advice] == [made.settings.topic("users")]

"""Which worker serves which partitions, and which keeps a warm copy: even, and with as few moves as that allows.

Faust's assignor evens partitions out only where nobody keeps a copy, and then moves them also where nothing changed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from faust.assignor.client_assignment import ClientAssignment
from faust.assignor.partition_assignor import PartitionAssignor

__all__ = ["EvenAssignor", "Share", "distribute"]


class Share(NamedTuple):
    """Partition numbers of one worker.

    Attributes:
        active: those it serves.
        standby: those it keeps a copy of.
    """

    active: frozenset[int] = frozenset()
    standby: frozenset[int] = frozenset()


def distribute(before: Mapping[str, Share], partitions: int, replicas: int) -> dict[str, Share]:
    """Give every partition to one worker, and copies of it to others.

    1. Nobody serves more than one partition more than another.
    2. Who serves a partition goes on, where that leaves 1 true; of two who claim it, the first by name.
    3. The rest goes to who keeps a copy, then to who has least.
    4. Copies stay with who has one or has just served; then they go to who has fewest.

    Args:
        before: what each worker had, by name; at least one worker.
        partitions: how many there are.
        replicas: copies of each; fewer where there are not so many other workers.
    """
    names = sorted(before)
    claims = _claims(before, partitions)
    least, more = divmod(partitions, len(names))
    fullest = sorted(names, key=lambda name: (-len(claims[name]), name))
    room = {name: least + (place < more) for place, name in enumerate(fullest)}
    active = {name: set(sorted(claims[name])[: room[name]]) for name in names}
    for partition in sorted(set(range(partitions)).difference(*active.values())):
        free = [name for name in names if len(active[name]) < room[name]]
        active[min(free, key=lambda name: (partition not in before[name].standby, len(active[name])))].add(partition)
    standby = _standbys(before, active, partitions, min(replicas, len(names) - 1))
    return {name: Share(frozenset(active[name]), frozenset(standby[name])) for name in names}


def _claims(before: Mapping[str, Share], partitions: int) -> dict[str, set[int]]:
    """What each served, if it is still there and nobody before claims it."""
    taken: set[int] = set()
    claims = {}
    for name in sorted(before):
        claims[name] = {at for at in before[name].active if 0 <= at < partitions} - taken
        taken |= claims[name]
    return claims


def _standbys(
    before: Mapping[str, Share], active: Mapping[str, set[int]], partitions: int, replicas: int
) -> dict[str, set[int]]:
    standby: dict[str, set[int]] = {name: set() for name in active}
    most = -(-partitions * replicas // len(active))
    for partition in range(partitions):
        others = [name for name in active if partition not in active[name]]
        warm = {name for name in others if partition in before[name].active | before[name].standby}

        def order(name: str, warm: set[str] = warm) -> tuple[bool, bool, int, str]:
            return len(standby[name]) >= most, name not in warm, len(standby[name]), name

        for name in sorted(others, key=order)[:replicas]:
            standby[name].add(partition)
    return standby


class EvenAssignor(PartitionAssignor):  # type: ignore[misc]
    """`distribute` in Faust's place; all topics of an app have equal partition counts, and go together."""

    def _perform_assignment(self, cluster: Any, member_metadata: Mapping[str, Any]) -> Any:
        before = {name: self._get_client_metadata(metadata) for name, metadata in member_metadata.items()}
        self._update_member_urls(before)
        topics = sorted({topic for metadata in member_metadata.values() for topic in metadata.subscription})
        partitions = min(len(cluster.partitions_for_topic(topic) or ()) for topic in topics)
        shares = distribute({name: _share(each.assignment) for name, each in before.items()}, partitions, self.replicas)
        assignments = {
            name: ClientAssignment(
                actives={topic: sorted(share.active) for topic in topics},
                standbys={topic: sorted(share.standby) for topic in topics},
            )
            for name, share in shares.items()
        }
        return self._protocol_assignments(
            assignments,
            self._get_changelog_distribution(assignments),
            self._get_external_topic_distribution(assignments),
            dict.fromkeys(topics, 0),
        )


def _share(assignment: ClientAssignment) -> Share:
    return Share(*(frozenset(tp.partition for tp in tps) for tps in (assignment.active_tps, assignment.standby_tps)))

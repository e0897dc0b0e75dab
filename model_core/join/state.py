"""What the join keeps of one user, which nests into the stored user record; and the clock of a stream task."""

from typing import Any, Final

from msgspec import Struct, field

from model_core.records import Candidates, PropensityKind, Served

__all__ = [
    "MAX_CLICK_IDS",
    "MAX_RECENT_ENTRIES",
    "UNSET",
    "Clock",
    "Entry",
    "JoinState",
    "OpenImpression",
    "Origin",
    "Past",
    "Sampled",
    "WaitingClick",
]

UNSET: Final = -1
"""M of a topic-partition that has no record yet: smaller than every event time."""

MAX_CLICK_IDS: Final = 4096
"""Click ids kept for one user. Nobody clicks as often within the horizon; a script may, and must not slow others."""

MAX_RECENT_ENTRIES: Final = 1024
"""History entries of one user that may still be reordered; the limit is there for the same reason."""


class Clock(Struct, array_like=True):
    """Event time of one stream task: M of its partition of each topic.

    Attributes:
        impressions_ms: largest event time on impressions that passed the checks up to lateness, or `UNSET`.
        clicks_ms: the same on clicks.
    """

    impressions_ms: int = UNSET
    clicks_ms: int = UNSET

    def watermark_ms(self) -> int:
        """The smaller M: what both topics have reached; `UNSET` until both have a record."""
        return min(self.impressions_ms, self.clicks_ms)


class Origin(Struct, array_like=True, frozen=True):
    """Where a record was read from; headers of its dead letter."""

    topic: str
    partition: int
    offset: int
    attempt: int = 1


class Entry(Struct, array_like=True, frozen=True):
    """One piece of joined feedback in the user's history.

    Attributes:
        time_ms: the larger of the click's time and its impression's.
        click_id: orders entries of one time; empty in those from `Past`.
        item_id: what it is about.
        kind: of the feedback.
        reward: that it brought.
        impression_id: that it belongs to; empty in those from `Past`.
    """

    time_ms: int
    click_id: str
    item_id: str
    kind: str
    reward: float
    impression_id: str


class Past(Struct, array_like=True):
    """The older history, where nothing is ever inserted again: columns, oldest first, some 12 bytes an entry.

    Attributes:
        item_ids: of each entry.
        kinds: of each entry, as an index into `kind_names`.
        rewards: of each entry; whole ones as ints, which are shorter.
        gaps_ms: from the entry before to each entry; the first one's means nothing.
        last_ms: time of the last entry.
        kind_names: every kind that stands here.
    """

    item_ids: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    rewards: list[int | float] = field(default_factory=list)
    gaps_ms: list[int] = field(default_factory=list)
    last_ms: int = 0
    kind_names: list[str] = field(default_factory=list)


class WaitingClick(Struct, array_like=True, frozen=True):
    """A click whose impression is not here; it keeps its bytes for a possible dead letter.

    Attributes:
        event_time_ms: of the click.
        click_id: of the click.
        impression_id: that it waits for.
        item_id: that was clicked.
        kind: of feedback.
        reward: `weights[kind] * value`.
        late: by the clicks topic's own M.
        origin: where it was read.
        key: as it stood there.
        value: as it stood there.
    """

    event_time_ms: int
    click_id: str
    impression_id: str
    item_id: str
    kind: str
    reward: float
    late: bool
    origin: Origin
    key: bytes | None
    value: bytes | None


class Sampled(Struct, array_like=True, frozen=True):
    """`Candidates` as they are kept: some 60 bytes and the ids, not 13 bytes more for each.

    Attributes:
        ids: sampled item ids, those of the slate first.
        sure: of them, how many were in the sample for certain.
        inclusion: probability of each of the others.
        count: how many candidates there were.
        hash: of all their ids, hexadecimal.
    """

    ids: list[str] = field(default_factory=list)
    sure: int = 0
    inclusion: float = 1.0
    count: int = 0
    hash: str = ""

    @classmethod
    def of(cls, candidates: Candidates) -> "Sampled":
        """Of a sample in which all that were not certain are equally probable, as the policy draws it."""
        probability = candidates.inclusion_probability
        inclusion = probability[-1] if probability else 1.0
        return cls(candidates.ids, probability.count(1.0), inclusion, candidates.count, candidates.hash)

    def whole(self) -> Candidates:
        """As a transition carries them."""
        probability = [1.0] * self.sure + [self.inclusion] * (len(self.ids) - self.sure)
        return Candidates(ids=self.ids, inclusion_probability=probability, count=self.count, hash=self.hash)


class OpenImpression(Struct, array_like=True):
    """An impression from its arrival until it is forgotten, settled or not.

    Attributes:
        impression_id: of the impression, and of its transition.
        event_time_ms: t.
        item_ids: the slate.
        positions: of each item.
        propensities: of each item, None where unknown. The engine may replace them, and `policy` and
            `model_version`, by those of the decision that the impression echoes.
        content: hash of the record, to tell a duplicate from a conflict.
        late: nobody's next, and its clicks enter no history.
        settled: its window and session have passed on both topics.
        revisions: how many went out; the number of the next.
        rewards: by index in the slate, the exact sum of its clicks; items nobody clicked are not in it.
        propensity_kind: what `propensities` mean.
        policy: logging policy.
        model_version: of the logging policy.
        decision_id: echoed.
        context: raw context inputs.
        extra: the record's unknown fields.
        features: the engine's own.
        targets: the engine's own.
        candidates: of the echoed decision, where there is one; the engine fills them in.
        served: of the echoed decision; the engine fills it in.
    """

    impression_id: str
    event_time_ms: int
    item_ids: list[str]
    positions: list[int]
    propensities: list[float | None]
    content: int
    late: bool = False
    settled: bool = False
    revisions: int = 0
    rewards: dict[int, list[float]] = field(default_factory=dict)
    propensity_kind: PropensityKind = "conditional"
    policy: str | None = None
    model_version: int | None = None
    decision_id: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    features: bytes = b""
    targets: bytes = b""
    candidates: Sampled | None = None
    served: Served | None = None


class JoinState(Struct, array_like=True):
    """What the join keeps of one user.

    Attributes:
        user_id: the user; empty before the first event.
        open: impressions that are not forgotten, by (event time, id).
        waiting: clicks without their impression, by (event time, id).
        click_ids: ids that are taken: hash of the content and event time; in order of arrival.
        pushed_out: the same of impressions that a cap pushed out, so that a duplicate opens none again.
        session_ends_ms: times, ascending, each once.
        recent: history entries that may still change or be asked for one by one, by (time, click id).
        past: the history before those.
    """

    user_id: str = ""
    open: list[OpenImpression] = field(default_factory=list)
    waiting: list[WaitingClick] = field(default_factory=list)
    click_ids: dict[str, tuple[int, int]] = field(default_factory=dict)
    pushed_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    session_ends_ms: list[int] = field(default_factory=list)
    recent: list[Entry] = field(default_factory=list)
    past: Past = field(default_factory=Past)

    @property
    def history(self) -> list[Entry]:
        """The whole retained history, oldest first: 50 entries or more, built at each call."""
        return _unpacked(self.past) + self.recent


def _unpacked(past: Past) -> list[Entry]:
    entries: list[Entry] = []
    time_ms = past.last_ms
    columns = zip(past.item_ids, past.kinds, past.rewards, past.gaps_ms, strict=True)
    for item_id, kind, reward, gap_ms in reversed(list(columns)):
        entries.append(Entry(time_ms, "", item_id, past.kind_names[kind], float(reward), ""))
        time_ms -= gap_ms
    entries.reverse()
    return entries

"""Every record on every topic: its fields, their meaning and units, and how it is decoded.

Times are milliseconds of event time since the Unix epoch. Keys and payloads are UTF-8; a payload is one JSON
object. Fields without a default are required. Unknown fields are carried over in `extra`, not refused.
"""

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from model_core.errors import DecodeError

__all__ = [
    "DEFAULT_USER",
    "EARLIEST_EVENT_TIME_MS",
    "MAX_DEPTH",
    "SCHEMA_VERSION",
    "Candidates",
    "Cause",
    "Click",
    "DeadLetterHeaders",
    "Erased",
    "Erasure",
    "Evaluation",
    "Heartbeat",
    "HistoryEntry",
    "Impression",
    "Item",
    "ModelManifest",
    "NextItem",
    "NextState",
    "Recommendation",
    "RecommendedItem",
    "Served",
    "SessionEnd",
    "SlateItem",
    "Source",
    "Step",
    "Tensor",
    "Transition",
    "TransitionItem",
    "TransitionState",
    "User",
    "decode",
    "decode_as",
    "encode",
]

SCHEMA_VERSION: Final = 1
"""Version of everything in this file; a change to a field is a new version and a line in the changelog."""

EARLIEST_EVENT_TIME_MS: Final = 946_684_800_000
"""2000-01-01T00:00:00Z: an event before it is `time-out-of-range`."""

DEFAULT_USER: Final = "__default__"
"""Reserved key of `recommendations`: what a user nobody has seen should get."""

MAX_DEPTH: Final = 64
"""Arrays and objects in one another that a payload may have; RFC 8259, section 9, leaves that to the reader."""

_EXTRA: Final = "__extra__"
"""Name under which unknown fields would stand on the wire, if they did not stand beside the known ones."""

Id = Annotated[str, Meta(min_length=1, max_length=512)]
TimeMs = Annotated[int, Meta(description="milliseconds since the Unix epoch, event time")]
Propensity = Annotated[float, Meta(gt=0.0, le=1.0, description="probability under the logging policy")]
PropensityKind = Literal["conditional", "marginal"]
"""`conditional`: given the items above, the draws and the candidates; `marginal`: whatever stands above."""


class SlateItem(Struct, frozen=True, omit_defaults=True):
    """One shown item.

    Attributes:
        item_id: what was shown.
        position: place in the slate, from 1; left out, its place in the list.
        propensity: probability of this item at its place; left out, unknown.
    """

    item_id: Id
    position: Annotated[int, Meta(ge=1)] | None = None
    propensity: Propensity | None = None


class Impression(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A slate that was shown to a user.

    Attributes:
        impression_id: unique for its user.
        user_id: the person; also the record's key.
        event_time_ms: when it was shown.
        slate: the shown items, no item twice.
        propensity_kind: what `slate[].propensity` means.
        policy: name of the logging policy.
        model_version: version of the model behind the policy.
        decision_id: the recommendation this impression shows, echoed.
        context: raw context inputs, such as the device.
        extra: unknown top-level fields, carried over to the transition.
    """

    impression_id: Id
    user_id: Id
    event_time_ms: TimeMs
    slate: list[SlateItem]
    propensity_kind: PropensityKind = "conditional"
    policy: str | None = None
    model_version: int | None = None
    decision_id: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict, name=_EXTRA)


class Click(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Feedback on one item of one impression.

    Attributes:
        click_id: unique for its user.
        impression_id: the impression it belongs to.
        user_id: the person; also the record's key.
        item_id: the item it is about.
        event_time_ms: when it happened.
        kind: the kind of feedback; it must be among the configured weights.
        value: strength; the reward is `weights[kind] * value`.
        extra: unknown top-level fields; part of the record's identity.
    """

    click_id: Id
    impression_id: Id
    user_id: Id
    item_id: Id
    event_time_ms: TimeMs
    kind: str = "click"
    value: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict, name=_EXTRA)


class Heartbeat(Struct, frozen=True, kw_only=True):
    """Moves event time on a partition without an event; its key is null.

    Attributes:
        heartbeat: tells it from the topic's other records.
        event_time_ms: the partition holds nothing older that is yet to come.
    """

    heartbeat: Literal[True]
    event_time_ms: TimeMs


class SessionEnd(Struct, frozen=True, kw_only=True):
    """The feed knows that the user's session ended.

    Attributes:
        session_end: tells it from the topic's other records.
        user_id: the person; also the record's key.
        event_time_ms: when it ended.
    """

    session_end: Literal[True]
    user_id: Id
    event_time_ms: TimeMs


class Item(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of an item of the catalogue; a null value on the topic removes it.

    Attributes:
        item_id: the item; also the record's key.
        title: short text.
        text: long text.
        categories: names of the categories it is in.
        features: named numbers, such as the price.
        vectors: named given vectors, such as an image's.
        available: False keeps it from new slates.
        extra: unknown top-level fields.
    """

    item_id: Id
    title: str = ""
    text: str = ""
    categories: list[str] = field(default_factory=list)
    features: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    available: bool = True
    extra: dict[str, Any] = field(default_factory=dict, name=_EXTRA)


class User(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Traits of a person; a null value on the topic erases the person.

    Attributes:
        user_id: the person; also the record's key.
        traits: raw inputs that change rarely, by name.
        extra: unknown top-level fields.
    """

    user_id: Id
    traits: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict, name=_EXTRA)


class RecommendedItem(Struct, frozen=True, kw_only=True):
    """One place of a published slate.

    Attributes:
        item_id: what to show.
        position: from 1.
        score: expected discounted reward under the posterior mean, in reward units.
        propensity: probability of the item here given the items above, the draws and the candidates.
        strategy: name of the strategy that chose the slate.
        reasons: candidate source, rules applied, and the features that counted most.
    """

    item_id: str
    position: int
    score: float
    propensity: float
    strategy: str
    reasons: list[str]


class Candidates(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The candidates a slate was chosen from, or a sample of them.

    Attributes:
        ids: sampled item ids; every item of the slate is among them.
        inclusion_probability: of each of `ids`, in (0, 1].
        count: how many candidates there were.
        hash: of all their ids, hexadecimal.
    """

    ids: list[str] = field(default_factory=list)
    inclusion_probability: list[float] = field(default_factory=list)
    count: int = 0
    hash: str = ""


class Served(Struct, frozen=True, kw_only=True):
    """Which of several strategies served, and what each of them would have done.

    Attributes:
        strategy: that the user had in this epoch.
        epoch: number of the epoch, its event time over the epoch's length.
        propensities: by strategy, the conditional probability of each shown item under that strategy alone.
    """

    strategy: str
    epoch: int
    propensities: dict[str, list[float]]


class Cause(Struct, frozen=True, kw_only=True):
    """The last record that was applied to the user before the slate was made.

    Attributes:
        topic: that it came from.
        partition: of the topic.
        offset: in the partition.
    """

    topic: str
    partition: int
    offset: int


class Recommendation(Struct, frozen=True, kw_only=True):
    """A fresh slate for one user.

    Attributes:
        decision_id: to be echoed by the impression that shows the slate.
        user_id: the person, or `__default__`.
        event_time_ms: of the cause.
        policy: name of the policy.
        model_version: of the model that scored; 0 before the first.
        watermark_ms: min of both topics' largest event times in this partition.
        slate: best first; may be shorter than asked, or empty.
        candidates: how many there were, and their hash.
        cause: what made it.
    """

    decision_id: str
    user_id: str
    event_time_ms: int
    policy: str
    model_version: int
    watermark_ms: int
    slate: list[RecommendedItem]
    candidates: Candidates
    cause: Cause


class HistoryEntry(Struct, frozen=True, array_like=True):
    """One piece of joined feedback, as an array of its fields in their order.

    Attributes:
        item_id: what the feedback was about.
        kind: of feedback.
        reward: `weights[kind] * value`.
        age_ms: time from the feedback to the state's time.
    """

    item_id: str
    kind: str
    reward: float
    age_ms: int


class TransitionState(Struct, frozen=True, kw_only=True):
    """What was known of the user strictly before an impression.

    Attributes:
        history: the last 50 pieces of feedback, oldest first.
        traits: of the user.
        context: of the impression.
        basis: model version of the features under which the user's head stood.
        candidates: of the decision this impression showed, where it is known.
        observation: numbers that a simulator gives of its state, `encoder.observation` of them; absent otherwise.
    """

    history: list[HistoryEntry] = field(default_factory=list)
    traits: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    basis: int = 0
    candidates: Candidates = field(default_factory=Candidates)
    observation: list[float] | msgspec.UnsetType = msgspec.UNSET


class TransitionItem(Struct, frozen=True, kw_only=True):
    """One shown item with its reward.

    Attributes:
        item_id: what was shown.
        position: from 1.
        propensity: as `propensity_kind` says; null where unknown.
        reward: the sum over its feedback in the window, or the default reward.
    """

    item_id: str
    position: int
    propensity: float | None
    reward: float


class NextItem(Struct, frozen=True, kw_only=True):
    """One item of the next slate; it carries no reward.

    Attributes:
        item_id: what was shown.
        position: from 1.
        propensity: probability under the next impression's logging policy; null where unknown.
    """

    item_id: str
    position: int
    propensity: float | None


class NextState(Struct, frozen=True, kw_only=True):
    """The state after the transition, as what changed since `state`.

    Attributes:
        append: feedback to append to `state.history`; ages at the next state's time (event time + elapsed).
        context: of the next impression; empty without one.
        candidates: of the next impression's decision, where it is known.
        observation: as in `state`, after the transition.
    """

    append: list[HistoryEntry] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    candidates: Candidates = field(default_factory=Candidates)
    observation: list[float] | msgspec.UnsetType = msgspec.UNSET


class Transition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One impression with its rewards and what followed.

    Attributes:
        transition_id: the impression's id.
        revision: 0, 1, 2, … without gaps; the last one stands.
        user_id: the person; also the record's key.
        event_time_ms: of the impression.
        settled: False for provisional ones and for those a cap pushed out.
        state: before the impression.
        slate: what was shown, with rewards.
        propensity_kind: what `slate[].propensity` means.
        reward: fsum over the slate.
        next_transition_id: the user's next impression within the session gap, or null.
        next_state: after this impression.
        next_slate: what the next impression showed.
        elapsed_ms: to the next state.
        terminated: a session end or an erasure says that nothing follows.
        truncated: nothing followed within the session gap.
        policy: logging policy.
        model_version: of the logging policy.
        served: of the decision this impression showed, where several strategies share the traffic.
        extra: the impression's unknown fields.
    """

    transition_id: str
    revision: int
    user_id: str
    event_time_ms: int
    settled: bool
    state: TransitionState
    slate: list[TransitionItem]
    propensity_kind: PropensityKind
    reward: float
    next_transition_id: str | None
    next_state: NextState
    next_slate: list[NextItem]
    elapsed_ms: int
    terminated: bool
    truncated: bool
    policy: str | None
    model_version: int | None
    served: Served | None = None
    extra: dict[str, Any] = field(default_factory=dict, name=_EXTRA)


class Erased(Struct, frozen=True, kw_only=True):
    """The person is erased; whoever keeps transitions drops theirs.

    Attributes:
        erased: tells it from the topic's other records.
        user_id: the person; also the record's key.
    """

    erased: Literal[True]
    user_id: Id


class Tensor(Struct, frozen=True, kw_only=True):
    """Shape and dtype of one tensor of a model.

    Attributes:
        shape: its dimensions.
        dtype: by safetensors' name, such as `F32`.
    """

    shape: list[int]
    dtype: str


class ModelManifest(Struct, frozen=True, kw_only=True):
    """Written after all parts of a model: until it is there, the model is not.

    Attributes:
        name: of the model.
        version: counts up from 1.
        parts: number of parts, under `name/version/part`.
        bytes: size of the joined parts.
        hash: SHA-256 of the joined parts, hexadecimal.
        tensors: by name.
        features: version of φ; heads of another one are rebuilt.
        parents: versions this one was trained from.
        metrics: loss, TD error, Q spread and the like at publication.
        trained_transitions: how many transitions it has learned from.
    """

    name: str
    version: int
    parts: int
    bytes: int
    hash: str
    tensors: dict[str, Tensor]
    features: int
    parents: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    trained_transitions: int = 0


class Step(Struct, frozen=True, kw_only=True):
    """One transaction of a stream task.

    Attributes:
        partition: the stream task.
        offsets: by source topic, `[first, last + 1]` of what it consumed.
        model_version: that it computed with.
        items_offsets: next offset to read of each partition of `items`.
        configuration: hash of all settings that shape the result.
        seed: of all randomness.
        users: how many users' records it wrote.
        records: of the source topics in it, topic by topic in the order of `offsets`, which may have gaps.
        opened: the first of a task that was opened anew: who was active before is forgotten.
        max_due_users: users without events that one transaction settles at most.
        max_active_users: users remembered for a refresh.
        cause: of a transaction that no source record asked for: what made slates fresh.
        refreshed: how many of the active users got their turn; null for the slate of `__default__` and for no cause.
        published: it brought the state of a backfill; what made that state is not in this topic.
    """

    partition: int
    offsets: dict[str, tuple[int, int]]
    model_version: int
    items_offsets: list[int]
    configuration: str
    seed: int
    users: int
    records: int = 0
    opened: bool = False
    max_due_users: int = 0
    max_active_users: int = 0
    cause: Cause | None = None
    refreshed: int | None = None
    published: bool = False


class Erasure(Struct, frozen=True, kw_only=True):
    """Receipt of an erasure; its key is the HMAC of the user's id.

    Attributes:
        erased: names of what was erased.
        partition: the stream task that held it.
        at_ms: the log time of the request.
        gone_by_ms: the date after which retention leaves no trace.
    """

    erased: list[str]
    partition: int
    at_ms: int
    gone_by_ms: int


class Evaluation(Struct, frozen=True, kw_only=True):
    """An off-policy estimate of a policy's value.

    Attributes:
        policy: the evaluation policy.
        estimator: name of the estimator.
        value: estimated reward of a slate, in reward units; null where the log allows no estimate at all.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        effective_sample_size: (sum of weights)² / sum of squared weights, in slates.
        mean_weight: of the importance weights; 1 where the logs cover the policy.
        largest_weight: of the importance weights.
        verdict: what follows from it, and why.
    """

    policy: str
    estimator: str
    value: float | None
    low: float | None
    high: float | None
    effective_sample_size: float
    mean_weight: float
    largest_weight: float
    verdict: str


class DeadLetterHeaders(Struct, frozen=True, kw_only=True):
    """Headers of a dead letter; key and value are the original bytes.

    Attributes:
        reason: why it was refused, one of the reasons below.
        topic: that it came from.
        partition: of the topic.
        offset: in the partition.
        error: what was wrong, for a person.
        schema_version: under which it was refused.
        attempt: how often it has been tried, from 1.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    error: str
    schema_version: int = SCHEMA_VERSION
    attempt: int = 1

    def pairs(self) -> list[tuple[str, bytes]]:
        """Kafka headers, in field order."""
        return [(name, str(getattr(self, name)).encode()) for name in self.__struct_fields__]


Source = Literal["impressions", "clicks", "items", "users"]
"""Topics that feeds write to."""

Record = Impression | Click | Heartbeat | SessionEnd | Item | User
_Extended = (Impression, Click, Item, User, Transition)
_T = TypeVar("_T", bound=Struct)


def decode(source: Source, value: bytes | None, *, max_bytes: int = 1_000_000) -> Record:
    """Decode one record of a source topic: checks of size, JSON and schema, in this order.

    Args:
        source: the topic it came from.
        value: the payload; a null is a removal that the caller has to see first.
        max_bytes: a larger payload is refused before it is parsed.

    Raises:
        DecodeError: `too-large`, `not-json` or `schema`.
    """
    if value is None:
        raise DecodeError("not-json", f"a null value means nothing on {source}; write a JSON object")
    if len(value) > max_bytes:
        raise DecodeError("too-large", f"{len(value)} bytes; at most {max_bytes} are taken: shorten the record")
    try:
        fields = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("not-json", f"not JSON: {error}") from error
    _check_depth(value, fields)
    if not isinstance(fields, dict):
        raise DecodeError("schema", f"expected a JSON object, got {type(fields).__name__}")
    _check_integers(fields)
    record = _convert(fields, _record_type(source, fields))
    if isinstance(record, Impression):
        return _with_positions(record)
    return record


def _check_depth(value: bytes, fields: Any) -> None:
    """Refuse what nests deeper than whoever walks it later can follow: Python's stack ends, at different depths."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return
    level = [fields]
    for _ in range(MAX_DEPTH):
        below = (one.values() if isinstance(one, dict) else one for one in level)
        level = [child for children in below for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise DecodeError("not-json", f"arrays and objects nest deeper than {MAX_DEPTH}")


def _check_integers(fields: dict[str, Any]) -> None:
    """Refuse what a user's stored state could not hold: MessagePack ends at 64 bits, JSON does not."""
    try:
        _storable.encode(fields)
    except OverflowError as error:
        raise DecodeError("schema", "an integer beyond 64 bits; write it as a string or a float") from error


_storable: Final = msgspec.msgpack.Encoder()


def _record_type(source: Source, fields: dict[str, Any]) -> type[Record]:
    if source in ("impressions", "clicks") and "heartbeat" in fields:
        return Heartbeat
    if source == "impressions" and "session_end" in fields:
        return SessionEnd
    return _SOURCE_TYPES[source]


_SOURCE_TYPES: Final[dict[Source, type[Record]]] = {
    "impressions": Impression,
    "clicks": Click,
    "items": Item,
    "users": User,
}


def _convert(fields: dict[str, Any], record_type: type[_T]) -> _T:
    fields.pop(_EXTRA, None)
    if fields.get("user_id") == DEFAULT_USER:
        raise DecodeError("schema", f"user_id {DEFAULT_USER} is reserved; name the user otherwise")
    known = _KNOWN.get(record_type)
    if known is not None and not known.issuperset(fields):
        fields[_EXTRA] = {name: fields[name] for name in fields if name not in known}
    try:
        return msgspec.convert(fields, record_type)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DecodeError("schema", str(error)) from error


_KNOWN: Final[dict[type[Struct], frozenset[str]]] = {
    record_type: frozenset(record_type.__struct_encode_fields__) for record_type in _Extended
}


def _with_positions(impression: Impression) -> Impression:
    """Fill in left-out positions; refuse an item that stands twice."""
    slate = impression.slate
    if len({shown.item_id for shown in slate}) != len(slate):
        raise DecodeError("schema", "an item stands twice in the slate")
    if any(shown.position is None for shown in slate):
        slate = [
            shown if shown.position is not None else SlateItem(shown.item_id, place, shown.propensity)
            for place, shown in enumerate(slate, start=1)
        ]
        return msgspec.structs.replace(impression, slate=slate)
    return impression


def decode_as(record_type: type[_T], value: bytes) -> _T:
    """Decode a record that Headwater itself wrote, such as a `Transition` or a `ModelManifest`.

    Raises:
        DecodeError: `not-json` or `schema`.
    """
    try:
        fields = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("not-json", f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DecodeError("schema", f"expected a JSON object, got {type(fields).__name__}")
    return _convert(fields, record_type)


_encoder: Final = msgspec.json.Encoder()


def encode(record: Struct) -> bytes:
    """Encode a record as one JSON object, its `extra` fields beside the known ones."""
    extra = getattr(record, "extra", None)
    if not extra:
        return _encoder.encode(record)
    fields = msgspec.to_builtins(record)
    del fields[_EXTRA]
    return _encoder.encode({**extra, **fields})

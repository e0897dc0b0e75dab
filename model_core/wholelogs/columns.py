"""Records as columns: what the join needs of each as numbers, names as their place in a list.

Whatever a typed decoder takes at once is what `intake.decoded` would take, field for field; anything else (unknown
fields, nested contexts, numbers beyond a float's whole ones, whatever is wrong) goes through `intake.decoded` itself.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from model_core import join, records, rewards
from model_core.config import JoinSettings
from model_core.errors import DecodeError, InvariantError
from model_core.intake import Role, SourceRecord, decoded
from model_core.join import Clock
from model_core.kernel import kernel
from model_core.records import (
    DEFAULT_USER,
    Click,
    Heartbeat,
    Id,
    Impression,
    Item,
    Propensity,
    PropensityKind,
    SessionEnd,
    SlateItem,
    User,
)

__all__ = [
    "BEAT",
    "CLICK",
    "END",
    "ERASURE",
    "IMPRESSION",
    "REFUSED",
    "ROLES",
    "TRAITS",
    "Columns",
    "Gathering",
    "Names",
]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float64]

ROLES: Final[tuple[Role, ...]] = ("impressions", "clicks", "users")
"""A record's role is its place here."""

IMPRESSION, CLICK, END, BEAT, TRAITS, ERASURE, REFUSED = range(7)
"""What a record is; `REFUSED` failed a check before that of lateness."""

_CHUNK: Final = 4096
_EXACT: Final = 2.0**53
"""A number from here on may have been written as a whole one that MessagePack could not hold."""

_Small = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Plain = str | bool | _Small | float | None


class _Shown(Struct, forbid_unknown_fields=True, gc=False):
    item_id: Id
    position: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    propensity: Propensity | None = None


class _Impression(Struct, forbid_unknown_fields=True, gc=False):
    impression_id: Id
    user_id: Id
    event_time_ms: int
    slate: list[_Shown]
    propensity_kind: PropensityKind = "conditional"
    policy: str | None = None
    model_version: _Small | None = None
    decision_id: str | None = None
    context: dict[str, _Plain] = {}


class _Click(Struct, forbid_unknown_fields=True, gc=False):
    click_id: Id
    impression_id: Id
    user_id: Id
    item_id: Id
    event_time_ms: int
    kind: str = "click"
    value: float = 1.0


_impressions: Final = msgspec.json.Decoder(_Impression)
_clicks: Final = msgspec.json.Decoder(_Click)
_FAST: Final[dict[Role, msgspec.json.Decoder[Any]]] = {"impressions": _impressions, "clicks": _clicks}


class Names:
    """Numbers names in the order in which they come.

    Attributes:
        number: of a name, given at the first asking.
    """

    def __init__(self) -> None:
        self.number: defaultdict[str, int] = defaultdict(lambda: len(self.number))
        self._all: list[str] = []

    def __len__(self) -> int:
        return len(self.number)

    def all(self) -> list[str]:
        """Every name, by its number; not to be changed."""
        if len(self._all) < len(self.number):
            self._all = list(self.number)
        return self._all


class Columns(NamedTuple):
    """Records by row, as they were gathered.

    Attributes:
        role: int8[n], place in `ROLES`.
        kind: int8[n], what it is.
        time_ms: int64[n], event time; −1 where there is none.
        user: int64[n], −1 where there is none.
        impression: int64[n], of impressions and clicks.
        click: int64[n], id of a click.
        item: int64[n], of a click.
        reward: float64[n], of a click.
        feedback: int64[n], kind of a click.
        slate_start: int64[n + 1], where an impression's places begin in the columns of the slates.
        shown: int64[places], item.
        position: int64[places], from 1.
    """

    role: Bytes
    kind: Bytes
    time_ms: Ints
    user: Ints
    impression: Ints
    click: Ints
    item: Ints
    reward: Floats
    feedback: Ints
    slate_start: Ints
    shown: Ints
    position: Ints


class _Chunk(NamedTuple):
    """Columns of some records, in their order; `places` is how many items each showed."""

    kind: Bytes
    time_ms: Ints
    user: Ints
    impression: Ints
    click: Ints
    item: Ints
    reward: Floats
    feedback: Ints
    places: Ints
    shown: Ints
    position: Ints


class Gathering:
    """Takes records topic by topic and makes columns of them.

    Attributes:
        users: names of users, and so on for the other names.
        refused: why a row was refused.
        contexts: of the impressions that have one.
        decisions: that impressions echo.
        traits: that `users` records bring.
        erasures: how many records erase their user.
    """

    def __init__(self, settings: JoinSettings) -> None:
        self.users, self.impressions, self.clicks, self.items, self.kinds = (Names() for _ in range(5))
        self.refused: dict[int, DecodeError] = {}
        self.contexts: dict[int, dict[str, Any]] = {}
        self.decisions: dict[int, str] = {}
        self.traits: dict[int, dict[str, Any]] = {}
        self.rows = 0
        self.erasures = 0
        self._settings = settings
        self._chunks: list[_Chunk] = []
        self._roles: list[Bytes] = []
        self._at: list[tuple[int, Callable[[int], SourceRecord]]] = []
        self._plain: list[tuple[int, Role, Sequence[bytes | None]]] = []

    def take(
        self, role: Role, source: Callable[[int], SourceRecord], values: Sequence[bytes | None], *, plain: bool
    ) -> range:
        """Take records of one topic.

        Args:
            role: of the topic.
            source: the n-th of them as it came; its offset is not asked for.
            values: their payloads.
            plain: every record has its own user as the key, and no log time: what needs no check.

        Returns:
            Their rows.
        """
        first = self.rows
        self._at.append((first, source))
        self._plain.append((first, role, values if plain else ()))
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            if plain:
                self._chunks.append(self._chunk(role, source, start, part))
            else:
                self._chunks.append(self._one_by_one(source, start, len(part)))
            self._roles.append(np.full(len(part), ROLES.index(role), np.int8))
            self.rows += len(part)
        return range(first, self.rows)

    def beats(self, role: Role, times_ms: Sequence[int]) -> range:
        """Take heartbeats that nobody wrote."""
        first, count = self.rows, len(times_ms)
        self._chunks.append(_blank(BEAT, np.array(times_ms, np.int64)))
        self._roles.append(np.full(count, ROLES.index(role), np.int8))
        self.rows += count
        return range(first, self.rows)

    def source(self, row: int) -> SourceRecord:
        """A record as it came."""
        first, source = next(each for each in reversed(self._at) if each[0] <= row)
        return source(row - first)

    def record(self, row: int) -> Impression | Click | Heartbeat | SessionEnd | User | None:
        """A record, decoded; it passed that check before, so a plain one's key is not looked at again."""
        first, role, values = next(each for each in reversed(self._plain) if each[0] <= row)
        value = values[row - first] if values else None
        if value is None:
            return decoded(self.source(row), self._settings)
        record = records.decode(role, value, max_bytes=self._settings.max_record_bytes)
        if isinstance(record, Item):
            raise InvariantError(f"row {row} is of {role}, where there are no items")
        return record

    def impression(self, row: int) -> Impression:
        """An impression, decoded."""
        record = self.record(row)
        if not isinstance(record, Impression):
            raise InvariantError(f"row {row} was an impression when it was gathered")
        return record

    def click(self, row: int) -> Click:
        """A click, decoded."""
        record = self.record(row)
        if not isinstance(record, Click):
            raise InvariantError(f"row {row} was a click when it was gathered")
        return record

    def columns(self) -> Columns:
        """Everything taken so far."""
        if not self._chunks:
            self.beats("impressions", [])
        chunk = _together(self._chunks)
        starts = np.zeros(len(chunk.places) + 1, np.int64)
        np.cumsum(chunk.places, out=starts[1:])
        return Columns(
            np.concatenate(self._roles),
            chunk.kind,
            chunk.time_ms,
            chunk.user,
            chunk.impression,
            chunk.click,
            chunk.item,
            chunk.reward,
            chunk.feedback,
            starts,
            chunk.shown,
            chunk.position,
        )

    def _chunk(self, role: Role, source: Callable[[int], SourceRecord], start: int, values: Sequence[Any]) -> _Chunk:
        fast = _decoded_fast(role, values, self._settings.max_record_bytes)
        if fast is not None:
            chunk = self._impressions(fast) if role == "impressions" else self._clicks(fast)
            if chunk is not None:
                return chunk
        if len(values) > 1:  # One that is out of the ordinary slows its neighbours alone.
            middle = max(1, len(values) // 8)
            rows, parts = self.rows, []
            for first in range(0, len(values), middle):
                parts.append(self._chunk(role, source, start + first, values[first : first + middle]))
                self.rows += len(parts[-1].kind)
            self.rows = rows
            return _together(parts)
        return self._slow(source(start))

    def _one_by_one(self, source: Callable[[int], SourceRecord], start: int, count: int) -> _Chunk:
        rows, parts = self.rows, []
        for place in range(count):
            parts.append(self._slow(source(start + place)))
            self.rows += 1
        self.rows = rows
        return _together(parts)

    def _impressions(self, records: Sequence[_Impression]) -> _Chunk | None:
        time_ms = _times([one.event_time_ms for one in records])
        if time_ms is None:
            return None
        places = np.array([len(one.slate) for one in records], np.int64)
        number = self.items.number
        shown = np.array([number[place.item_id] for one in records for place in one.slate], np.int64)
        position = _positions(places)
        given = [place.position for one in records for place in one.slate]
        if given.count(None) != len(given):
            position = np.where([each is None for each in given], position, [each or 0 for each in given])
        if _twice(places, shown) or any(one.user_id == DEFAULT_USER for one in records):
            return None
        for row, one in enumerate(records, start=self.rows):
            if one.context:
                self.contexts[row] = one.context
            if one.decision_id is not None:
                self.decisions[row] = one.decision_id
        users, ids = self.users.number, self.impressions.number
        return _blank(IMPRESSION, time_ms)._replace(
            user=np.array([users[one.user_id] for one in records], np.int64),
            impression=np.array([ids[one.impression_id] for one in records], np.int64),
            places=places,
            shown=shown,
            position=position,
        )

    def _clicks(self, records: Sequence[_Click]) -> _Chunk | None:
        settings = self._settings
        time_ms = _times([one.event_time_ms for one in records])
        if time_ms is None or any(one.user_id == DEFAULT_USER or abs(one.value) >= _EXACT for one in records):
            return None
        if any(one.kind not in settings.weights for one in records):
            return None
        reward = np.array([rewards.click_reward(one, settings) for one in records])  # type: ignore[arg-type]
        if not (np.abs(reward) <= rewards.MAX_REWARD).all():
            return None
        users, ids, clicks = self.users.number, self.impressions.number, self.clicks.number
        items, kinds = self.items.number, self.kinds.number
        return _blank(CLICK, time_ms)._replace(
            user=np.array([users[one.user_id] for one in records], np.int64),
            impression=np.array([ids[one.impression_id] for one in records], np.int64),
            click=np.array([clicks[one.click_id] for one in records], np.int64),
            item=np.array([items[one.item_id] for one in records], np.int64),
            reward=reward,
            feedback=np.array([kinds[one.kind] for one in records], np.int64),
        )

    def _slow(self, source: SourceRecord) -> _Chunk:  # noqa: PLR0911 - one for each kind of record
        """One record through the checks as the engine has them, but that of lateness."""
        try:
            record = decoded(source, self._settings)
            if record is not None and not isinstance(record, User):
                topic: records.Source = "clicks" if source.role == "clicks" else "impressions"
                join.check(record, Clock(), self._settings, topic, source.log_time_ms)
        except DecodeError as error:
            self.refused[self.rows] = error
            return self._one(REFUSED)
        if record is None:
            self.erasures += 1
            return self._one(ERASURE)
        if isinstance(record, Heartbeat):
            return self._one(BEAT, record.event_time_ms)
        user = self.users.number[record.user_id]
        if isinstance(record, User):
            self.traits[self.rows] = record.traits
            return self._one(TRAITS, user=user)
        if isinstance(record, SessionEnd):
            return self._one(END, record.event_time_ms, user)
        impression = self.impressions.number[record.impression_id]
        if isinstance(record, Impression):
            if record.context:
                self.contexts[self.rows] = record.context
            if record.decision_id is not None:
                self.decisions[self.rows] = record.decision_id
            return self._one(IMPRESSION, record.event_time_ms, user, impression, slate=record.slate)
        return self._one(CLICK, record.event_time_ms, user, impression, click=record)

    def _one(
        self,
        kind: int,
        time_ms: int = -1,
        user: int = -1,
        impression: int = -1,
        *,
        click: Click | None = None,
        slate: Sequence[SlateItem] = (),
    ) -> _Chunk:
        number = self.items.number
        return _Chunk(
            kind=np.array([kind], np.int8),
            time_ms=np.array([time_ms], np.int64),
            user=np.array([user], np.int64),
            impression=np.array([impression], np.int64),
            click=np.array([-1 if click is None else self.clicks.number[click.click_id]], np.int64),
            item=np.array([-1 if click is None else number[click.item_id]], np.int64),
            reward=np.array([0.0 if click is None else rewards.click_reward(click, self._settings)]),
            feedback=np.array([-1 if click is None else self.kinds.number[click.kind]], np.int64),
            places=np.array([len(slate)], np.int64),
            shown=np.array([number[place.item_id] for place in slate], np.int64),
            position=np.array([place.position or n for n, place in enumerate(slate, start=1)], np.int64),
        )


def _blank(kind: int, time_ms: Ints) -> _Chunk:
    """Records of one kind that have a time and nothing else."""
    count = len(time_ms)
    none, nothing = np.full(count, -1, np.int64), np.zeros(0, np.int64)
    return _Chunk(
        kind=np.full(count, kind, np.int8),
        time_ms=time_ms,
        user=none,
        impression=none,
        click=none,
        item=none,
        reward=np.zeros(count),
        feedback=none,
        places=np.zeros(count, np.int64),
        shown=nothing,
        position=nothing,
    )


def _together(chunks: Sequence[_Chunk]) -> _Chunk:
    return _Chunk(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))


def _decoded_fast(role: Role, values: Sequence[bytes | None], max_bytes: int) -> list[Any] | None:
    """What the typed decoder of a role makes of these; None where it does not take all of them."""
    decoder = _FAST.get(role)
    if decoder is None or any(value is None or len(value) > max_bytes for value in values):
        return None
    decode = decoder.decode
    try:
        return [decode(value) for value in values if value is not None]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _positions(places: Ints) -> Ints:
    """From 1 in each slate."""
    ends = np.cumsum(places)
    return np.arange(1, int(places.sum()) + 1) - np.repeat(ends - places, places)


def _times(times_ms: list[int]) -> Ints | None:
    """Event times that no check of time refuses; None where one might be, or does not fit."""
    try:
        columns = np.array(times_ms, np.int64)
    except OverflowError:
        return None
    within = (columns >= records.EARLIEST_EVENT_TIME_MS) & (columns < join.LATEST_EVENT_TIME_MS)
    return columns if within.all() else None


@kernel
def _twice(places: Ints, shown: Ints) -> bool:
    """Whether some slate shows an item twice."""
    start = 0
    for slate in range(places.size):
        for place in range(start, start + places[slate]):
            for other in range(start, place):
                if shown[other] == shown[place]:
                    return True
        start += places[slate]
    return False

"""What the join says of an event. Each outcome has a name, which its counter has too; none is an exception."""

from typing import Literal

from msgspec import Struct

from model_core.errors import Reason
from model_core.join.state import Entry, OpenImpression, Origin
from model_core.records import Transition

__all__ = ["Counted", "Dead", "Emitted", "EmittedCause", "Joined", "Opened", "Outcome"]

EmittedCause = Literal["settled", "corrected", "provisional", "state-cap"]
"""Why a revision went out."""


class Opened(Struct, frozen=True):
    """An impression was taken in: `impression`, or `late-impression`."""

    impression: OpenImpression

    @property
    def name(self) -> str:
        """Counter."""
        return "late-impression" if self.impression.late else "impression"


class Joined(Struct, frozen=True):
    """A click's reward was added to an item: `joined`, or `joined-late` where the click was late.

    Attributes:
        impression: that showed the item.
        index: of the item in the slate.
        reward: of the item, as now known.
        delta: how much it changed; the first click also takes the default reward's place.
        entry: what was added to the history; None where click or impression was late.
        late: of the click.
    """

    impression: OpenImpression
    index: int
    reward: float
    delta: float
    entry: Entry | None
    late: bool

    @property
    def name(self) -> str:
        """Counter."""
        return "joined-late" if self.late else "joined"


class Emitted(Struct, frozen=True):
    """A revision of a transition goes out.

    Its name is its cause, but `default` where an impression settled that nobody had clicked.

    Attributes:
        transition: complete, but for `state.traits` and `state.basis`.
        cause: why.
        impression: whose transition it is.
        next: the impression behind `next_transition_id`.
    """

    transition: Transition
    cause: EmittedCause
    impression: OpenImpression
    next: OpenImpression | None

    @property
    def name(self) -> str:
        """Counter."""
        return "default" if self.cause == "settled" and not self.impression.rewards else self.cause


class Dead(Struct, frozen=True):
    """A record becomes a dead letter; its name is the reason.

    Attributes:
        reason: header.
        error: header: what to mend.
        origin: where the record was read.
        key: its original key.
        value: its original bytes.
    """

    reason: Reason
    error: str
    origin: Origin
    key: bytes | None
    value: bytes | None

    @property
    def name(self) -> str:
        """Counter."""
        return self.reason


class Counted(Struct, frozen=True):
    """Something that only counts.

    `duplicate`: id and content are known. `early`: a click waits for its impression. `session-end`, and
    `late-session-end`, which does nothing. Caps let go of the oldest: `settled-cap` of settled impressions
    (late clicks on them become orphans), `click-ids-cap` of click ids (a duplicate of it would count again),
    `history-cap` of the reorderable history.
    """

    name: Literal[
        "duplicate", "early", "session-end", "late-session-end", "settled-cap", "click-ids-cap", "history-cap"
    ]


Outcome = Opened | Joined | Emitted | Dead | Counted

"""The join of clicks to impressions, sans I/O: in event time, one user at a time.

Rules (the contract has them with every bound):

1. M of a topic-partition is the largest event time among its records that passed the checks up to lateness. A
   record's own topic-partition alone decides whether it is `too-late` (below M - H) or *late* (below M -
   lateness).
2. What is late changes rewards alone: a late click enters no history, a late impression is a transition but
   nobody's next and its clicks enter no history, a late session end does nothing.
3. An id belongs to the first record that has it: the same content again is a `duplicate`, other content a
   conflict.
4. A click counts for its impression at t if its time is in [t - skew, t + window] and its item was shown.
   Before its impression it waits; without it, it ends as an orphan.
5. An impression settles when both M's, less the lateness, are past t + max(window, session gap). No event
   that is not late can change its transition after that, and one that is late changes its rewards alone.
6. Each change of a settled transition is one more revision. Revisions count 0, 1, 2, …; the last one stands.
7. So the last revisions do not depend on how the topics interleave, nor on disorder within the lateness.

An impression's life; `TRANSITIONS` is this table, and a test walks every line of it:

    phase    | input       | phase after | what goes out
    ---------+-------------+-------------+--------------------------------------------------------------
    unknown  | impression  | open        | Opened; Joined for each click that waited; with provisional
             |             |             |   transitions, a revision of the one before
    unknown  | click       | unknown     | `early`: it waits, an orphan if M of impressions > time + skew + H
    open     | impression  | open        | `duplicate` or `impression-conflict`
    open     | click       | open        | Joined; with provisional transitions, a revision at the first
    open     | due         | settled     | its first settled revision
    open     | state-cap   | unknown     | a revision with `settled` false
    settled  | impression  | settled     | `duplicate` or `impression-conflict`
    settled  | click       | settled     | Joined; one more revision, if a reward changed
    settled  | forget      | unknown     | nothing
    settled  | state-cap   | unknown     | `settled-cap`

`forget` comes once M of clicks > t + window + H and M of impressions > t + session gap + H: from then on a
click on it would be too late or outside its window, and an impression that asks for it as its next would be
too late.

Forgetting happens at the user's next step, before anything else: observably, it happens at its time.
"""

from collections.abc import Mapping
from typing import Final, Literal

from model_core.join.checks import LATEST_EVENT_TIME_MS, check, check_kind, too_late
from model_core.join.machine import apply
from model_core.join.outcomes import Counted, Dead, Emitted, EmittedCause, Joined, Opened, Outcome
from model_core.join.settling import due, settle
from model_core.join.state import UNSET, Clock, Entry, JoinState, OpenImpression, Origin, Past, Sampled, WaitingClick

__all__ = [
    "LATEST_EVENT_TIME_MS",
    "TRANSITIONS",
    "UNSET",
    "Clock",
    "Counted",
    "Dead",
    "Emitted",
    "EmittedCause",
    "Entry",
    "Input",
    "JoinState",
    "Joined",
    "OpenImpression",
    "Opened",
    "Origin",
    "Outcome",
    "Past",
    "Phase",
    "Sampled",
    "WaitingClick",
    "apply",
    "check",
    "check_kind",
    "due",
    "settle",
    "too_late",
]

Phase = Literal["unknown", "open", "settled"]
Input = Literal["impression", "click", "due", "state-cap", "forget"]

TRANSITIONS: Final[Mapping[tuple[Phase, Input], Phase]] = {
    ("unknown", "impression"): "open",
    ("unknown", "click"): "unknown",
    ("open", "impression"): "open",
    ("open", "click"): "open",
    ("open", "due"): "settled",
    ("open", "state-cap"): "unknown",
    ("settled", "impression"): "settled",
    ("settled", "click"): "settled",
    ("settled", "forget"): "unknown",
    ("settled", "state-cap"): "unknown",
}
"""Where each input takes an impression; what is not listed cannot happen."""

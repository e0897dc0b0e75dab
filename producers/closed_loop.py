"""The closed loop of the demo, sans I/O: recommendations and event time go in, impressions and clicks come out.

Each person sees one slate a round. In the arm `headwater` it is the newest slate that `recommendations`
holds for them, or that of `__default__` for somebody without one; in the arms `popularity` and `random` the
driver ranks the same candidates by the same rule: the catalogue less the items the person clicked, the
latest `seen_items` of them.

The loop is closed, in every arm alike: a person's next slate waits until `recommendations` brought one
caused by the person's last event. After `patience_steps` steps of waiting the person sees what there is,
and that is counted.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_core.records import DEFAULT_USER, Click, Impression, Recommendation
from producers import noise, slates
from producers.arms import ARMS, Arm, Popularity, arm_of
from producers.feeds.feed import FeedRecord, heartbeat, of
from producers.feeds.movielens import LIKED
from producers.people import People
from producers.slates import Shown
from producers.tally import Tally
from producers.warmup import POLICY as WARMUP

__all__ = ["ClosedLoop", "LoopSettings"]

_NEVER: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How the demo runs.

    Attributes:
        start_ms: event time of the first round.
        slate_size: places of a slate, in every arm.
        rounds: slates for each person.
        round_interval_ms: event time between two slates of a person.
        click_delay_ms: least and largest event time from impression to its first click.
        click_gap_ms: event time between two clicks of an impression.
        heartbeat_ms: event time between two heartbeats.
        patience_steps: steps a person waits for a fresh slate before seeing what there is.
        seen_items: clicked items kept out of a person's slates, the latest this many: as the worker's
            `policy.seen_items`.
        arms: which arms there are.
    """

    start_ms: int
    slate_size: int = 10
    rounds: int = 12
    round_interval_ms: int = 300_000
    click_delay_ms: tuple[int, int] = (2_000, 15_000)
    click_gap_ms: int = 1_000
    heartbeat_ms: int = 10_000
    patience_steps: int = 200
    seen_items: int = 128
    arms: tuple[Arm, ...] = ARMS


class ClosedLoop:
    """The people of all arms and what they see, step by step.

    Attributes:
        arm: the arm of each person, by place in `people.users`. tally: what was shown and clicked.
        counters: `fresh`, `stale` (an older slate after waiting), `default` (the slate for strangers),
        `fallback`
            (nothing at all was there: a random slate) by rounds of the arm `headwater`; `waited_out` in any
            arm; `repeated`, items shown though clicked before.
    """

    def __init__(self, people: People, settings: LoopSettings) -> None:
        self.people = people
        self.settings = settings
        self.tally = Tally(len(people.users), settings.rounds)
        self.counters: Counter[str] = Counter()
        self._users = {user.user_id: place for place, user in enumerate(people.users)}
        self._items = {item.item_id: place for place, item in enumerate(people.items)}
        self.arm: list[Arm] = [arm_of(user.user_id, settings.arms) for user in people.users]
        self.popularity = Popularity(len(people.items), settings.slate_size)
        self._clicked = np.zeros((len(people.users), len(people.items)), dtype=bool)
        self._seen: list[list[int]] = [[] for _ in people.users]
        for rating in people.history:
            if rating.value >= LIKED:
                self._remember(self._users[rating.user_id], self._items[rating.item_id])
        phase = noise.uniform(people.seed, "phase", noise.hashes(self._users))
        self._next_ms = settings.start_ms + (phase * settings.round_interval_ms).astype(np.int64)
        self._round = np.zeros(len(people.users), dtype=np.int64)
        self._last_event_ms = np.zeros(len(people.users), dtype=np.int64)
        self._newest_ms = np.full(len(people.users), _NEVER, dtype=np.int64)
        self._waited = np.zeros(len(people.users), dtype=np.int64)
        self._newest: dict[str, Recommendation] = {}
        self._pending: list[tuple[int, str, FeedRecord]] = []
        self._now_ms = settings.start_ms - 1
        self._heartbeat_ms = settings.start_ms

    @property
    def done(self) -> bool:
        """Whether everyone has seen every round and every click has been handed out."""
        return bool((self._round == self.settings.rounds).all()) and not self._pending

    @property
    def waiting(self) -> int:
        """How many people wait for a fresh slate at the last step's time."""
        return int(((self._next_ms <= self._now_ms) & (self._round < self.settings.rounds)).sum())

    def observe_warmup(self, record: FeedRecord) -> None:
        """Let popularity learn from a record of the warm-up; its clicks are known from the history."""
        impression = record.record
        if isinstance(impression, Impression) and impression.policy == WARMUP:
            user = self._users[impression.user_id]
            slate = [self._items[shown.item_id] for shown in impression.slate]
            self.popularity.observe_past(slate, self._clicked[user, slate].tolist())

    def on_recommendation(self, recommendation: Recommendation) -> None:
        """Take in a record of `recommendations`; the newest of a user stands."""
        self._newest[recommendation.user_id] = recommendation
        user = self._users.get(recommendation.user_id)
        if user is not None:
            self._newest_ms[user] = recommendation.event_time_ms

    def next_impressions(self, now_ms: int) -> list[FeedRecord]:
        """Everything that happens up to this event time, in event time: impressions, due clicks, heartbeats.

        Args:
            now_ms: event time; it must not run backwards.
        """
        waits = (self._next_ms <= now_ms) & (self._round < self.settings.rounds)
        fresh = self._newest_ms >= self._last_event_ms
        ready = np.flatnonzero(waits & (fresh | (self._waited >= self.settings.patience_steps)))
        self._waited[waits] += 1
        self.counters["waited_out"] += int((~fresh[ready]).sum())
        rates = self.popularity.rates() if len(ready) else np.zeros(0)
        happened = [self._show(user, max(int(self._next_ms[user]), self._now_ms + 1), rates) for user in ready.tolist()]
        while self._pending and self._pending[0][0] <= now_ms:
            happened.append(heapq.heappop(self._pending)[2])
        happened.sort(key=lambda record: record.event_time_ms or 0)
        self._now_ms = max(now_ms, self._now_ms)
        if now_ms - self._heartbeat_ms >= self.settings.heartbeat_ms:
            self._heartbeat_ms = now_ms
            happened += [heartbeat("impressions", now_ms), heartbeat("clicks", now_ms)]
        return happened

    def _show(self, user: int, time_ms: int, rates: NDArray[np.float64]) -> FeedRecord:
        """Show a slate now, plan its clicks, and return its impression."""
        round_ = int(self._round[user])
        shown = self._slate(user, round_, rates)
        user_id = self.people.users[user].user_id
        impression = shown.impression(f"r{round_}", user_id, time_ms, self.arm[user], self._item_id)
        self.counters["repeated"] += int(self._clicked[user, shown.items].sum())
        answers = self.tally.count(self.people, user, round_, shown.items, self._clicked[user])
        self.popularity.observe(shown.items, answers)
        clicked = [item for item, answer in zip(shown.items, answers, strict=True) if answer]
        self._last_event_ms[user] = self._plan_clicks(user, impression, clicked)
        self._round[user] += 1
        self._waited[user] = 0
        self._next_ms[user] = time_ms + self.settings.round_interval_ms
        return of(impression)

    def _slate(self, user: int, round_: int, rates: NDArray[np.float64]) -> Shown:
        size = self.settings.slate_size
        if self.arm[user] == "headwater" and (shown := self._recommended(user)) is not None:
            return shown
        candidates = np.ones(len(self.people.items), dtype=bool)
        seen = self._seen[user]
        candidates[seen[max(len(seen) - self.settings.seen_items, 0) :]] = False
        if self.arm[user] == "popularity":
            return slates.popular(rates, candidates, size)
        return slates.random(self.people.seed, user, round_, candidates, size)

    def _recommended(self, user: int) -> Shown | None:
        size = self.settings.slate_size
        if (found := self._newest.get(self.people.users[user].user_id)) is not None:
            is_fresh = self._newest_ms[user] >= self._last_event_ms[user]
            self.counters["fresh" if is_fresh else "stale"] += 1
            return slates.recommended(found, self._items, size, own=True)
        if (found := self._newest.get(DEFAULT_USER)) is not None:
            self.counters["default"] += 1
            return slates.recommended(found, self._items, size, own=False)
        self.counters["fallback"] += 1
        return None

    def _plan_clicks(self, user: int, impression: Impression, items: Sequence[int]) -> int:
        """Plan the clicks of an impression; returns the event time of the last of them, or else its own."""
        least_ms, largest_ms = self.settings.click_delay_ms
        share = float(noise.uniform(self.people.seed, "delay", user, int(self._round[user]))[0])
        first_ms = impression.event_time_ms + least_ms + int(share * (largest_ms - least_ms))
        time_ms = impression.event_time_ms
        for place, item in enumerate(items):
            time_ms = first_ms + place * self.settings.click_gap_ms
            click = Click(
                click_id=f"{impression.impression_id}:{self._item_id(item)}",
                impression_id=impression.impression_id,
                user_id=impression.user_id,
                item_id=self._item_id(item),
                event_time_ms=time_ms,
            )
            heapq.heappush(self._pending, (time_ms, f"{click.user_id}/{click.click_id}", of(click)))
            self._remember(user, item)
        return time_ms

    def _remember(self, user: int, item: int) -> None:
        self._clicked[user, item] = True
        self._seen[user].append(item)

    def _item_id(self, item: int) -> str:
        return self.people.items[item].item_id

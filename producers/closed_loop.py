"""The closed loop of the demo, sans I/O: event time and recommendations go in, impressions and clicks come out.

Each person sees one slate a round. In the arm `headwater` it is the newest slate that `recommendations` holds for them, or
that of `__default__` for somebody without one; in the arms `popularity` and `random` the driver ranks the
same candidates by the same rule: the catalogue less the items the person clicked, the latest `seen_items` of them.

The loop is closed, in every arm alike: a person's next slate waits until `recommendations` brought one caused by the
person's last event. After `patience_steps` steps of waiting the person sees what there is, and that is counted.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_core.records import DEFAULT_USER, Click, Impression, Recommendation, SlateItem
from producers import noise
from producers.arms import ARMS, Arm, Popularity, arm_of
from producers.feeds.feed import FeedRecord, heartbeat, of
from producers.feeds.movielens import LIKED
from producers.people import People
from producers.warmup import POLICY as WARMUP

__all__ = ["ClosedLoop", "LoopSettings", "Tally"]

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


class Tally:
    """What was shown and clicked, for each person and round.

    Attributes:
        shown: int[users, rounds], items shown; -1 where the round has not been.
        clicks: int[users, rounds].
        rated_clicks: int[users, rounds], clicks on pairs really rated as liked in the newer half.
        expected: float[users, rounds], expected clicks of the slate under the response model.
    """

    def __init__(self, users: int, rounds: int) -> None:
        self.shown = np.full((users, rounds), _NEVER)
        self.clicks = np.zeros((users, rounds), dtype=np.int64)
        self.rated_clicks = np.zeros((users, rounds), dtype=np.int64)
        self.expected = np.zeros((users, rounds))

    def complete_rounds(self, share: float = 1.0) -> int:
        """How many rounds at least this share of the people have been through."""
        been = (self.shown != _NEVER).mean(axis=0)
        return int(np.argmin(been >= share)) if (been < share).any() else self.shown.shape[1]


class ClosedLoop:
    """The people of all arms and what they see, step by step.

    Attributes:
        arm: the arm of each person, by place in `people.users`.
        tally: what was shown and clicked.
        counters: `fresh`, `stale` (an older slate after waiting), `default` (the slate for strangers), `fallback`
            (nothing at all was there: a random slate) by rounds of the arm `headwater`; `waited_out` in any arm;
            `repeated`, items shown though clicked before.
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
        """Let popularity learn from a record of the warm-up; an impression's clicks are known from its history."""
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
        fresh = self._newest_ms >= np.maximum(self._last_event_ms, 0)
        due = (self._next_ms <= now_ms) & (self._round < self.settings.rounds)
        ready = due & (fresh | (self._waited >= self.settings.patience_steps))
        self._waited[due & ~ready] += 1
        happened: list[FeedRecord] = []
        rates = self.popularity.rates() if ready.any() else np.zeros(0)
        for user in np.flatnonzero(ready).tolist():
            self.counters["waited_out"] += not bool(fresh[user])
            happened.append(
                self._show(user, max(int(self._next_ms[user]), self._now_ms + 1), bool(fresh[user]), rates)
            )
        while self._pending and self._pending[0][0] <= now_ms:
            happened.append(heapq.heappop(self._pending)[2])
        happened.sort(key=lambda record: record.event_time_ms or 0)
        self._now_ms = max(now_ms, self._now_ms)
        if now_ms - self._heartbeat_ms >= self.settings.heartbeat_ms:
            self._heartbeat_ms = now_ms
            happened += [heartbeat("impressions", now_ms), heartbeat("clicks", now_ms)]
        return happened

    def _show(self, user: int, time_ms: int, is_fresh: bool, rates: NDArray[np.float64]) -> FeedRecord:
        round_ = int(self._round[user])
        impression_id = f"r{round_}"
        slate, impression = self._impression(user, round_, time_ms, is_fresh, rates)
        answers = self._answers(user, round_, slate)
        delay = noise.uniform(self.people.seed, "delay", user, round_)[0]
        least, largest = self.settings.click_delay_ms
        click_ms = time_ms + least + int(delay * (largest - least))
        last_ms = time_ms
        for item in [item for item, answer in zip(slate, answers, strict=True) if answer]:
            last_ms = click_ms
            self._remember(user, item)
            self._plan(self._click(user, impression_id, item, click_ms))
            click_ms += self.settings.click_gap_ms
        self._last_event_ms[user] = last_ms
        self._round[user] += 1
        self._waited[user] = 0
        self._next_ms[user] = time_ms + self.settings.round_interval_ms
        return of(impression)

    def _impression(
        self, user: int, round_: int, time_ms: int, is_fresh: bool, rates: NDArray[np.float64]
    ) -> tuple[list[int], Impression]:
        user_id = self.people.users[user].user_id
        arm = self.arm[user]
        recommendation: Recommendation | None = None
        propensities: Sequence[float | None]
        if arm == "headwater":
            recommendation = self._recommendation(user_id, is_fresh)
        if recommendation is not None:
            slate = [self._items[place.item_id] for place in recommendation.slate][: self.settings.slate_size]
            propensities = [None] * len(slate)
            policy = recommendation.policy
        elif arm == "popularity":
            slate, propensities, policy = (
                self._popular(user, rates),
                [1.0] * self.settings.slate_size,
                "popularity",
            )
        else:
            slate, propensities = self._random(user, round_)
            policy = "random"
        impression = Impression(
            impression_id=f"r{round_}",
            user_id=user_id,
            event_time_ms=time_ms,
            slate=[
                SlateItem(self.people.items[item].item_id, place, propensity)
                for place, (item, propensity) in enumerate(zip(slate, propensities, strict=False), start=1)
            ],
            policy=policy,
            model_version=recommendation.model_version if recommendation else None,
            decision_id=recommendation.decision_id if recommendation else None,
            extra={"arm": arm},
        )
        return slate, impression

    def _recommendation(self, user_id: str, is_fresh: bool) -> Recommendation | None:
        found = self._newest.get(user_id)
        kind = "fresh" if is_fresh else "stale"
        if found is None:
            found = self._newest.get(DEFAULT_USER)
            kind = "default" if found is not None else "fallback"
        self.counters[kind] += 1
        return found

    def _candidates(self, user: int) -> NDArray[np.bool_]:
        candidates = np.ones(len(self.people.items), dtype=bool)
        candidates[self._seen[user][-self.settings.seen_items :]] = False
        return candidates

    def _popular(self, user: int, rates: NDArray[np.float64]) -> list[int]:
        order = np.argsort(np.where(self._candidates(user), -rates, np.inf), kind="stable")
        best: list[int] = order[: self.settings.slate_size].tolist()
        return best

    def _random(self, user: int, round_: int) -> tuple[list[int], list[float]]:
        candidates = np.flatnonzero(self._candidates(user))
        draws = noise.uniform(self.people.seed, "random", user, round_, candidates)
        slate: list[int] = candidates[np.argsort(draws)[: self.settings.slate_size]].tolist()
        return slate, [1.0 / (len(candidates) - place) for place in range(len(slate))]

    def _answers(self, user: int, round_: int, slate: list[int]) -> list[bool]:
        """What the person clicks of the slate, counted."""
        asked = np.array([user]), np.array([round_]), np.array([slate], dtype=np.int64)
        before = self._clicked[user, asked[2]]
        answers: list[bool] = self.people.answers(*asked, before)[0].tolist()
        self.counters["repeated"] += int(before.sum())
        tally = self.tally
        tally.shown[user, round_] = len(slate)
        tally.clicks[user, round_] = sum(answers)
        tally.rated_clicks[user, round_] = self.people.liked_later()[user, asked[2][0]][answers].sum()
        tally.expected[user, round_] = self.people.click_probability(asked[0], asked[2], before).sum()
        self.popularity.observe(slate, answers)
        return answers

    def _remember(self, user: int, item: int) -> None:
        self._clicked[user, item] = True
        self._seen[user].append(item)

    def _plan(self, click: Click) -> None:
        heapq.heappush(self._pending, (click.event_time_ms, f"{click.user_id}/{click.click_id}", of(click)))

    def _click(self, user: int, impression_id: str, item: int, time_ms: int) -> Click:
        item_id = self.people.items[item].item_id
        return Click(
            click_id=f"{impression_id}:{item_id}",
            impression_id=impression_id,
            user_id=self.people.users[user].user_id,
            item_id=item_id,
            event_time_ms=time_ms,
        )

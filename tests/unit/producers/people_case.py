"""A small, made-up population and recommender for the tests of the demo's parts."""

import zipfile
from pathlib import Path

from model_core.records import Candidates, Cause, Impression, Recommendation, RecommendedItem
from producers.closed_loop import ClosedLoop, LoopSettings
from producers.feeds import FeedRecord
from producers.people import People
from producers.simulate import PopulationSettings, simulated_people

START_MS = 1_700_000_000_000
SMALL = PopulationSettings(users=60, items=120, genres=4, themes=3, crowds=4, ratings=(6, 12))

RATINGS = [
    (user, item, 1 + (user * 7 + item * 3) % 5, 880_000_000 + 100 * item)
    for user in range(1, 7)
    for item in range(1, 11)
]


def movielens_wheel(folder: Path, ratings: list[tuple[int, int, int, int]] | None = None) -> Path:
    """A zip laid out as RecBole's wheel, with 6 people, 12 films and the given ratings."""
    ratings = RATINGS if ratings is None else ratings
    rows = [f"{user}\t{item}\t{value}\t{seconds}" for user, item, value, seconds in ratings]
    films = [f'{item}\tFilm "{item}"\t{1980 + item}\tDrama Film-Noir' for item in range(1, 12)]
    films.append("12\tunkonwn\tunkonwn\tunknown")
    people = [f"{user}\t{10 * user}\tF\twriter\t0000{user}" for user in range(1, 7)]
    path = folder / "recbole.zip"
    root = "recbole/dataset_example/ml-100k/ml-100k"
    with zipfile.ZipFile(path, "w") as archive:
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        archive.writestr(f"{root}.inter", "\n".join([header, *rows]) + "\n")
        header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        archive.writestr(f"{root}.item", "\n".join([header, *films]) + "\n")
        header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"
        archive.writestr(f"{root}.user", "\n".join([header, *people]) + "\n")
    return path


def small_people(seed: int = 1) -> People:
    return simulated_people(seed=seed, population=SMALL)


def recommendation(people: People, user_id: str, time_ms: int, items: list[int], decision: str = "d") -> Recommendation:
    return Recommendation(
        decision_id=decision,
        user_id=user_id,
        event_time_ms=time_ms,
        policy="thompson",
        model_version=3,
        watermark_ms=time_ms,
        slate=[
            RecommendedItem(
                item_id=people.items[item].item_id,
                position=place,
                score=0.5,
                propensity=0.25,
                strategy="thompson",
                reasons=[],
            )
            for place, item in enumerate(items, start=1)
        ],
        candidates=Candidates(),
        cause=Cause(topic="clicks", partition=0, offset=0),
    )


def run_loop(loop: ClosedLoop, *, step_ms: int = 5_000) -> list[FeedRecord]:
    """Run to the end; every event is answered at once with the oracle's slate of the moment."""
    people, published = loop.people, []
    places = {user.user_id: place for place, user in enumerate(people.users)}
    best = (-people.attraction()).argsort(axis=1, kind="stable")
    clicked: dict[int, set[int]] = {place: set() for place in places.values()}
    columns = {item.item_id: place for place, item in enumerate(people.items)}
    for rating in people.history:
        if rating.value >= 4:
            clicked[places[rating.user_id]].add(columns[rating.item_id])

    def slate_of(user: int) -> list[int]:
        slate = [item for item in best[user].tolist() if item not in clicked[user]]
        return slate[: loop.settings.slate_size]

    now_ms = loop.settings.start_ms
    for user_id, user in places.items():
        loop.on_recommendation(recommendation(people, user_id, now_ms - 1, slate_of(user)))
    while not loop.done:
        for record in loop.next_impressions(now_ms):
            published.append(record)
            if record.key is None:
                continue
            user = places[record.key]
            if not isinstance(record.record, Impression):
                clicked[user].add(columns[record.record.item_id])  # type: ignore[union-attr]
            assert record.event_time_ms is not None
            loop.on_recommendation(recommendation(people, record.key, record.event_time_ms, slate_of(user)))
        now_ms += step_ms
    return published


def settings(**changes: object) -> LoopSettings:
    base: dict[str, object] = {"start_ms": START_MS, "slate_size": 5, "rounds": 4, "patience_steps": 3}
    return LoopSettings(**{**base, **changes})  # type: ignore[arg-type]

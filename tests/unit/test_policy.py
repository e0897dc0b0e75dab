"""What is shown was allowed, and was shown with the probability that is stated."""

import math
from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from model_core import policy
from model_core.bandit import head
from model_core.candidates import Catalogue, Embedded
from model_core.config import PolicySettings, SlateSearch
from model_core.join import Sampled
from model_core.policy import Asked, Chosen
from model_core.records import Item
from model_core.rl.clicks import best_slates
from model_core.serving import ServingModel
from model_core.user_state import item_key
from tests.unit.learner_case import ENCODER
from tests.unit.test_follows import follows

MODEL = ServingModel.initial(ENCODER, seed=6)
NAMES = sorted((f"m{n}" for n in range(40)), key=item_key)
"""In the order of their rows."""

NOBODY = np.zeros(0, np.int64)
SETTINGS = PolicySettings(slate_size=3, candidates=12, temperature=0.5, epsilon=0.1, particles=3)

FloatArray = npt.NDArray[np.float64]


def embedded(count: int, settings: PolicySettings) -> Embedded:
    catalogue = Catalogue()
    for n in range(count):
        categories = [f"c{n % 3}"] if n % 5 else []
        catalogue.set(Item(item_id=NAMES[n], title=f"Film {n}", categories=categories, available=n != 4))
    return Embedded(catalogue, MODEL, settings)


def posterior(users: int) -> head.Posterior:
    """Heads that have seen something: each another mean and precision."""
    rng = np.random.default_rng(8)
    made = head.fresh(MODEL.prior, users)
    phi = rng.normal(size=(users * 6, MODEL.dimension))
    head.observe(made, np.repeat(np.arange(users), 6), phi, rng.normal(size=users * 6), np.full(users * 6, 0.5))
    return made


def vectors(users: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(9).normal(size=(users, MODEL.dimension)).astype(np.float32)


def chosen(
    settings: PolicySettings, count: int = 20, users: int = 8, seen: npt.NDArray[np.int64] = NOBODY
) -> list[Chosen]:
    asked = [Asked(key=1_000 + user, last_items=[], seen=seen) for user in range(users)]
    return policy.choose(asked, posterior(users), vectors(users), embedded=embedded(count, settings), settings=settings)


def shown(one: Chosen) -> list[str]:
    return [place.item_id for place in one.slate]


def plain_probability(scores: FloatArray, order: tuple[int, ...], temperature: float, epsilon: float) -> float:
    """Of an ordered slate under the components [M, n] and a uniform one: a product, written out."""
    components = [*[(row / temperature).tolist() for row in scores], [0.0] * scores.shape[1]]
    weights = [*[(1 - epsilon) / len(scores)] * len(scores), epsilon]
    total = 0.0
    for weight, logits in zip(weights, components, strict=True):
        left, product = list(range(len(logits))), weight
        for item in order:
            product *= math.exp(logits[item]) / sum(math.exp(logits[other]) for other in left)
            left.remove(item)
        total += product
    return total


@pytest.mark.parametrize("exploration", ["greedy", "ucb"])
def test_propensities_are_those_of_the_stated_mixture(exploration: Literal["greedy", "ucb"]) -> None:
    """On five items each place's propensity is a ratio of sums over all slates with that beginning."""
    settings = replace(SETTINGS, exploration=exploration, ucb_width=0.7)
    users = 8
    here, heads, u = embedded(6, settings), posterior(users), vectors(users)
    offered = np.flatnonzero(here.available)
    for user, one in enumerate(chosen(settings, 6, users)):
        mean = np.linalg.solve(heads.precision[user], heads.information[user])
        phi = u[user].astype(np.float64) * here.vectors[offered]
        scores = phi @ mean
        np.testing.assert_allclose(
            [place.score for place in one.slate],
            [scores[offered.tolist().index(NAMES.index(name))] for name in shown(one)],
            atol=1e-4,
        )
        if exploration == "ucb":
            covariance = np.linalg.inv(heads.precision[user])
            scores = scores + 0.7 * np.sqrt(np.einsum("nd,de,ne->n", phi, covariance, phi))
        every = {
            order: plain_probability(scores[None], order, settings.temperature, settings.epsilon)
            for order in permutations(range(len(offered)), 3)
        }
        assert sum(every.values()) == pytest.approx(1.0)
        order = tuple(offered.tolist().index(NAMES.index(name)) for name in shown(one))
        begin = [sum(p for other, p in every.items() if other[:length] == order[:length]) for length in range(4)]
        expected = [begin[place + 1] / begin[place] for place in range(3)]
        np.testing.assert_allclose([place.propensity for place in one.slate], expected, rtol=2e-3)
        assert {place.strategy for place in one.slate} == {exploration}


@pytest.mark.parametrize("exploration", ["thompson", "ucb", "greedy"])
@pytest.mark.parametrize("told", [{}, {NAMES[1]: 1.0, NAMES[3]: -0.5}])
def test_slates_come_as_often_as_their_propensities_say(
    exploration: Literal["thompson", "ucb", "greedy"], told: dict[str, float]
) -> None:
    """Over many draws for one person, with a table of what follows what and without.

    Under Thompson sampling each draw of particles has propensities of its own: there a slate's inverse ones, added
    up over the times that it came, are the number of draws.
    """
    draws, settings = 20_000, replace(SETTINGS, exploration=exploration, slate_size=2)
    table = follows({("before", item_id): weight for item_id, weight in told.items()}, lags=(1.0,)) if told else None
    same = posterior(1)
    heads = head.Posterior(np.repeat(same.precision, draws, 0), np.repeat(same.information, draws, 0))
    catalogue = Catalogue()
    for name in (*NAMES[:4], "before"):
        catalogue.set(Item(item_id=name, available=name != "before"))
    found = policy.choose(
        [Asked(key, ["before"], NOBODY) for key in range(draws)],
        heads,
        np.repeat(vectors(1), draws, 0),
        embedded=Embedded(catalogue, replace(MODEL, follows=table), settings),
        settings=settings,
    )
    came = Counter(tuple(shown(one)) for one in found)
    assert len(came) == 12
    stated: dict[tuple[str, ...], list[float]] = {}
    for one in found:
        stated.setdefault(tuple(shown(one)), []).append(math.prod(place.propensity for place in one.slate))
    if exploration != "thompson":
        assert sum(each[0] for each in stated.values()) == pytest.approx(1.0, abs=1e-6)
        for order, count in came.items():
            share = stated[order][0]
            assert count / draws == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws)), order
    for order, each in stated.items():
        weighed = sum(1 / propensity for propensity in each) / draws
        error = math.sqrt(sum(1 / propensity**2 for propensity in each) / draws - weighed**2) / math.sqrt(draws)
        assert weighed == pytest.approx(1.0, abs=4 * error), order


@pytest.mark.parametrize("exploration", ["thompson", "ucb", "greedy"])
def test_nothing_seen_or_unavailable_is_shown_or_sampled(exploration: Literal["thompson", "ucb", "greedy"]) -> None:
    """Both are out of the slate, out of the candidates and out of their count."""
    settings = replace(SETTINGS, exploration=exploration, epsilon=1.0)
    out = {NAMES[0], NAMES[1], NAMES[2], NAMES[4]}
    for one in chosen(settings, 12, 40, np.array([0, 1, 2])):
        assert not out & set(shown(one))
        assert not out & set(one.candidates.ids)
        assert one.candidates.count == 8


@pytest.mark.parametrize("cap", [1, 2])
def test_no_category_takes_more_places_than_its_cap(cap: int) -> None:
    """Whatever is drawn; items without a category are not capped."""
    settings = replace(SETTINGS, category_cap=cap, slate_size=8, epsilon=1.0, candidates=20)
    uncapped = 0
    for one in chosen(settings, 20, 40):
        numbers = [NAMES.index(name) for name in shown(one)]
        taken = Counter(n % 3 for n in numbers if n % 5)
        uncapped += sum(n % 5 == 0 for n in numbers)
        assert max(taken.values()) <= cap
        assert len(numbers) == min(8, 3 * cap + 4)
    assert uncapped


def test_the_cap_leaves_the_best_of_each_category() -> None:
    """What the rule takes out is what scores least in its category."""
    settings = replace(SETTINGS, exploration="greedy", category_cap=1, slate_size=8, candidates=20)
    free = replace(settings, category_cap=0, slate_size=19, candidates=20)
    for capped, whole in zip(chosen(settings), chosen(free), strict=True):
        best: dict[int, float] = {}
        for place in whole.slate:
            if (n := NAMES.index(place.item_id)) % 5:
                best[n % 3] = max(best.get(n % 3, -math.inf), place.score)
        left = {n % 3: place.score for place in capped.slate if (n := NAMES.index(place.item_id)) % 5}
        assert left == pytest.approx(best, abs=1e-6)


def test_a_least_score_shortens_the_slate() -> None:
    """Nothing below it is shown, and what remains has propensities that multiply to a probability."""
    settings = replace(SETTINGS, exploration="greedy", slate_size=6, least_score=0.3)
    slates = chosen(settings, users=40)
    assert len({len(one.slate) for one in slates}) > 2
    for one in slates:
        assert all(place.score >= 0.3 for place in one.slate)
        assert len(one.slate) == min(6, one.candidates.count)
        assert 0 < math.prod(place.propensity for place in one.slate) <= 1


def test_a_batch_changes_nobodys_slate() -> None:
    """A user alone gets what the user gets among others, to the bit."""
    users = policy._CHUNK + 3
    here, heads, u = embedded(20, SETTINGS), posterior(users), vectors(users)
    asked = [Asked(key=user, last_items=[], seen=np.array([user % 20])) for user in range(users)]
    together = policy.choose(asked, heads, u, embedded=here, settings=SETTINGS)
    for user in range(users):
        one = slice(user, user + 1)
        mine = head.Posterior(heads.precision[one], heads.information[one])
        (alone,) = policy.choose(asked[one], mine, u[one], embedded=here, settings=SETTINGS)
        assert alone == together[user]


def test_the_sample_holds_the_slate_and_states_its_inclusion() -> None:
    """The slate's items are in it for certain, the others with the share that was drawn."""
    settings = replace(SETTINGS, candidate_sample=7)
    for one in chosen(settings):
        sample = one.candidates
        assert sample.ids[:3] == shown(one)
        assert len(set(sample.ids)) == 7
        assert sample.count == 12
        assert sample.inclusion_probability == pytest.approx([1.0] * 3 + [4 / 9] * 4)


@pytest.mark.parametrize("size", [1, 3, 7, 12, 40])
def test_a_sample_is_kept_short_and_comes_back_whole(size: int) -> None:
    """Of no others, some, all of them and more than there are; an empty one, too."""
    for one in [*chosen(replace(SETTINGS, candidate_sample=size)), *chosen(SETTINGS, 0)]:
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(Sampled.of(one.candidates)), type=Sampled)
        assert kept.whole() == one.candidates


def test_the_sample_is_drawn_with_the_stated_probability() -> None:
    """Over 3 000 users of one mind every candidate outside the slate is sampled as often as it says, within 4.5 σ."""
    users, settings = 3_000, replace(SETTINGS, exploration="greedy", temperature=1e-7, epsilon=1e-9, candidate_sample=7)
    asked = [Asked(key=7_919 * user, last_items=[], seen=NOBODY) for user in range(users)]
    one, u = posterior(1), vectors(1)
    heads = head.Posterior(np.repeat(one.precision, users, 0), np.repeat(one.information, users, 0))
    here = embedded(20, replace(settings, new_share=0.0))
    made = policy.choose(asked, heads, np.repeat(u, users, 0), embedded=here, settings=settings)
    assert len({tuple(shown(chosen)) for chosen in made}) == 1
    others = Counter(name for chosen in made for name in chosen.candidates.ids[3:])
    assert len(others) == 9
    error = math.sqrt(users * 4 / 9 * 5 / 9)
    assert max(abs(count - users * 4 / 9) for count in others.values()) < 4.5 * error


def test_every_place_has_its_reasons() -> None:
    """Source, rules and the strongest feature, in this order."""
    for one in chosen(replace(SETTINGS, category_cap=2)):
        for place in one.slate:
            source, *rules, feature = place.reasons
            assert source.startswith("source:")
            assert rules == ["rule:unseen", "rule:category-cap"]
            assert feature.startswith("feature:")


def test_nothing_to_offer_gives_empty_slates() -> None:
    """Neither an empty catalogue nor one that was seen whole is an error."""
    assert [one.slate for one in chosen(SETTINGS, 0, 2)] == [[], []]
    assert [one.slate for one in chosen(SETTINGS, 6, 2, np.arange(6))] == [[], []]


def test_a_diverse_slate_has_less_alike_items_and_says_so() -> None:
    """With diversity a slate's items are less alike, its propensities are probabilities, and the rule is named."""
    plain = replace(SETTINGS, exploration="greedy", slate_size=6, temperature=0.05)
    users, alike = 60, []
    for settings in (plain, replace(plain, diversity=1.0)):
        slates = chosen(settings, 20, users)
        here = embedded(20, settings)
        rows = [[NAMES.index(name) for name in shown(one)] for one in slates]
        directions = here.inputs / np.linalg.norm(here.inputs, axis=1, keepdims=True)
        alike.append(np.mean([directions[row] @ directions[row].T for row in rows]))
        assert all(0 < place.propensity <= 1 for one in slates for place in one.slate)
        named = {"rule:diversity" in place.reasons for one in slates for place in one.slate}
        assert named == {settings.diversity > 0}
    assert alike[1] < alike[0] - 0.05


@pytest.mark.parametrize("search", ["optimal", "greedy", "top-k"])
def test_slates_by_clicks_are_the_best_slate_where_nothing_is_explored(search: SlateSearch) -> None:
    """At a temperature near 0 and the mean's scores, what is shown is what the search says of gains and odds."""
    model = ServingModel.initial(replace(ENCODER, choice=True), seed=6)
    settings = replace(SETTINGS, exploration="greedy", slate_search=search, temperature=1e-6, epsilon=1e-9)
    catalogue = Catalogue()
    for name in NAMES[:10]:
        catalogue.set(Item(item_id=name, title=f"Film {name}"))
    here, heads, u = Embedded(catalogue, model, settings), posterior(8), vectors(8)
    asked = [Asked(key=user, last_items=[], seen=NOBODY) for user in range(8)]
    slates = policy.choose(asked, heads, u, embedded=here, settings=settings)
    mean = np.linalg.solve(heads.precision, heads.information[:, :, None])[:, :, 0]
    gain = torch.from_numpy((mean * u) @ here.vectors.T.astype(np.float64))
    odds = torch.from_numpy(model.click_odds(u, here.vectors).astype(np.float64))
    expected = best_slates(gain, odds, 3, search).tolist()
    assert [{NAMES.index(name) for name in shown(one)} for one in slates] == [set(best) for best in expected]
    assert all(place.propensity > 0.99 for one in slates for place in one.slate)


def test_a_model_that_knows_no_clicks_is_served_by_its_scores() -> None:
    """The setting changes nothing then."""
    by_clicks = chosen(replace(SETTINGS, slate_search="optimal"))
    assert [shown(one) for one in by_clicks] == [shown(one) for one in chosen(SETTINGS)]

"""Long-term value: every learner in RecSim's interest evolution, through its own `Transition` records and models.

    python -m benchmarks.recsim [--quick] [--seed N] [--json] [--keep] [--part FIGURE]

Transitions are logged in a vectorised copy of the environment, and the model with the best return on sessions of
validation there is the one that counts; it is judged on fresh sessions of RecSim's own (`headwater[bench]`).

`slateq_published` is SlateQ in its published form, on interests alone. The value learners learn from random slates:
SlateQ's decomposition with Q(s, ⊥) and the sums that a recommender keeps of what was watched. REINFORCE, A2C and PPO
learn from their own transitions, two rounds of them at a time. Value learners serve the best slate, policy learners
the items of the highest scores. Beside each figure that is learned stand its learning curve (`…_curve`: minutes in the
copy after each round, mean over the seeds) and the processor's seconds of its learning and validation (`…_seconds`).
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks import interest_evolution as world
from benchmarks.interest_evolution import CANDIDATES, ITEMS, OBSERVED, PLACES, TOPICS, Choice, Floats, Ints, Policy
from benchmarks.report import Figure, main, mean
from model_core.bandit import slate as slates
from model_core.bandit.clicks import slate_scores
from model_core.config import EncoderSettings, LearnerSettings
from model_core.learner import Learner
from model_core.serving import ServingModel

COMMON: Final[dict[str, Any]] = {
    "discount": 0.998,
    "discount_unit_ms": 1_000,
    "weight_decay": 0.0,
    "batch_size": 512,
    "slate_size": PLACES,
    "candidates": 32,
    "next_item_weight": 0.0,
    "held_out_share": 0.0,
    "prior_transitions": 5_000,
    "prior_iterations": 1,
}
VALUE: Final[dict[str, Any]] = {
    "slate_value": "choice",
    "learning_rate": 4e-3,
    "learning_rate_half_life": 1_300,
    "target_rate": 0.02,
    "published": "average",
}
OWN: Final[dict[str, Any]] = {"learning_rate": 2e-3, "temperature": 0.5, "entropy_weight": 0.01}


class Learned(NamedTuple):
    """How a figure is learned.

    Attributes:
        settings: beside the common ones.
        target: minutes a session.
        rounds: of training and publishing, at most.
        observed: numbers of the observation: all, or interests alone.
    """

    settings: dict[str, Any]
    target: float
    rounds: int
    observed: int = OBSERVED


FIGURES: Final = {
    "slateq_published": Learned(
        {**VALUE, "algorithm": "q-learning", "slate_value": "clicks", "discount": 0.9}, 173.0, 10, TOPICS
    ),
    "q_learning": Learned({**VALUE, "algorithm": "q-learning"}, 250.0, 24),
    "sarsa": Learned({**VALUE, "algorithm": "sarsa"}, 172.1, 8),
    "reinforce": Learned({**OWN, "algorithm": "reinforce", "entropy_weight": 2e-3}, 190.0, 16),
    "a2c": Learned({**OWN, "algorithm": "a2c"}, 190.0, 10),
    "ppo": Learned({**OWN, "algorithm": "ppo"}, 190.0, 10),
}
"""Those that are learned."""
FIXED: Final[dict[str, tuple[Policy, float]]] = {
    "random": (world.random_slates, 160.0),
    "planner": (world.planned, 279.5),
}
"""Those that are not, and what they are to return."""


class Size(NamedTuple):
    """How much is learned from and judged.

    Attributes:
        log_sessions: of a hundred people, of random slates.
        rounds: of training and publishing, at most.
        value_steps: of training in each, for value learners.
        own_sessions: of a hundred people in each round of a policy learner.
        policy_steps: of training in each.
        validation: sessions in the copy, for each published model.
        judged: fresh sessions of RecSim's own, for each figure and seed.
        seeds: how many.
    """

    log_sessions: int
    rounds: int
    value_steps: int
    own_sessions: int
    policy_steps: int
    validation: int
    judged: int
    seeds: int


FULL: Final = Size(8, 30, 200, 1, 50, 300, 1_000, 3)
QUICK: Final = Size(2, 6, 100, 1, 30, 200, 100, 1)
_PEOPLE: Final = 100
_LOGGED: Final = 100_000
_STEPS: Final = 80
"""Of a session, about: the buffer of a policy learner holds the last two rounds."""


def encoder(*, observed: int, choice: bool) -> EncoderSettings:
    """Of the benchmark: ids say nothing, since a document is new each time."""
    return EncoderSettings(
        kind="gru",
        dimension=40,
        item_coordinates=6,
        hidden=64,
        embedding=24,
        id_rows=1,
        token_rows=1_024,
        tokens_per_item=2,
        observation=observed,
        choice=choice,
    )


def learner(settings: dict[str, Any], observed: int, seed: int, buffer_size: int) -> Learner:
    """A new one that knows the documents."""
    of = LearnerSettings(**{**COMMON, **settings, "buffer_size": buffer_size})
    made = Learner(of, encoder(observed=observed, choice=of.slate_value != "mean"), device="cpu", seed=seed)
    for item in ITEMS:
        made.set_item(item)
    return made


def scored(model: ServingModel) -> Callable[[Floats, Ints], Floats]:
    """What a worker scores a stranger's candidates by: φᵀm, or what makes the best slate of it."""
    vectors = model.item_vectors(ITEMS[::CANDIDATES])
    weights = model.prior.mean

    def scores(observation: Floats, topics: Ints) -> Floats:
        seen = observation[:, : model.settings.observation].astype(np.float32)
        nothing: list[dict[str, Any]] = [{}] * len(seen)
        hidden = model.observed(np.zeros((len(seen), model.hidden), np.float32), seen)
        user = model.user_vectors(hidden, nothing, nothing)
        found: Floats = np.take_along_axis((user * weights) @ vectors.T, topics, 1)
        if not model.settings.choice:
            return found
        odds = np.take_along_axis(model.click_odds(user, vectors).astype(np.float64), topics, 1)
        return slate_scores(found, odds, np.ones(topics.shape, bool), PLACES, "optimal")

    return scores


def served(model: ServingModel) -> Policy:
    """The slates of the highest scores."""
    scores = scored(model)
    return lambda observation, topics, _: world.best(scores(observation, topics))


def explored(model: ServingModel, temperature: float) -> Policy:
    """Slates drawn by the softmax of the scores, with their propensities."""
    scores = scored(model)

    def choose(observation: Floats, topics: Ints, rng: np.random.Generator) -> Choice:
        log_weights, logits = slates.components(scores(observation, topics)[:, None], temperature, 0.0)
        everything = np.ones(topics.shape, bool)
        drawn = slates.sample(
            log_weights, logits, everything, PLACES, rng.random(len(topics)), rng.gumbel(size=topics.shape)
        )
        return Choice(drawn.index, np.exp(drawn.log_conditional))

    return choose


def rounds(made: Learner, count: int, size: Size, seed: int, observed: int) -> Iterator[ServingModel]:
    """Models of a learner: a value learner's from one log of random slates, a policy learner's from its own."""
    people = world.Copy(_PEOPLE, 10_000 + seed)
    value = made.settings.algorithm in ("q-learning", "double-q-learning", "sarsa")
    policy: Policy = world.random_slates
    for number in range(count):
        sessions = size.own_sessions if not value else size.log_sessions if number == 0 else 0
        if sessions:
            for transition in world.record(people, policy, sessions, seed + 1_000 * number, f"r{number}", observed):
                made.add(transition)
        made.train(size.value_steps if value else size.policy_steps)
        model = made.publish()
        if not value:
            policy = explored(model, made.settings.temperature)
        yield model


class Judged(NamedTuple):
    """A figure of one seed.

    Attributes:
        minutes: a session, fresh ones of RecSim's own.
        curve: minutes in sessions of the copy after each round; of what is learned.
        seconds: of the processor that learning and validation took.
    """

    minutes: float
    curve: list[float]
    seconds: float


def learned(figure: str, seed: int, size: Size, say: Callable[[str], None]) -> tuple[ServingModel, list[float]]:
    """The model with the best validation, and the learning curve: minutes in sessions of the copy."""
    how = FIGURES[figure]
    value = "slate_value" in how.settings
    buffer_size = _LOGGED if value else 2 * _PEOPLE * size.own_sessions * _STEPS
    made = learner(how.settings, how.observed, seed, buffer_size)
    models = list(rounds(made, min(how.rounds, size.rounds), size, seed, how.observed))
    curve = [_validated(model, seed, size) for model in models]
    say(f"seed {seed}: {figure} " + " ".join(f"{point:.0f}" for point in curve))
    return models[int(np.argmax(curve))], curve


def _validated(model: ServingModel, seed: int, size: Size) -> float:
    """Mean minutes of the copy's sessions of validation."""
    people = world.Copy(_PEOPLE, 20_000 + seed)
    return float(world.play(people, served(model), size.validation // _PEOPLE, seed).mean())


def judged(policy: Policy, seed: int, size: Size) -> float:
    """Mean minutes of fresh sessions of RecSim's own."""
    people = world.Recsim(min(_PEOPLE, size.judged), 30_000 + seed)
    return float(world.play(people, policy, size.judged // people.count, seed).mean())


def run(figure: str, seed: int, size: Size, say: Callable[[str], None]) -> Judged:
    """A figure of one seed."""
    began_s, curve = time.process_time(), list[float]()
    if figure in FIXED:
        policy = FIXED[figure][0]
    else:
        model, curve = learned(figure, seed, size, say)
        policy = served(model)
    seconds = time.process_time() - began_s
    found = Judged(judged(policy, seed, size), curve, seconds)
    say(f"seed {seed}: {figure} {found.minutes:.1f} in {seconds:.0f} s")
    return found


def figures(figure: str, runs: list[Judged]) -> Iterator[Figure]:
    """The mean over the seeds; of what is learned the curve and the seconds too."""
    target = FIXED[figure][1] if figure in FIXED else FIGURES[figure].target
    sense: Any = "=" if figure in (*FIXED, "slateq_published") else ">="
    each = [run.minutes for run in runs]
    yield mean(figure, each, target=target, sense=sense, peer="RecSim, minutes a session")
    if figure in FIGURES:
        curve = tuple(np.mean([run.curve for run in runs], axis=0).tolist())
        yield Figure(f"{figure}_curve", max(curve), peer="copy, each round", runs=len(runs), values=curve)
        yield mean(f"{figure}_seconds", [run.seconds for run in runs])


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure that is asked for."""
    import torch  # noqa: PLC0415 - one thread, set before anything is computed

    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    say = functools.partial(print, file=sys.stderr, flush=True)
    for figure in options.part:
        yield from figures(figure, [run(figure, options.seed + number, size, say) for number in range(size.seeds)])


if __name__ == "__main__":
    main("recsim", __doc__, measure, parts=(*FIXED, *FIGURES))

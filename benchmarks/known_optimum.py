"""Every learner against problems whose optimum is known exactly, through its own `Transition` records and models.

    python -m benchmarks.known_optimum [--quick] [--seed N] [--json] [--keep] [--part LEARNER]

(a) One step: four groups of people, ten items, slates of two, logged by a known soft policy. (b) Three steps: one of
the two items shown is consumed, and what was consumed last decides what the next ones are worth, so that the best first
slate is not the most rewarded one. Its 31 states are enumerated, so V* and the value of any slate policy are exact.

What is judged is what is published: scores φᵀm under the prior's mean m. Value learners are greedy in them; policy
learners are the softmax policy itself, exploration included. Q-learning and REINFORCE learn (b) from
one fixed log; SARSA from it the value of the policy that logged it, and then the optimum in rounds of its own; A2C and
PPO learn both from their own transitions, never more than one version behind.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.report import Figure, main, mean
from model_core.bandit import slate as slates
from model_core.config import EncoderSettings, LearnerSettings
from model_core.learner import Learner
from model_core.records import HistoryEntry, Item, NextItem, NextState, Transition, TransitionItem, TransitionState
from model_core.serving import ServingModel

Floats = npt.NDArray[np.float64]
State = tuple[int, ...]

GROUPS: Final = 4
ITEMS_A: Final = 10
ITEMS_B: Final = 5
STEPS: Final = 3
PLACES: Final = 2
DISCOUNT: Final = 0.9
TARGET: Final = 0.98

ENCODER: Final = EncoderSettings(
    dimension=24, item_coordinates=4, hidden=16, embedding=16, id_rows=256, token_rows=256, tokens_per_item=4
)
COMMON: Final[dict[str, Any]] = {
    "discount": DISCOUNT,
    "discount_unit_ms": 1_000,
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "slate_size": PLACES,
    "candidates": 16,
    "negatives": 8,
    "next_item_weight": 0.0,
    "held_out_share": 0.0,
    "target_rate": 0.02,
    "prior_transitions": 8_192,
    "entropy_weight": 0.002,
    "trace_steps": STEPS,
    "future_credit": "consumed",
    "weight_cap": 100.0,
}
VALUE_LEARNERS: Final = ("q-learning", "double-q-learning", "sarsa")
FROM_LOG: Final[dict[str, dict[str, Any]]] = {
    "reinforce": {"learning_rate": 3e-3, "entropy_weight": 0.3, "entropy_half_life": 100, "critic": "average"}
}


class Own(NamedTuple):
    """How a policy learner learns from its own transitions.

    Attributes:
        settings: beside the common ones.
        rounds: of a model and transitions of its own.
        episodes: logged in each round.
        steps: of training in each.
    """

    settings: dict[str, Any]
    rounds: int
    episodes: int
    steps: int


OWN: Final = {
    "a2c": Own(
        {
            "temperature": 0.5,
            "learning_rate": 1e-3,
            "value_rate": 10.0,
            "prior_iterations": 1,
            "entropy_weight": 0.3,
            "entropy_half_life": 250,
            "batch_size": 400,
        },
        500,
        200,
        2,
    ),
    "ppo": Own({"learning_rate": 5e-3, "prior_iterations": 1, "entropy_weight": 0.01, "batch_size": 256}, 60, 500, 12),
}
"""PPO's clip says how far a round may go; A2C has nothing but small steps, of transitions that are used about twice."""


class Size(NamedTuple):
    """How much is learned from.

    Attributes:
        episodes: of a fixed log.
        value_steps: of training on it, for value learners.
        policy_steps: the same for policy learners.
        own_share: of the rounds of own transitions.
    """

    episodes: int
    value_steps: int
    policy_steps: int
    own_share: float


FULL: Final = Size(8_000, 400, 1_000, 1.0)
QUICK: Final = Size(3_000, 300, 500, 1 / 3)
SARSA_ROUNDS: Final = 6
SARSA_Q: Final[dict[str, Any]] = {"learning_rate": 1e-2, "learning_rate_half_life": 400, "published": "average"}
"""What SARSA learns the behaviour's Q by, exactly rather than soon: steps that grow short, and averaged weights."""


class Problem(NamedTuple):
    """A problem whose states are a context and what was consumed so far.

    Attributes:
        worth: float[contexts, ITEMS + 1, ITEMS], expected reward, by what was consumed last (the last row: nothing
            yet) and the item.
        steps: of an episode.
        consumes: whether one of the items shown, each as likely, is consumed, and rewards are what items are worth;
            else each item is clicked or not.
    """

    worth: Floats
    steps: int
    consumes: bool

    @property
    def items(self) -> int:
        """How many there are."""
        return int(self.worth.shape[2])

    def rewards(self, state: State) -> Floats:
        """Expected reward of each item, shown."""
        context, *consumed = state
        worth: Floats = self.worth[context, consumed[-1] if consumed else -1]
        return worth / PLACES if self.consumes else worth

    def states(self) -> list[State]:
        """All of them, latest first."""
        reached: list[list[State]] = [[(context,) for context in range(len(self.worth))]]
        while len(reached) < self.steps:
            reached.append([(*state, item) for state in reached[-1] for item in range(self.items)])
        return [state for layer in reversed(reached) for state in layer]


def one_step(seed: int) -> Problem:
    """(a): each group likes items of its own; another seed, other tastes."""
    rng = np.random.default_rng(1_000 + seed)
    worth = rng.uniform(0.05, 0.35, (GROUPS, ITEMS_A))
    for group in range(GROUPS):
        worth[group, rng.permutation(ITEMS_A)[:PLACES]] += 0.4
    return Problem(np.repeat(worth[:, None], ITEMS_A + 1, axis=1), 1, consumes=False)


def three_steps(seed: int) -> Problem:
    """(b): items 0 and 1 are liked at once and spoil what follows; 2 and 3 open the way to 4 and to each other."""
    rng = np.random.default_rng(2_000 + seed)
    worth = rng.uniform(0.0, 0.1, (ITEMS_B + 1, ITEMS_B))
    worth[-1] += [0.5, 0.45, 0.2, 0.15, 0.0]
    worth[:2] += [0.15, 0.1, 0.1, 0.05, 0.0]
    worth[2:5] += [0.1, 0.1, 0.65, 0.3, 0.85]
    return Problem(worth[None], STEPS, consumes=True)


class Policy(NamedTuple):
    """Ordered slates of a state, and their probabilities."""

    slates: Sequence[tuple[int, ...]]
    probability: Floats


Chooser = Callable[[State], Policy]


def plackett_luce(logits: Floats, epsilon: float = 0.0) -> Policy:
    """Every ordered slate, with its exact probability."""
    ordered = list(permutations(range(len(logits)), PLACES))
    weights, mixture = slates.components(logits[None, None], 1.0, epsilon)
    many = len(ordered)
    log = slates.log_probability(
        np.repeat(weights, many, 0),
        np.repeat(mixture, many, 0),
        np.ones((many, len(logits)), bool),
        np.array(ordered, np.int64),
    )
    return Policy(ordered, np.exp(log.sum(axis=1)))


def greedy(scores: Floats) -> Policy:
    """The best-scored items."""
    return Policy([tuple(np.argsort(-scores, kind="stable")[:PLACES].tolist())], np.ones(1))


def values(problem: Problem, policy: Chooser) -> dict[State, float]:
    """Exact expected return of each state, per place."""
    found: dict[State, float] = {}
    for state in problem.states():
        chosen = policy(state)
        worth = [slate_value(problem, found, state, shown) for shown in chosen.slates]
        found[state] = float(chosen.probability @ worth)
    return found


def optimum(problem: Problem) -> dict[State, float]:
    """V*, by enumeration of every slate of every state."""
    found: dict[State, float] = {}
    every = list(permutations(range(problem.items), PLACES))
    for state in problem.states():
        found[state] = max(slate_value(problem, found, state, shown) for shown in every)
    return found


def slate_value(problem: Problem, value: dict[State, float], state: State, shown: Sequence[int]) -> float:
    """What showing this slate is worth, per place, if values of later states are these."""
    now = float(problem.rewards(state)[list(shown)].mean())
    if len(state) == problem.steps:
        return now
    return now + DISCOUNT * float(np.mean([value[(*state, item)] for item in shown]))


def starting_value(problem: Problem, value: dict[State, float]) -> float:
    """Mean over the states where episodes start."""
    return float(np.mean([value[(context,)] for context in range(len(problem.worth))]))


def q_of_items(problem: Problem, policy: Chooser) -> dict[State, Floats]:
    """Q of each item under a policy: what it gets and what follows, over the slates of the policy that show it."""
    value = values(problem, policy)
    found = {}
    for state in problem.states():
        chosen, total, mass = policy(state), np.zeros(problem.items), np.zeros(problem.items)
        for shown, probability in zip(chosen.slates, chosen.probability, strict=True):
            places, reward = list(shown), problem.rewards(state)
            future = slate_value(problem, value, state, shown) - float(reward[places].mean())
            total[places] += probability * (reward[places] + future)
            mass[places] += probability
        found[state] = total / mass
    return found


def entries(state: State) -> list[HistoryEntry]:
    """What was consumed, as a history; the context is an earlier click on an item that is no longer offered."""
    return [HistoryEntry(item, "click", 1.0, 0) for item in names(state)]


def names(state: State) -> list[str]:
    """Ids of the items of the history."""
    context, *consumed = state
    return [f"context-{context}", *(f"m{item}" for item in consumed)]


def episodes(problem: Problem, policy: Chooser, count: int, rng: np.random.Generator, label: str) -> list[Transition]:
    """Transitions of people who are shown slates of this policy, with its exact propensities."""
    made: list[Transition] = []
    known = {state: policy(state) for state in problem.states()}
    prefixes = {state: _prefixes(chosen) for state, chosen in known.items()}
    for episode in range(count):
        state: State = (int(rng.integers(len(problem.worth))),)
        path: list[tuple[State, tuple[int, ...], list[float], int]] = []
        for _ in range(problem.steps):
            chosen = known[state]
            shown = chosen.slates[rng.choice(len(chosen.slates), p=chosen.probability / chosen.probability.sum())]
            consumed = shown[rng.integers(PLACES)]
            worth = problem.rewards(state)
            rewards = [float(worth[item] if problem.consumes else rng.random() < worth[item]) for item in shown]
            path.append((state, shown, rewards, consumed))
            state = (*state, consumed)
        made += [_transition(f"{label}-{episode}", step, path, prefixes) for step in range(len(path))]
    return made


def _prefixes(chosen: Policy) -> dict[tuple[int, ...], float]:
    """Probability of each prefix of a slate."""
    found: dict[tuple[int, ...], float] = {}
    for shown, probability in zip(chosen.slates, chosen.probability, strict=True):
        for length in range(PLACES + 1):
            found[shown[:length]] = found.get(shown[:length], 0.0) + float(probability)
    return found


def _transition(
    user: str,
    step: int,
    path: list[tuple[State, tuple[int, ...], list[float], int]],
    prefixes: dict[State, dict[tuple[int, ...], float]],
) -> Transition:
    state, shown, rewards, consumed = path[step]
    mass = prefixes[state]
    last = step + 1 == len(path)
    return Transition(
        transition_id=f"i{step}",
        revision=0,
        user_id=user,
        event_time_ms=1_000 * step,
        settled=True,
        state=TransitionState(history=entries(state)),
        slate=[
            TransitionItem(
                item_id=f"m{item}",
                position=place + 1,
                propensity=min(mass[shown[: place + 1]] / mass[shown[:place]], 1.0),
                reward=reward,
            )
            for place, (item, reward) in enumerate(zip(shown, rewards, strict=True))
        ],
        propensity_kind="conditional",
        reward=sum(rewards),
        next_transition_id=None if last else f"i{step + 1}",
        next_state=NextState(append=[] if last else [HistoryEntry(f"m{consumed}", "click", 1.0, 0)]),
        next_slate=[]
        if last
        else [
            NextItem(item_id=f"m{item}", position=n + 1, propensity=None) for n, item in enumerate(path[step + 1][1])
        ],
        elapsed_ms=1_000,
        terminated=last,
        truncated=False,
        policy=None,
        model_version=None,
    )


def scores(model: ServingModel, problem: Problem) -> dict[State, Floats]:
    """What a worker scores a stranger's items by: φᵀm under the published prior."""
    vectors = model.item_vectors([Item(item_id=f"m{item}") for item in range(problem.items)])
    mean = model.prior.mean
    found = {}
    for state in problem.states():
        x = model.item_inputs([Item(item_id=item_id) for item_id in names(state)])[None]
        hidden = model.encode(x, np.ones(x.shape[:2], np.float32), np.array([x.shape[1]]))[:, -1]
        found[state] = np.asarray((model.user_vectors(hidden, [{}], [{}]) * mean) @ vectors.T, np.float64)[0]
    return found


def logging(problem: Problem, seed: int) -> Chooser:
    """A soft policy that leans to what is rewarded at once, and knows it badly."""
    rng = np.random.default_rng(3_000 + seed)
    lean = {state: 1.5 * problem.rewards(state) + rng.normal(0, 0.3, problem.items) for state in problem.states()}
    return lambda state: plackett_luce(lean[state])


def overlap(problem: Problem, policy: Chooser) -> float:
    """Least probability that the log gives to any ordered slate of any state."""
    return min(float(policy(state).probability.min()) for state in problem.states())


def learner(algorithm: str, problem: Problem, seed: int, **more: Any) -> Learner:
    """A new one that knows the items."""
    made = Learner(LearnerSettings(**{**COMMON, "algorithm": algorithm, **more}), ENCODER, device="cpu", seed=seed)
    for item in range(problem.items):
        made.set_item(Item(item_id=f"m{item}"))
    return made


def served(made: Learner, problem: Problem, *, soft: bool) -> Chooser:
    """The policy of the model that the learner publishes now: its softmax, or the best-scored items."""
    found = scores(made.publish(), problem)
    temperature = made.settings.temperature
    return lambda state: plackett_luce(found[state] / temperature) if soft else greedy(found[state])


def share(problem: Problem, policy: Chooser) -> float:
    """Exact value of the policy over that of the best one."""
    return starting_value(problem, values(problem, policy)) / starting_value(problem, optimum(problem))


def from_log(algorithm: str, problem: Problem, seed: int, size: Size, **more: Any) -> Learner:
    """A learner after one fixed log."""
    own = {"batch_size": 256, "buffer_size": size.episodes * problem.steps, **FROM_LOG.get(algorithm, {}), **more}
    made = learner(algorithm, problem, seed, **own)
    rng = np.random.default_rng(seed)
    for transition in episodes(problem, logging(problem, seed), size.episodes, rng, "log"):
        made.add(transition)
    made.train(size.value_steps if algorithm in VALUE_LEARNERS else size.policy_steps)
    return made


def from_own(algorithm: str, problem: Problem, seed: int, size: Size) -> Learner:
    """A policy learner after rounds of its own transitions; the buffer holds those of the last two versions."""
    own = OWN[algorithm]
    buffer_size = 2 * own.episodes * problem.steps
    made = learner(algorithm, problem, seed, buffer_size=buffer_size, **own.settings)
    rng = np.random.default_rng(seed)
    policy = logging(problem, seed)
    for number in range(round(size.own_share * own.rounds)):
        for transition in episodes(problem, policy, own.episodes, rng, f"round-{number}"):
            made.add(transition)
        made.train(own.steps)
        policy = served(made, problem, soft=True)
    return made


def sarsa_rounds(problem: Problem, seed: int, size: Size) -> float:
    """Share of the optimum after SARSA has improved on its own transitions, softly greedy in its own Q."""
    count = size.episodes // 4
    made = learner("sarsa", problem, seed, batch_size=256, buffer_size=count * problem.steps)
    rng = np.random.default_rng(seed)
    policy = logging(problem, seed)
    for number in range(SARSA_ROUNDS):
        for transition in episodes(problem, policy, count, rng, f"round-{number}"):
            made.add(transition)
        made.train(size.value_steps // 2)
        found = scores(made.publish(), problem)
        policy = _softly(found)
    return share(problem, lambda state: greedy(found[state]))


def _softly(found: dict[State, Floats]) -> Chooser:
    return lambda state: plackett_luce(found[state] / 0.05, 0.1)


def sarsa_error(problem: Problem, seed: int, size: Size) -> float:
    """Root mean squared error of SARSA's Q of the behaviour, over Q's root mean square; all states alike."""
    longer = size._replace(value_steps=4 * size.value_steps)
    made = from_log("sarsa", problem, seed, longer, future_credit="slate", **SARSA_Q)
    exact, found = q_of_items(problem, logging(problem, seed)), scores(made.publish(), problem)
    layers = [state for state in problem.states() if len(state) <= problem.steps]
    wrong = np.concatenate([(found[state] - exact[state]) for state in layers])
    return float(np.sqrt(np.mean(wrong**2) / np.mean(np.concatenate([exact[state] for state in layers]) ** 2)))


def problems(seed: int) -> dict[str, float]:
    """What the problems and their logs are like."""
    a, b = one_step(seed), three_steps(seed)
    return {
        "logged_one_step": share(a, logging(a, seed)),
        "logged_three_steps": share(b, logging(b, seed)),
        "myopic_three_steps": share(b, lambda state: greedy(b.rewards(state))),
        "overlap_one_step": overlap(a, logging(a, seed)),
        "overlap_three_steps": overlap(b, logging(b, seed)),
    }


def learned(algorithm: str, seed: int, size: Size) -> dict[str, float]:
    """Every figure of a learner and a seed; its own figure is the worse of the two problems."""
    a, b = one_step(seed), three_steps(seed)

    def logged(problem: Problem) -> float:
        made = from_log(algorithm, problem, seed, size)
        return share(problem, served(made, problem, soft=algorithm not in VALUE_LEARNERS))

    def own(problem: Problem) -> float:
        return share(problem, served(from_own(algorithm, problem, seed, size), problem, soft=True))

    found: dict[str, float] = {}
    if algorithm == "sarsa":
        shares = logged(a), sarsa_rounds(b, seed, size)
        found["sarsa_q_error"] = sarsa_error(b, seed, size)
    elif algorithm in OWN:
        shares = own(a), own(b)
        found[f"{algorithm}_three_steps_fixed_log"] = logged(b)
    else:
        shares = logged(a), logged(b)
    name = algorithm.replace("-", "_")
    return {name: min(shares), f"{name}_one_step": shares[0], f"{name}_three_steps": shares[1], **found}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure that is asked for, of one seed or three."""
    import torch  # noqa: PLC0415 - one thread, set before anything is computed

    torch.set_num_threads(1)
    size, seeds = (QUICK, 1) if options.quick else (FULL, 3)
    for part in options.part:
        runs = []
        for seed in range(options.seed, options.seed + seeds):
            runs.append(problems(seed) if part == "problems" else learned(part, seed, size))
            said = ", ".join(f"{key} {value:.4f}" for key, value in runs[-1].items())
            print(f"seed {seed}: {said}", file=sys.stderr, flush=True)
        for key in runs[0]:
            target = {part.replace("-", "_"): TARGET, "sarsa_q_error": 1 - TARGET}.get(key)
            sense: Literal["<=", ">="] = "<=" if key == "sarsa_q_error" else ">="
            yield mean(key, [run[key] for run in runs], target=target, sense=sense, peer="exact")


if __name__ == "__main__":
    main("known_optimum", __doc__, measure, parts=("q-learning", "sarsa", "reinforce", "a2c", "ppo", "problems"))

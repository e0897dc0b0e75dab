"""Every default of the core, once: frozen, with its meaning, its unit and where the value comes from.

`check()` of each class raises `SettingsError` naming the key, the value and what was expected.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Final, Literal, get_args, get_type_hints

from model_core.errors import SettingsError
from model_core.reward_functions import FUNCTIONS

__all__ = [
    "POLICY_LEARNERS",
    "TEXT",
    "Algorithm",
    "Depth",
    "EncoderKind",
    "EncoderSettings",
    "EvaluationSettings",
    "Fusion",
    "HeadSettings",
    "JoinSettings",
    "LearnerSettings",
    "MetaUpdate",
    "Objective",
    "PolicySettings",
    "PretrainingSettings",
    "SlateSearch",
    "Strategy",
    "StrategySettings",
]

_MINUTE_MS = 60_000

Algorithm = Literal["double-q-learning", "q-learning", "sarsa", "reinforce", "a2c", "ppo"]
"""Names of the learners."""

POLICY_LEARNERS: Final = frozenset(("reinforce", "a2c", "ppo"))
"""Those whose scores are a policy's, and no expectation of a reward."""

MetaUpdate = Literal["empirical-bayes", "meta-prior", "anil", "fomaml", "reptile"]
"""Names of the ways in which the prior of the users' heads is learned."""

EncoderKind = Literal["gru", "trace-gru", "lstm", "causal-transformer", "masked-transformer"]
"""Names of the sequence encoders."""
Fusion = Literal["addition", "concatenation", "product", "gating", "attention"]
"""Names of the ways in which an item's feature groups become one vector."""

TEXT: Final = "text"
"""Name of the vector that an item's text gets."""

_GROUPS: Final = ("id", "facts", "words")
"""Feature groups of an item that are hashed."""

_NAME: Final = re.compile(r"[\w-]+")

_TEXT_LENGTH: Final = {"wordllama": 64}
"""Coordinates of a text vector by source: of wordllama's 256 the first 64, which its authors trained to do alone."""

Objective = Literal["click", "rating"]
"""What a pretrained model is fine-tuned for."""

Depth = Literal["frozen", "last", "all"]
"""How much of it changes then: the head alone, the layers before it too, everything."""

SlateSearch = Literal["optimal", "greedy", "top-k"]
"""How a slate is searched where one item of it is clicked at most."""


def _expect(holds: bool, key: str, value: object, expected: str) -> None:  # noqa: FBT001 - an assertion's argument
    if not holds:
        raise SettingsError(f"{key} = {value!r}: expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """How clicks are joined to impressions (CONTRACT, 'The join').

    Attributes:
        attribution_window_ms: a click counts until this long after its impression.
        allowed_lateness_ms: disorder within a topic up to this changes nothing.
        correction_horizon_ms: H; what is later than this is `too-late`.
        clock_skew_ms: a click may precede its impression by this; an event the log's clock.
        session_gap_ms: an impression follows another within this.
        weights: reward of one unit of `value`, by click kind; other kinds are `unknown-kind`.
        functions: by click kind, what is made of `value` before its weight: `click`, `purchase`, `rating`, `dwell` or
            `satisfaction` (`model_core.reward_functions`); a kind without one counts by `value` itself.
        objectives: by click kind, the objective that it serves, if any.
        pareto: weight of each objective; moving it moves along the Pareto front.
        default_reward: of an item nobody clicked.
        provisional_transitions: also emit at the first click and at the next impression.
        history_length: entries of `state.history`.
        max_open_impressions: per user; more push the oldest out (`state-cap`).
        max_waiting_clicks: per user, clicks without their impression; more push the oldest out.
        max_record_bytes: a larger payload is `too-large`; times the two caps above it bounds a user's record.
    """

    attribution_window_ms: int = 10 * _MINUTE_MS
    allowed_lateness_ms: int = _MINUTE_MS
    correction_horizon_ms: int = 60 * _MINUTE_MS
    clock_skew_ms: int = 5_000
    session_gap_ms: int = 30 * _MINUTE_MS
    weights: Mapping[str, float] = field(default_factory=lambda: {"click": 1.0})
    functions: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    pareto: Mapping[str, float] = field(default_factory=dict)
    default_reward: float = 0.0
    provisional_transitions: bool = False
    history_length: int = 50
    max_open_impressions: int = 64
    max_waiting_clicks: int = 64
    max_record_bytes: int = 100_000

    @property
    def settles_after_ms(self) -> int:
        """An impression settles once both topics have reached more than this past it."""
        return max(self.attribution_window_ms, self.session_gap_ms) + self.allowed_lateness_ms

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        for key in (
            "attribution_window_ms",
            "allowed_lateness_ms",
            "correction_horizon_ms",
            "clock_skew_ms",
            "session_gap_ms",
        ):
            _expect(getattr(self, key) >= 0, f"join.{key}", getattr(self, key), "milliseconds, 0 or more")
        _expect(
            self.allowed_lateness_ms <= self.correction_horizon_ms,
            "join.allowed_lateness_ms",
            self.allowed_lateness_ms,
            f"at most correction_horizon_ms, which is {self.correction_horizon_ms}",
        )
        _expect(bool(self.weights), "join.weights", dict(self.weights), "at least one kind")
        names, kinds = " or ".join(FUNCTIONS), "kinds that join.weights has"
        _expect(set(self.functions) <= set(self.weights), "join.functions", dict(self.functions), kinds)
        _expect(set(self.functions.values()) <= set(FUNCTIONS), "join.functions", dict(self.functions), names)
        _expect(set(self.objectives) <= set(self.weights), "join.objectives", dict(self.objectives), kinds)
        served = set(self.objectives.values())
        _expect(set(self.pareto) == served, "join.pareto", dict(self.pareto), f"a weight for each of {sorted(served)}")
        weights = (*self.weights.values(), *self.pareto.values())
        _expect(all(map(isfinite, weights)), "join.weights and join.pareto", weights, "finite numbers")
        for key in ("history_length", "max_open_impressions", "max_waiting_clicks", "max_record_bytes"):
            _expect(getattr(self, key) >= 1, f"join.{key}", getattr(self, key), "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """The Bayesian linear head that every user has.

    Attributes:
        event_ring: item events kept for rebuilding at a model swap.
    """

    event_ring: int = 64

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(self.event_ring >= 0, "head.event_ring", self.event_ring, "0 or more events")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """How a slate is chosen.

    Attributes:
        name: of the policy, as `policy` in recommendations and transitions says it.
        slate_size: places of a slate.
        exploration: `thompson` (particles of the posterior), `ucb` or `greedy` (the posterior mean).
        particles: posterior draws of particle Thompson sampling.
        thompson_scale: standard deviations of a draw; 1 is the posterior itself.
        ucb_width: standard deviations added to the mean.
        slate_search: what a slate is drawn by: the items' `scores`; or, with a model that knows clicks
            (`encoder.choice`), what makes the `optimal`, `greedy` or `top-k` slate of which one item is clicked.
        temperature: of the Plackett-Luce choice, in units of score.
        epsilon: weight of the uniform component, a floor under every slate's probability.
        candidates: how many are scored at most.
        popular_share: share of the candidates from the most rewarded items.
        new_share: share from items with few impressions.
        cooccurring_share: share from items clicked together with the user's last ones; the rest are nearest.
        candidate_sample: candidates a transition carries.
        category_cap: places of a slate that one category may take; 0 for no cap.
        diversity: score that an item loses for being like one above it, times how alike they are: the cosine of their
            features; 0 for none.
        least_score: an item that scores less is not shown; the slate may be shorter.
        seen_items: a user's clicked items that are kept out, the latest this many.
        decisions: decisions of a user that an impression may still echo.
        refresh_active_ms: users active within this get a fresh slate when a new model arrives.
    """

    name: str = "headwater"
    slate_size: int = 10
    exploration: Literal["thompson", "ucb", "greedy"] = "thompson"
    particles: int = 8
    thompson_scale: float = 0.25
    ucb_width: float = 1.0
    slate_search: Literal["scores", "optimal", "greedy", "top-k"] = "scores"
    temperature: float = 0.02
    epsilon: float = 0.02
    candidates: int = 200
    popular_share: float = 0.25
    new_share: float = 0.05
    cooccurring_share: float = 0.2
    candidate_sample: int = 32
    category_cap: int = 0
    diversity: float = 0.0
    least_score: float | None = None
    seen_items: int = 128
    decisions: int = 4
    refresh_active_ms: int = 10 * _MINUTE_MS

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(self.slate_size >= 1, "policy.slate_size", self.slate_size, "1 or more places")
        _expect(self.particles >= 1, "policy.particles", self.particles, "1 or more draws")
        _expect(self.temperature > 0, "policy.temperature", self.temperature, "more than 0")
        _expect(0 < self.epsilon <= 1, "policy.epsilon", self.epsilon, "more than 0, at most 1")
        for key in (
            "thompson_scale",
            "ucb_width",
            "diversity",
            "category_cap",
            "candidate_sample",
            "seen_items",
            "decisions",
        ):
            _expect(getattr(self, key) >= 0, f"policy.{key}", getattr(self, key), "0 or more")
        _expect(self.candidates >= self.slate_size, "policy.candidates", self.candidates, "at least slate_size")
        shares = self.popular_share + self.new_share + self.cooccurring_share
        _expect(0 <= shares <= 1, "policy.popular_share + new_share + cooccurring_share", shares, "0 to 1")
        hints = get_type_hints(PolicySettings)
        for key in ("exploration", "slate_search"):
            choices = get_args(hints[key])
            _expect(getattr(self, key) in choices, f"policy.{key}", getattr(self, key), " or ".join(choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to choose slates: what it does otherwise than `policy` says; None for as `policy` says.

    Attributes:
        learner: whose scores it goes by, as `learner.algorithm` names them; the trainer trains it beside that one, on
            the same transitions and features. None for `learner.algorithm` itself.
        exploration: `thompson`, `ucb` or `greedy`.
        particles: posterior draws of particle Thompson sampling.
        thompson_scale: standard deviations of a draw.
        ucb_width: standard deviations added to the mean.
        temperature: of the Plackett-Luce choice, in units of score.
        epsilon: weight of the uniform component.
    """

    learner: Algorithm | None = None
    exploration: Literal["thompson", "ucb", "greedy"] | None = None
    particles: int | None = None
    thompson_scale: float | None = None
    ucb_width: float | None = None
    temperature: float | None = None
    epsilon: float | None = None

    def applied(self, policy: PolicySettings) -> PolicySettings:
        """The policy's settings with this strategy's in their place."""
        own = {one.name: getattr(self, one.name) for one in fields(policy) if hasattr(self, one.name)}
        return replace(policy, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """The bandit over strategies, which share the traffic by what they bring.

    Attributes:
        arms: strategies by name, such as `[strategies.arms.warm]` with `temperature = 0.1`; none for the policy alone.
        epoch_ms: event time for which a user keeps a strategy.
        floor: share of the traffic that every strategy keeps, so that a change is seen.
        discount: of what an epoch brings after `discount_unit_ms`, from the user's first impression in it on.
        discount_unit_ms: the return of an epoch is Σ discount^(time since its first impression / this) reward.
        memory: weight of an epoch relative to the one after it: the old counts less, so that a change is followed.
        return_range: returns of an epoch are cut to this; intervals need bounds.
        confidence: of the intervals, at any time.
        transitions: latest ones that the shares are computed from.
    """

    arms: Mapping[str, Strategy] = field(default_factory=dict)
    epoch_ms: int = 24 * 60 * _MINUTE_MS
    floor: float = 0.05
    discount: float = 0.95
    discount_unit_ms: int = 30 * _MINUTE_MS
    memory: float = 0.9
    return_range: tuple[float, float] = (0.0, 10.0)
    confidence: float = 0.95
    transitions: int = 50_000

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(len(self.arms) != 1, "strategies.arms", list(self.arms), "none, or two or more")
        _expect("" not in self.arms, "strategies.arms", list(self.arms), "names")
        _expect(self.epoch_ms >= 1, "strategies.epoch_ms", self.epoch_ms, "1 or more")
        largest = 1 / max(len(self.arms), 1)
        _expect(0 < self.floor <= largest, "strategies.floor", self.floor, f"more than 0, at most {largest:.3g}")
        _expect(0 < self.discount <= 1, "strategies.discount", self.discount, "more than 0, at most 1")
        _expect(self.discount_unit_ms >= 1, "strategies.discount_unit_ms", self.discount_unit_ms, "1 or more")
        _expect(0 < self.memory <= 1, "strategies.memory", self.memory, "more than 0, at most 1")
        least, most = self.return_range
        _expect(least < most and isfinite(most - least), "strategies.return_range", self.return_range, "finite, rising")
        _expect(0 < self.confidence < 1, "strategies.confidence", self.confidence, "between 0 and 1")
        _expect(self.transitions >= 1, "strategies.transitions", self.transitions, "1 or more")

    def check_with(self, policy: PolicySettings) -> None:
        """Raise `SettingsError` where an arm makes no policy."""
        for name, arm in self.arms.items():
            known = get_args(Algorithm)
            _expect(arm.learner in (None, *known), f"strategies.arms.{name}.learner", arm.learner, " or ".join(known))
            try:
                arm.applied(policy).check()
            except SettingsError as error:
                raise SettingsError(f"strategies.arms.{name}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Off-policy evaluation: what is evaluated, and when support is too thin to speak of a value.

    The thresholds are judgement, set so that what they refuse is plainly broken.

    Attributes:
        transitions: latest ones that an evaluation rests on; 0 for no evaluations.
        least_users: a normal interval over fewer users is too narrow.
        least_effective_size: in records or slates.
        largest_share: of the sum of all weights that one weight may have.
        mean_weight_tolerance: a mean weight is refused outside 1 / (1 + this) to 1 + this. It is 1 in expectation where
            the log covers the policy and its propensities are true.
    """

    transitions: int = 20_000
    least_users: int = 30
    least_effective_size: float = 100.0
    largest_share: float = 0.1
    mean_weight_tolerance: float = 0.25

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(self.transitions >= 0, "evaluation.transitions", self.transitions, "0 or more")
        _expect(self.least_users >= 2, "evaluation.least_users", self.least_users, "2 or more")  # noqa: PLR2004
        _expect(self.least_effective_size >= 0, "evaluation.least_effective_size", self.least_effective_size, ">= 0")
        _expect(0 < self.largest_share <= 1, "evaluation.largest_share", self.largest_share, "more than 0, at most 1")
        _expect(
            self.mean_weight_tolerance > 0, "evaluation.mean_weight_tolerance", self.mean_weight_tolerance, "above 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """The sequence encoder and the features φ(s, a) = u(s) ⊙ v(a).

    Attributes:
        kind: what reads the history: `gru`, `trace-gru` or `lstm`, whose state moves one step an event, or
            `causal-transformer` or `masked-transformer`, which read it again (docs/algorithms/sequence-encoders.md has
            quality and cost).
        dimension: d of φ and of every user's head.
        item_coordinates: of them, those where u is 1: what an item is worth to anybody.
        hidden: size of the state that the encoder leaves; an LSTM's two halves are its output and its memory.
        embedding: size of item and token embeddings.
        id_rows: rows of the hashed table of item ids; two for each item.
        token_rows: rows of the hashed table of words, categories, numbers, traits and contexts.
        tokens_per_item: words of an item that count, the first ones; as many tokens of its categories and numbers.
        traces: decaying sums of past inputs beside the GRU of a `trace-gru`.
        layers: of a Transformer.
        heads: of a Transformer's attention; they divide `hidden`.
        window: entries that a Transformer's attention reaches back, of 50 that a transition carries.
        groups: hashed feature groups of an item that count: `id`, `facts` (categories and numbers), `words`.
        vectors: given vectors of an item that count, by name, with their length; `{ image = 512 }`, say.
        text: where an item's text gets a vector from: `none`, or `wordllama` (needs `headwater[text]`).
        fusion: how an item's feature groups become one vector: `addition`, `concatenation`, `product`, `gating` or
            `attention`.
        observation: numbers of a state's `observation`, which simulators give; 0 for none.
        choice: whether the model knows which of the items shown is clicked, if any, and what a step without a click is
            worth; `learner.slate_value` says when it has to.
    """

    kind: EncoderKind = "gru"
    dimension: int = 32
    item_coordinates: int = 6
    hidden: int = 32
    embedding: int = 32
    id_rows: int = 8192
    token_rows: int = 4096
    tokens_per_item: int = 24
    traces: int = 2
    layers: int = 2
    heads: int = 2
    window: int = 50
    groups: tuple[str, ...] = _GROUPS
    vectors: Mapping[str, int] = field(default_factory=dict)
    text: Literal["none", "wordllama"] = "none"
    fusion: Fusion = "addition"
    observation: int = 0
    choice: bool = False

    @property
    def vector_lengths(self) -> dict[str, int]:
        """Length of each vector of an item that counts, that of its text included, by name."""
        text = {TEXT: _TEXT_LENGTH[self.text]} if self.text != "none" else {}
        return {**text, **dict(sorted(self.vectors.items()))}

    @property
    def state(self) -> int:
        """Numbers in a user's state."""
        return self.hidden + (self.traces * self.embedding if self.kind == "trace-gru" else 0)

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        kinds = get_args(EncoderKind)
        _expect(self.kind in kinds, "encoder.kind", self.kind, " or ".join(kinds))
        _expect(
            self.dimension >= self.item_coordinates + 3, "encoder.dimension", self.dimension, "item_coordinates + 3"
        )
        for key in (
            "item_coordinates",
            "hidden",
            "embedding",
            "id_rows",
            "token_rows",
            "tokens_per_item",
            "traces",
            "layers",
            "heads",
            "window",
        ):
            _expect(getattr(self, key) >= 1, f"encoder.{key}", getattr(self, key), "1 or more")
        if self.kind == "lstm":
            _expect(self.hidden % 2 == 0, "encoder.hidden", self.hidden, "an even size for an LSTM's two halves")
        if self.kind.endswith("transformer"):
            _expect(self.hidden % self.heads == 0, "encoder.hidden", self.hidden, f"a multiple of {self.heads} heads")
        known = set(self.groups) <= set(_GROUPS) and len(set(self.groups)) == len(self.groups)
        _expect(known, "encoder.groups", self.groups, f"some of {', '.join(_GROUPS)}, none twice")
        _expect(bool(self.groups or self.vector_lengths), "encoder.groups", self.groups, "one or more, or vectors")
        _expect(
            all(_NAME.fullmatch(name) and length >= 1 for name, length in self.vectors.items()),
            "encoder.vectors",
            dict(self.vectors),
            "names of letters, digits, _ and -, and lengths of 1 or more",
        )
        _expect(
            self.text == "none" or TEXT not in self.vectors,
            "encoder.vectors",
            dict(self.vectors),
            f"no {TEXT!r}, which encoder.text = {self.text!r} gives",
        )
        _expect(self.fusion in get_args(Fusion), "encoder.fusion", self.fusion, " or ".join(get_args(Fusion)))
        _expect(self.observation >= 0, "encoder.observation", self.observation, "0 or more numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """How the trainer learns, and the empirical-Bayes prior.

    Attributes:
        algorithm: `double-q-learning`, `q-learning` or `sarsa` learn what items are worth; `reinforce`, `a2c` or `ppo`
            learn a policy from transitions with propensities.
        discount: γ of one `discount_unit_ms`.
        discount_unit_ms: γ^(elapsed_ms / discount_unit_ms).
        learning_rate: of Adam.
        learning_rate_half_life: training steps after which it is half, and so on; 0 for one that stays.
        value_rate: learning rate of the value head in units of `learning_rate`. It has to follow a policy that moves: a
            baseline that is wrong for some states praises, or blames, whatever was shown there.
        weight_decay: of Adam, decoupled.
        batch_size: transitions a step.
        buffer_size: transitions kept for replay.
        slate_size: k of the greedy slate in V(s).
        candidates: items sampled as candidates of the next state, shared by a batch.
        negatives: items sampled as negatives of the next-item loss, shared by a batch.
        id_dropout: share of the items that a training step sees without their ids, so that what an item says of itself
            learns to stand for it alone, as it has to for a new one.
        next_item_weight: of the next-item loss beside the TD loss.
        temperature: of the softmax policy that a policy learner trains, in units of score.
        entropy_weight: of the policy's entropy, which keeps a policy learner exploring.
        entropy_half_life: training steps after which that weight is half, and so on; 0 for one that stays. A policy
            that is kept soft until its network tells states apart ends higher, above all from one fixed log.
        critic: V in a policy learner's returns: the `latest`, or the running `average`, which is the target network's.
            Where importance weights are large V is noisy, and the average is better; where values move, it lags behind.
        weight_cap: largest importance weight of `reinforce`.
        clip_range: ε of `ppo`.
        trace_steps: transitions that a policy learner looks ahead, this one included; then V(s') stands in.
        future_credit: which items of a slate a value learner credits with what followed: all alike (`slate`), or those
            whose feedback entered the history (`consumed`), all where none did.
        slate_value: what V(s) of a slate is to a value learner: the `mean` of Q over it; by SlateQ's decomposition the
            mean over what is clicked of it (`clicks`, a step without a click being worth nothing), or that and
            Q(s, ⊥), the value of a step without a click (`choice`). The latter two need `encoder.choice`.
        slate_search: of these, which slate of the candidates is the best: exactly (`optimal`), item by item (`greedy`),
            or the best items each for itself (`top-k`).
        choice_weight: of the loss of which item is clicked, if any, beside the TD loss.
        target_rate: share of the online network that enters the target network at each step.
        published: weights that a model has: the `latest`, or their running `average`, which is the target network.
        held_out_share: of the transitions, by a hash of their id, that are never trained on.
        prior_transitions: latest transitions that the prior is estimated from.
        prior_iterations: of EM.
        meta: how the prior is learned: `empirical-bayes` (EM), `meta-prior` (by the loss on what followed a few
            events), `anil`, `fomaml` or `reptile` (a start and step sizes, and the prior that they amount to).
        meta_steps: outer steps of all but EM, which they start from.
        meta_users: users of an outer step.
        meta_events: first events of a user, of those the prior is learned from, that make a task.
        meta_rate: of Adam in the outer loop.
        meta_loss: density of the outer loss of `meta-prior`: `normal`, or `laplace` for small absolute errors.
        meta_inner_steps: T, gradient steps of the inner loop of `anil`, `fomaml` and `reptile`.
        cold_start_share: of the users, never part of the prior's learning, on whom the cold-start curve is measured.
        neighbours: co-clicked items published for each item.
        popularity_half_life: impressions of an item after which an old one counts half.
    """

    algorithm: Algorithm = "double-q-learning"
    discount: float = 0.5
    discount_unit_ms: int = 30 * _MINUTE_MS
    learning_rate: float = 6e-3
    learning_rate_half_life: int = 0
    value_rate: float = 1.0
    weight_decay: float = 0.4
    batch_size: int = 128
    buffer_size: int = 100_000
    slate_size: int = 10
    candidates: int = 256
    negatives: int = 256
    id_dropout: float = 0.0
    next_item_weight: float = 0.2
    temperature: float = 0.1
    entropy_weight: float = 0.01
    entropy_half_life: int = 0
    critic: Literal["latest", "average"] = "latest"
    weight_cap: float = 10.0
    clip_range: float = 0.2
    trace_steps: int = 3
    future_credit: Literal["slate", "consumed"] = "slate"
    slate_value: Literal["mean", "clicks", "choice"] = "mean"
    slate_search: SlateSearch = "optimal"
    choice_weight: float = 0.1
    target_rate: float = 0.01
    published: Literal["latest", "average"] = "latest"
    held_out_share: float = 0.05
    prior_transitions: int = 10_000
    prior_iterations: int = 8
    meta: MetaUpdate = "empirical-bayes"
    meta_steps: int = 100
    meta_users: int = 64
    meta_events: int = 40
    meta_rate: float = 0.02
    meta_loss: Literal["normal", "laplace"] = "normal"
    meta_inner_steps: int = 3
    cold_start_share: float = 0.1
    neighbours: int = 20
    popularity_half_life: float = 1_000.0

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        hints = get_type_hints(LearnerSettings)
        for key in (
            "algorithm",
            "future_credit",
            "meta",
            "meta_loss",
            "slate_value",
            "slate_search",
            "published",
            "critic",
        ):
            choices = get_args(hints[key])
            _expect(getattr(self, key) in choices, f"learner.{key}", getattr(self, key), " or ".join(choices))
        for key in ("value_rate", "temperature", "weight_cap", "clip_range", "meta_rate", "popularity_half_life"):
            _expect(getattr(self, key) > 0, f"learner.{key}", getattr(self, key), "more than 0")
        for key in (
            "entropy_weight",
            "entropy_half_life",
            "choice_weight",
            "learning_rate_half_life",
            "weight_decay",
            "next_item_weight",
        ):
            _expect(getattr(self, key) >= 0, f"learner.{key}", getattr(self, key), "0 or more")
        _expect(0 <= self.discount < 1, "learner.discount", self.discount, "0 or more, less than 1")
        _expect(self.learning_rate > 0, "learner.learning_rate", self.learning_rate, "more than 0")
        _expect(0 < self.target_rate <= 1, "learner.target_rate", self.target_rate, "more than 0, at most 1")
        _expect(0 <= self.id_dropout < 1, "learner.id_dropout", self.id_dropout, "0 or more, less than 1")
        _expect(0 <= self.held_out_share < 1, "learner.held_out_share", self.held_out_share, "0 or more, less than 1")
        for key in (
            "discount_unit_ms",
            "batch_size",
            "buffer_size",
            "slate_size",
            "candidates",
            "negatives",
            "trace_steps",
            "meta_steps",
            "meta_users",
            "meta_inner_steps",
        ):
            _expect(getattr(self, key) >= 1, f"learner.{key}", getattr(self, key), "1 or more")
        _expect(self.meta_events > 1, "learner.meta_events", self.meta_events, "2 or more")
        _expect(0 <= self.cold_start_share < 1, "learner.cold_start_share", self.cold_start_share, "0 up to 1")
        own_mean = self.algorithm in POLICY_LEARNERS or self.slate_value != "mean"
        keeps_mean = not own_mean or self.meta in ("empirical-bayes", "meta-prior")
        _expect(
            keeps_mean,
            "learner.meta",
            self.meta,
            f"empirical-bayes or meta-prior with {self.algorithm} and slate_value = {self.slate_value!r}: "
            "the weights are the prior's mean",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingSettings:
    """How the sequence encoder is pretrained on logged histories (docs/algorithms/pretraining.md has what was tried).

    Attributes:
        objective: `cross-entropy` over the catalogue, or `gbce`, sampled negatives with gSASRec's calibration.
        negatives: of `gbce`, sampled for each step and shared by a batch.
        calibration: t of `gbce`, 0 for none, 1 for full.
        epochs: at most.
        patience: epochs without a better validation before it ends.
        batch_entries: entries of the histories in a step.
        length: entries of a history read at once; longer ones are cut anew in each epoch.
        learning_rate: of Adam, after a rise over the first epoch; it falls to a tenth as a cosine.
        weight_decay: of Adam, decoupled.
        dropout: share of inputs, states and attention left out.
        label_smoothing: of the cross entropy.
        masked_share: entries that a masked Transformer is to tell.
        averaging: of the weights, what the average keeps at each step; 0 for none.
        follows: successors of each item in the table of what follows what (`model_core.follows`); 0 for no table.
        follows_reach: K, how many of the latest items bring their successors.
        follows_decay: ρ, weight of a successor relative to one that came a place earlier, when counted and when scored.
    """

    objective: Literal["cross-entropy", "gbce"] = "cross-entropy"
    negatives: int = 256
    calibration: float = 0.75
    epochs: int = 20
    patience: int = 8
    batch_entries: int = 1_500
    length: int = 50
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.4
    label_smoothing: float = 0.1
    masked_share: float = 0.2
    averaging: float = 0.99
    follows: int = 50
    follows_reach: int = 5
    follows_decay: float = 0.7

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(
            self.objective in ("cross-entropy", "gbce"),
            "pretraining.objective",
            self.objective,
            "cross-entropy or gbce",
        )
        for key in ("negatives", "epochs", "patience", "batch_entries", "length"):
            _expect(getattr(self, key) >= 1, f"pretraining.{key}", getattr(self, key), "1 or more")
        for key in ("dropout", "label_smoothing", "averaging", "weight_decay"):
            _expect(0 <= getattr(self, key) < 1, f"pretraining.{key}", getattr(self, key), "0 or more, less than 1")
        _expect(self.follows >= 0, "pretraining.follows", self.follows, "0 or more successors")
        _expect(self.follows_reach >= 1, "pretraining.follows_reach", self.follows_reach, "1 or more items")
        _expect(0 < self.follows_decay <= 1, "pretraining.follows_decay", self.follows_decay, "more than 0, at most 1")
        _expect(0 <= self.calibration <= 1, "pretraining.calibration", self.calibration, "0 to 1")
        _expect(0 < self.masked_share < 1, "pretraining.masked_share", self.masked_share, "between 0 and 1")
        _expect(self.learning_rate > 0, "pretraining.learning_rate", self.learning_rate, "more than 0")

"""A trained model as workers use it: plain numpy, no torch, one matrix product for every score.

    x(a) = fusion of id, facts, words and given vectors       item input, what the encoder eats; `features.fusion`
    h'   = advance(h, x(a), r)                                state after feedback r on a, or the history read again
    u(s) = [ [h, traits, context] W_u + b_u,  1 …,  z·w,  1 ]  user vector:  taste | item | user | bias
    v(a) = [ x W_v + b_v,  x W_i + b_i,  1,  1 ]               item vector
    φ(s, a) = u(s) ⊙ v(a),   Q(s, a) = φᵀ w

and where the encoder has them, h + tanh(o W_o + b_o) in the place of h for a state with observation o, the odds
exp(φᵀ c) of a click on a against none, and Q(s, ⊥), what a step without a click is worth: φᵀ w is the gain over it.
Where a model carries a table of what follows what, Q(s, a) = φᵀ w + f(s, a) (`follows`).

The encoders that move or read h are in `encoder.kinds`. `encoder.network` is all of it in torch; tests hold the two
together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_core.bandit.head import Prior
from model_core.config import EncoderSettings, LearnerSettings
from model_core.encoder.kinds import KINDS
from model_core.errors import InvariantError
from model_core.features.fusion import fuse, fusion_shapes, present
from model_core.features.tokens import ItemTokens, context_tokens, item_tokens, summed_tokens, trait_tokens
from model_core.follows import Follows
from model_core.records import Item

__all__ = ["FEATURES", "MAX_LOG_ODDS", "MAX_POSITIONS", "ServingModel", "weight_shapes"]

Float32Array = npt.NDArray[np.float32]

FEATURES: Final = 2
"""Version of the equations above: a model of another one cannot be served by this release."""

MAX_POSITIONS: Final = 32
"""Places of a slate that have an examination probability of their own; later ones share the last."""

_BLOCK: Final = 64
"""Rows of one matrix product over items: BLAS rounds rows at the edge of a product otherwise than those inside."""
_VALUE_HIDDEN: Final = 16
_SLOWEST_TRACE: Final = 2.2
"""σ⁻¹(0.9): at first a trace forgets a tenth an event, the fastest a half."""
MAX_LOG_ODDS: Final = 20.0
"""Beyond it a click is certain, and the exponential would overflow before long."""
_VALUE: Final = ("value_in", "value_in_bias", "value_out", "value_out_bias")
_WEAK_PRECISION: Final = 4.0
_WEAK_NOISE: Final = 0.1
"""Before the first model: a standard deviation of 0.5 a coordinate, and the noise of a click rate near a tenth."""


def weight_shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    taste = settings.dimension - settings.item_coordinates - 2
    state = settings.state + settings.embedding
    shapes = {
        "id_table": (settings.id_rows, settings.embedding),
        "token_table": (settings.token_rows, settings.embedding),
        **KINDS[settings.kind].shapes(settings),
        "user_taste": (state, taste),
        "user_taste_bias": (taste,),
        "user_level": (state, 1),
        "item_taste": (settings.embedding, taste),
        "item_taste_bias": (taste,),
        "item_worth": (settings.embedding, settings.item_coordinates),
        "item_worth_bias": (settings.item_coordinates,),
        "value_in": (settings.state, _VALUE_HIDDEN),
        "value_in_bias": (_VALUE_HIDDEN,),
        "value_out": (_VALUE_HIDDEN, 1),
        "value_out_bias": (1,),
        **fusion_shapes(settings),
    }
    if settings.observation:
        shapes |= {"observed": (settings.observation, settings.state), "observed_bias": (settings.state,)}
    if settings.choice:
        shapes |= {f"idle_{name.removeprefix('value_')}": shapes[name] for name in _VALUE}
        shapes["click_weights"] = (settings.dimension, 1)
    return shapes


def initial_weights(settings: EncoderSettings, seed: int) -> dict[str, Float32Array]:
    """Seeded untrained weights: tables small, ids zero (one nobody has seen says nothing), gains 1, the rest Glorot."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Float32Array] = {}
    for name, shape in weight_shapes(settings).items():
        if name == "id_table" or name.endswith(("_bias", "_zero")):
            weights[name] = np.zeros(shape, np.float32)
        elif name.endswith("_gain"):
            weights[name] = np.ones(shape, np.float32)
        elif name == "trace_decay":
            weights[name] = np.linspace(0.0, _SLOWEST_TRACE, shape[0], dtype=np.float32)[:, None]
        elif name == "token_table":
            weights[name] = rng.normal(0.0, 0.5, shape).astype(np.float32)
        else:
            scale = np.sqrt(2.0 / (shape[0] + shape[1]))
            weights[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return weights


@dataclass
class ServingModel:
    """What a worker needs of a model.

    Attributes:
        name: of the model.
        version: counts up from 1; 0 for the untrained one that serves before the first.
        settings: shapes of the encoder.
        weights: by name, see `weight_shapes`.
        prior: of every user's head.
        discount: γ of one `discount_unit_ms`.
        discount_unit_ms: γ^(elapsed_ms / discount_unit_ms).
        examination: float32[MAX_POSITIONS], how much a place is looked at, relative to the first.
        popularity: decayed impressions and summed reward, by item id.
        neighbours: co-clicked items, best first, by item id.
        strategies: share of the traffic by strategy; what is not in it begins with an equal one.
        follows: what follows what, a term of the score beside φᵀw; None for none.
        learners: float32[d], weights w of the learners that strategies name, by their names.
    """

    name: str
    version: int
    settings: EncoderSettings
    weights: Mapping[str, Float32Array]
    prior: Prior
    discount: float
    discount_unit_ms: int
    examination: Float32Array = field(default_factory=lambda: np.ones(MAX_POSITIONS, np.float32))
    popularity: dict[str, tuple[float, float]] = field(default_factory=dict)
    neighbours: dict[str, list[str]] = field(default_factory=dict)
    strategies: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    trained_transitions: int = 0
    follows: Follows | None = None
    learners: Mapping[str, Float32Array] = field(default_factory=dict)

    @classmethod
    def initial(cls, settings: EncoderSettings, *, seed: int = 0) -> "ServingModel":
        """The model that serves before the first: untrained, with a weak prior around zero."""
        precision = np.eye(settings.dimension) * _WEAK_PRECISION
        learner = LearnerSettings()
        return cls(
            "headwater",
            0,
            settings,
            initial_weights(settings, seed),
            Prior(precision, np.zeros(settings.dimension), _WEAK_NOISE),
            learner.discount,
            learner.discount_unit_ms,
        )

    @property
    def features(self) -> int:
        """Version of φ; heads of another one are rebuilt."""
        return self.version

    @property
    def dimension(self) -> int:
        """Dimension d of φ."""
        return self.settings.dimension

    @property
    def hidden(self) -> int:
        """Size H of the state."""
        return self.settings.state

    @property
    def groups(self) -> dict[str, slice]:
        """Coordinates of φ by what they stand for."""
        taste = self.settings.dimension - self.settings.item_coordinates - 2
        worth = taste + self.settings.item_coordinates
        return {
            "taste": slice(0, taste),
            "item": slice(taste, worth),
            "user": slice(worth, worth + 1),
            "bias": slice(worth + 1, worth + 2),
        }

    def item_inputs(self, items: Sequence[Item]) -> Float32Array:
        """x(a) of each item; float32[n, E]."""
        tokens = item_tokens(items, self.settings)
        groups = [_blocks(group) for group in self._item_groups(tokens)]
        x = fuse(self.settings, self.weights, groups, _blocks(present(self.settings, tokens)))
        return x.reshape(-1, x.shape[2])[: len(items)]

    def _item_groups(self, tokens: ItemTokens) -> list[Float32Array]:
        """Each feature group of the items as a vector, 0 where it is absent; float32[n, E]."""
        weights = self.weights
        table = weights["token_table"]
        hashed: dict[str, Callable[[], Float32Array]] = {
            "id": lambda: weights["id_table"][tokens.ids].sum(axis=1),
            "facts": lambda: (table[tokens.facts] * tokens.fact_weights[:, :, None]).sum(axis=1),
            "words": lambda: (table[tokens.words] * tokens.word_weights[:, :, None]).sum(axis=1),
        }
        groups = [hashed[name]() for name in self.settings.groups]
        start = 0
        for number, (name, length) in enumerate(self.settings.vector_lengths.items()):
            vectors = _blocks(tokens.vectors[:, start : start + length]) @ weights[f"vector:{name}"]
            projected = vectors.reshape(-1, vectors.shape[2])[: len(tokens.ids)] + weights[f"vector:{name}_bias"]
            groups.append(projected * tokens.given[:, number : number + 1])
            start += length
        return groups

    def item_vectors(self, items: Sequence[Item]) -> Float32Array:
        """v(a) of each item; float32[n, d]. Its bits do not depend on the other items."""
        return self.vectors_of(self.item_inputs(items))

    def vectors_of(self, inputs: Float32Array) -> Float32Array:
        """v(a) from x(a); float32[n, d]. Its bits do not depend on the other items."""
        x = _blocks(inputs)
        weights = self.weights
        taste = x @ weights["item_taste"] + weights["item_taste_bias"]
        worth = x @ weights["item_worth"] + weights["item_worth_bias"]
        vectors = np.concatenate([taste, worth, np.ones((*x.shape[:2], 2), np.float32)], axis=2)
        return vectors.reshape(-1, vectors.shape[2])[: len(inputs)]

    @property
    def recurrent(self) -> bool:
        """Whether the state moves one step an event (`advance`); else the history is read again (`last`)."""
        return KINDS[self.settings.kind].advance is not None

    @property
    def reach(self) -> int:
        """Entries that the state of a Transformer can depend on: each layer looks `window` further back."""
        return self.settings.layers * self.settings.window + 1

    def advance(self, h: Float32Array, x: Float32Array, reward: Float32Array) -> Float32Array:
        """State after feedback: h float32[n, H], x float32[n, E], reward float32[n] → float32[n, H].

        Raises:
            InvariantError: the encoder reads its history again instead.
        """
        step = KINDS[self.settings.kind].advance
        if step is None:
            raise InvariantError(f"a {self.settings.kind} has no step of its own: read the history with `last`")
        return step(self.weights, h, x, reward)

    def encode(self, x: Float32Array, reward: Float32Array, length: npt.NDArray[np.int64]) -> Float32Array:
        """State after each prefix of n histories.

        Args:
            x: float32[n, L, E].
            reward: float32[n, L].
            length: int64[n], entries of each history; what follows is ignored.

        Returns:
            float32[n, L + 1, H]; [:, 0] is the state of an empty history, and past the end the last state stands.
        """
        return KINDS[self.settings.kind].encode(self.weights, self.settings, x, reward, length)

    def last(self, x: Float32Array, reward: Float32Array, length: npt.NDArray[np.int64]) -> Float32Array:
        """State after each whole history, arguments as of `encode`; float32[n, H]."""
        return KINDS[self.settings.kind].last(self.weights, self.settings, x, reward, length)

    def beyond_prior(self) -> dict[str, Float32Array]:
        """What each learner's weights are beyond the prior's mean: float32[d] by name.

        Added to a user's head they make it that learner's, for a stranger exactly, and for others with what is known of
        them.
        """
        if not self.learners:
            return {}
        mean = self.prior.mean
        return {name: (weights - mean).astype(np.float32) for name, weights in self.learners.items()}

    def user_vectors(
        self, h: Float32Array, traits: Sequence[Mapping[str, Any]], context: Sequence[Mapping[str, Any]]
    ) -> Float32Array:
        """u(s) of each state; h float32[n, H] → float32[n, d]."""
        weights, rows = self.weights, self.settings.token_rows
        table = weights["token_table"]
        known = summed_tokens(table, [trait_tokens(one, rows) for one in traits])
        known += summed_tokens(table, [context_tokens(one, rows) for one in context])
        state = np.concatenate([h, known], axis=1)
        taste = state @ weights["user_taste"] + weights["user_taste_bias"]
        ones = np.ones((len(h), self.settings.item_coordinates), np.float32)
        return np.concatenate([taste, ones, state @ weights["user_level"], ones[:, :1]], axis=1)

    def observed(self, h: Float32Array, observation: Float32Array) -> Float32Array:
        """The states with what a simulator observes of them: float32[n, H], float32[n, O] → float32[n, H]."""
        seen: Float32Array = np.tanh(observation @ self.weights["observed"] + self.weights["observed_bias"])
        return h + seen

    def click_odds(self, user_vectors: Float32Array, item_vectors: Float32Array) -> Float32Array:
        """Odds of a click on each item against none, were it shown alone: [n, d], [m, d] → float32[n, m]."""
        weighted = user_vectors * self.weights["click_weights"][:, 0]
        odds: Float32Array = np.exp(np.minimum(weighted @ item_vectors.T, MAX_LOG_ODDS))
        return odds

    def value(self, h: Float32Array) -> Float32Array:
        """V(s), the published target network's value of each state; float32[n]."""
        weights = self.weights
        inner = np.tanh(h @ weights["value_in"] + weights["value_in_bias"])
        value: Float32Array = (inner @ weights["value_out"] + weights["value_out_bias"])[:, 0]
        return value


def _blocks(rows: Float32Array) -> Float32Array:
    """float32[n, E] → float32[blocks, 64, E], zeros at the end."""
    padded = np.zeros((-(-len(rows) // _BLOCK) * _BLOCK, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return padded.reshape(-1, _BLOCK, rows.shape[1])

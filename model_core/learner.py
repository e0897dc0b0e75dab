"""The learner: transitions in, models out. An algorithm of `rl` trains the encoder, one of `meta` the users' prior.

A step takes a batch of transitions and lowers

    L = L_rl  +  λ L_next  +  (V(s) - V̄(s))²

For the value learners L_rl = Σ ω (Q(s, a) - y)² / Σ ω over the shown items: y by (double) Q-learning or SARSA
(`rl.targets`), ω the examination of an item nobody clicked and 1 for one with a reward; V learns the V̄(s') in y. For
the policy learners (`rl.policy_gradient`) φᵀw is the score of a softmax policy over slates, L_rl its surrogate, and V
learns from V-trace. L_next, the sampled cross entropy of the next clicked item at every prefix of the history, gives
the embeddings their shape long before rewards could. Everything is a function of the transitions' order, the settings
and the seed: a restored learner goes on bit for bit (on the CPU).
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save
from torch import Tensor
from torch.nn import functional

from model_core.bandit.head import Prior
from model_core.config import Algorithm, EncoderSettings, EvaluationSettings, LearnerSettings, StrategySettings
from model_core.encoder.network import ItemBatch, Network, take_weights
from model_core.errors import SettingsError
from model_core.features.tokens import context_tokens, item_tokens, trait_tokens
from model_core.follows import Follows, Successors
from model_core.meta import cold_start, updates
from model_core.meta.tasks import Observations
from model_core.records import Evaluation, Item, Transition
from model_core.replay_buffer import ReplayBuffer, Rows
from model_core.rl.clicks import Clicks
from model_core.rl.fit import Fit, left
from model_core.rl.following import Following, ShownNext
from model_core.rl.policy_gradient import PolicyGradient, SlatePolicy, Slates, Steps, slate_policy, v_trace
from model_core.rl.q_learning import QLearning
from model_core.rl.targets import consumed, consumed_credit, td_targets
from model_core.serving import MAX_LOG_ODDS, MAX_POSITIONS, ServingModel
from model_core.strategy.log import StrategyLog

__all__ = ["Learner", "resolve_device"]

FloatArray = npt.NDArray[np.float64]

_EXAMINATION_STEPS: Final = 100
"""Steps between two estimates of the examination probabilities."""
_LEAST_EXAMINATION: Final = 0.05
_EXAMINATION_PRIOR: Final = 20.0
"""Clicks that the guess `no bias` weighs in the estimate of a place's examination."""
_EVALUATED: Final = 1_024
"""Transitions that held-out errors and examination are estimated from, at most."""
_NEXT_ITEM_ROWS: Final = 24
"""Rows of a batch whose whole histories enter the next-item loss: all would cost more than the rest of the step."""
_MASKED_SHARE: Final = 0.2
"""Entries that a masked Transformer is to tell (Sun et al. 2019 use 0.2 on MovieLens-1M)."""
_LEAST_WEIGHT: Final = 1e-6
"""Below any weight that there is: a mean over nothing is 0, and not a number."""
_NEIGHBOUR_REACH: Final = 5


def resolve_device(name: str) -> str:
    """`auto` as the device there is, `cuda` where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


class _Batch(NamedTuple):
    """Transitions as tensors; shapes as the buffer's columns, histories cut to the longest."""

    rows: npt.NDArray[np.int64]
    history: Tensor
    history_reward: Tensor
    history_length: Tensor
    append: Tensor
    append_reward: Tensor
    append_length: Tensor
    slate: Tensor
    slate_reward: Tensor
    slate_position: Tensor
    shown: Tensor
    tokens: Tensor
    token_weight: Tensor
    discount: Tensor
    observation: Tensor
    next_observation: Tensor

    def appended(self) -> tuple[Tensor, Tensor]:
        """The histories with what was appended right behind their entries: items and rewards."""
        longest = self.history.shape[1]
        place = torch.arange(longest + self.append.shape[1], device=self.history.device)[None]
        length = self.history_length[:, None]
        rows = torch.where(place < length, place, (place - length + longest).clamp(max=place.shape[1] - 1))
        items = torch.cat([self.history, self.append], dim=1).gather(1, rows)
        return items, torch.cat([self.history_reward, self.append_reward], dim=1).gather(1, rows)


class _States(NamedTuple):
    """Encoded transitions: all prefixes' states where one pass has them, the state and u(s), the next one and its u.

    What is observed of a state is in `before` and `after`; `read` is the former without it.
    """

    prefixes: Tensor | None
    read: Tensor
    before: Tensor
    user: Tensor
    after: Tensor
    next_user: Tensor

    def detached(self) -> "_States":
        """The same without gradients."""
        prefixes, *states = self
        return _States(None if prefixes is None else prefixes.detach(), *(part.detach() for part in states))


class Learner:
    """Learns from transitions; any torch device.

    Args:
        settings: of learning.
        encoder: shapes of the network.
        device: `auto`, `cpu` or `cuda`.
        seed: of weights and sampling.
        strategies: settings of the strategies that share the traffic.
        evaluation: settings of the off-policy evaluations.
        enrich: what an item goes through when it is set, the same as in the workers' catalogue.

    Attributes:
        fit: the algorithm and its networks.
        version: of the last published model.
        device: in use.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        encoder: EncoderSettings,
        *,
        device: str,
        seed: int,
        strategies: StrategySettings | None = None,
        evaluation: EvaluationSettings | None = None,
        enrich: Callable[[Item], Item] = lambda item: item,
    ) -> None:
        settings.check()
        encoder.check()
        self.settings = settings
        self.encoder = encoder
        self.device = resolve_device(device)
        self.version = 0
        self.steps = 0
        self.trained_transitions = 0
        self._rng = np.random.default_rng(seed)
        self.fit = Fit(settings, *(Network(encoder, seed).to(self.device) for _ in range(2)))
        self._first: Network | None = None
        self._enrich = enrich
        self._items: dict[str, Item] = {}
        self._row: dict[str, int] = {}
        self._offered: set[str] = set()
        self._item_batch: ItemBatch | None = None
        self._follows: Follows | None = None
        self._successors: Successors | None = None
        self._offered_rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._shown: dict[str, tuple[float, float]] = {}
        self._examination = np.ones(MAX_POSITIONS, np.float32)
        strategies = strategies or StrategySettings()
        self._log = StrategyLog(strategies, evaluation or EvaluationSettings())
        self._check_slate_value()
        self._beside = {name: self.fit.beside(name, seed) for name in self._others(strategies)}
        keeps = frozenset[str]().union(*(fit.algorithm.keeps for fit in (self.fit, *self._beside.values())))
        self._buffer = ReplayBuffer(
            settings.buffer_size,
            settings.held_out_share,
            Rows(self._item_row, self._tokens),
            keeps=keeps | (frozenset({"next-candidates"}) if self._by_clicks else frozenset()),
            needs_propensities="propensities" in self.fit.algorithm.keeps,
            observation=encoder.observation,
        )

    def start_from(self, model: ServingModel) -> None:
        """Begin with the weights of a model, such as a pretrained one; a checkpoint overrules it.

        A learner of φᵀw as the worth of an item keeps its table of what follows what, as it is, and learns what that
        leaves; a policy's scores, and gains over no click, are of another kind than the table and go without.

        Raises:
            ModelError: it is of another shape.
        """
        for fit in (self.fit, *self._beside.values()):
            for network in (fit.online, fit.target):
                take_weights(network, model)
        self._follows = None if self._scores_are_logits or self._by_clicks else model.follows
        self._successors = None

    def _check_slate_value(self) -> None:
        if self._by_clicks != self.encoder.choice or (self._by_clicks and self._scores_are_logits):
            raise SettingsError(
                f"learner.slate_value = {self.settings.slate_value!r} with encoder.choice = {self.encoder.choice} and "
                f"learner.algorithm = {self.settings.algorithm!r}: expected 'clicks' or 'choice' with a value learner "
                "and encoder.choice, else 'mean' without it"
            )

    def _others(self, strategies: StrategySettings) -> list[Algorithm]:
        """The learners that strategies name beside the settings' own.

        Raises:
            SettingsError: they cannot share its features.
        """
        named = dict.fromkeys(arm.learner for arm in strategies.arms.values())
        others = [name for name in named if name not in (None, self.settings.algorithm)]
        if others and self._by_clicks:
            raise SettingsError(
                f"strategies.arms: their learners {others} go with learner.slate_value = 'mean', not with "
                f"{self.settings.slate_value!r}: name none, or set it so"
            )
        return others

    @property
    def buffer_size(self) -> int:
        """Transitions in the replay buffer."""
        return len(self._buffer)

    @property
    def left_out(self) -> Counter[str]:
        """How many transitions are not learned from, by reason."""
        return self._buffer.left_out

    @property
    def _scores_are_logits(self) -> bool:
        """Whether φᵀw is a policy's score, which is no expectation of a reward."""
        return self.fit.is_policy

    @property
    def _by_clicks(self) -> bool:
        """Whether V(s) is SlateQ's, and Q the gain of a click over none."""
        return self.settings.slate_value != "mean"

    def set_item(self, item: Item) -> None:
        """Add or replace an item."""
        self._item_row(item.item_id)
        self._items[item.item_id] = self._enrich(item)
        self._offered.add(item.item_id) if item.available else self._offered.discard(item.item_id)
        self._item_batch = None

    def remove_item(self, item_id: str) -> None:
        """Take an item out of the candidates; histories that hold it keep their meaning."""
        self._offered.discard(item_id)
        self._item_batch = None

    def add(self, transition: Transition) -> None:
        """Put a transition into the buffer; a higher revision replaces a lower one."""
        self._log.add(transition)
        before = self._buffer.row_of(transition.user_id, transition.transition_id)
        old = None if before is None else self._buffer.columns["slate_reward"][before].copy()
        if self._buffer.add(transition) is None:
            return
        for place, shown in enumerate(transition.slate):
            impressions, reward = self._shown.get(shown.item_id, (0.0, 0.0))
            if old is not None:
                change = shown.reward - float(old[place]) if place < len(old) else 0.0
                self._shown[shown.item_id] = (impressions, reward + change)
            else:
                keep = 0.5 ** (1.0 / self.settings.popularity_half_life)
                self._shown[shown.item_id] = (impressions * keep + 1.0, reward * keep + shown.reward)
        self.trained_transitions += old is None

    def erase(self, user_id: str) -> None:
        """Drop a user's transitions."""
        self._log.erase(user_id)
        self._buffer.erase(user_id)

    def train(self, steps: int) -> dict[str, float]:
        """Do training steps.

        Returns:
            Means over the steps: `loss`, `next_item_loss`, `q_spread` (deviation of Q, or of the scores, over the
            candidates of a state); of value learners `td_error` (root mean square), of policy learners `policy_loss`,
            `value_error`, `entropy`, `weight` and `effective_share`; `NAME.…` of a learner that strategies name. Empty
            before there is anything to learn from.
        """
        rows = self._buffer.rows(held_out=False)
        if not len(rows) or not self._offered:
            return {}
        totals: Counter[str] = Counter()
        for _ in range(steps):
            totals.update(self._step(self._rng.choice(rows, self.settings.batch_size)))
            self.steps += 1
            if self.steps % _EXAMINATION_STEPS == 0 and not (self._scores_are_logits or self._by_clicks):
                self._estimate_examination()
        return {name: total / steps for name, total in totals.items()}

    def _step(self, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            batch = self._batch(rows)
            items = self.fit.online.item_inputs(self._all_items(), self._known_ids())
            vectors = self.fit.online.item_vectors(items)
            states = self._encode(self.fit.online, batch, items)
            rl_loss, value_loss, metrics = self._losses(self.fit, batch, states, items, vectors)
            next_item_loss = self._next_item_loss(batch, states, items, vectors)
            loss = rl_loss + self.settings.next_item_weight * next_item_loss + value_loss
        self.fit.move(loss, self.steps)
        for name, fit in self._beside.items():
            told = self._step_beside(fit, batch, states, items.detach(), vectors.detach())
            metrics |= {f"{name}.{metric}": value for metric, value in told.items()}
        return {"loss": loss.item(), "next_item_loss": next_item_loss.item(), **metrics}

    def _step_beside(
        self, fit: Fit, batch: _Batch, states: _States, items: Tensor, vectors: Tensor
    ) -> dict[str, float]:
        """A step of another learner on features that stay as they are."""
        if fit.is_policy:
            known = self._buffer.columns["slate_propensity"][batch.rows, 0] > 0
            if not known.any():
                return {}
            if not known.all():
                batch = self._batch(batch.rows[known])
                states = self._encode(self.fit.online, batch, items)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            rl_loss, value_loss, metrics = self._losses(fit, batch, states.detached(), items, vectors)
        fit.move(rl_loss + value_loss, self.steps)
        return metrics

    def _losses(
        self, fit: Fit, batch: _Batch, states: _States, items: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The learner's loss, the value head's loss, and what is reported of them."""
        if isinstance(fit.algorithm, PolicyGradient):
            return self._policy_losses(fit, fit.algorithm, batch, states, items, vectors)
        return self._td_losses(fit, fit.algorithm, batch, states, vectors)

    def _known_ids(self) -> Tensor | None:
        """Which items this step knows by their ids: float32[n], 1 or 0; None for all."""
        if not self.settings.id_dropout:
            return None
        known = self._rng.random(len(self._row)) >= self.settings.id_dropout
        return self._tensor(known.astype(np.float32))

    def _td_losses(
        self, fit: Fit, algorithm: QLearning, batch: _Batch, states: _States, vectors: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Of a value learner: the TD loss, the value head's loss, and what is reported of them."""
        value, q_spread = self._next_values(fit, algorithm, batch, states, vectors)
        q = self._q(fit.online, states.user, vectors, batch.slate)
        y, weight = self._targets(fit.online, batch, states, value)
        td_loss = (weight * (q - y) ** 2).sum() / weight.sum().clamp(min=_LEAST_WEIGHT)
        value_loss = ((fit.online.value(states.after.detach()) - value) ** 2).mean()
        metrics = {"td_error": td_loss.item() ** 0.5, "q_spread": q_spread}
        if self._by_clicks:
            choice_loss, idle_loss = self._click_losses(batch, states, vectors, value)
            metrics |= {"choice_loss": choice_loss.item(), "idle_error": idle_loss.item() ** 0.5}
            value_loss = value_loss + self.settings.choice_weight * choice_loss + idle_loss
        return td_loss, value_loss, metrics

    def _targets(self, network: Network, batch: _Batch, states: _States, value: Tensor) -> tuple[Tensor, Tensor]:
        """What φᵀw of each shown item should have been, and how much each counts; float[B, K] both.

        What follows what has told its part already.

        By clicks, that is what a click brought over Q(s, ⊥), and what was not clicked says nothing of its gain.
        """
        if not self._by_clicks:
            y = td_targets(batch.slate_reward, batch.discount, value, self._credit(batch))
            return y - self._told(self._before(batch), batch.slate), self._weights(batch)
        idle = self._idle(network, states.before).detach()
        return td_targets(batch.slate_reward, batch.discount, value) - idle[:, None], self._clicked(batch)

    def _click_losses(self, batch: _Batch, states: _States, vectors: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of a conditional logit of the click, if any; and of Q(s, ⊥), on the steps without one."""
        clicked = self._clicked(batch)
        none = (clicked.sum(dim=1) == 0).float()
        network = self.fit.online
        place = network.place_odds - network.place_odds[:1]
        logits = network.click_logits(states.user, vectors[batch.slate])
        logits = logits + place[(batch.slate_position - 1).clamp(0, MAX_POSITIONS - 1)]
        logits = logits.masked_fill(batch.shown == 0, -torch.inf)
        log_chance = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1).float().log_softmax(dim=1)
        chosen = torch.cat([clicked, none[:, None]], dim=1)
        choice_loss = -torch.where(chosen > 0, log_chance, 0.0).sum(dim=1).mean()
        wrong = self._idle(network, states.before) - batch.discount * value
        return choice_loss, (none * wrong**2).sum() / none.sum().clamp(min=_LEAST_WEIGHT)

    def _idle(self, network: Network, states: Tensor) -> Tensor:
        """Q(s, ⊥); float[B], zeros where it is worth nothing by the settings."""
        return network.idle(states) if self.settings.slate_value == "choice" else torch.zeros_like(states[:, 0])

    def _clicked(self, batch: _Batch) -> Tensor:
        """Which shown items had feedback; float[B, K], of 0 and 1."""
        found = consumed(batch.slate, batch.shown, batch.append, batch.append_length)
        return torch.maximum(found, (batch.slate_reward != 0) * batch.shown)

    def _next_values(
        self, fit: Fit, algorithm: QLearning, batch: _Batch, states: _States, vectors: Tensor
    ) -> tuple[Tensor, float]:
        """V(s') as the algorithm has it, and the spread of Q among sampled candidates."""
        if self._by_clicks:
            return self._next_values_by_clicks(algorithm, batch, states, vectors)
        candidates = self._candidates()
        with torch.no_grad():
            items = fit.target.item_inputs(self._all_items())
            target_states = self._encode(fit.target, batch, items)
            online = (states.next_user * fit.online.reward_weights) @ vectors[candidates].T
            target_vectors = fit.target.item_vectors(items[candidates])
            target = (target_states.next_user * fit.target.reward_weights) @ target_vectors.T
            told = self._told(self._after(batch), candidates.expand(len(online), -1))
            online, target = online + told, target + told
            following = Following(
                online.float(),
                target.float(),
                lambda: fit.target.value(target_states.after).float(),
                lambda: self._shown_next(fit.target, batch, target_states, items),
            )
            value = algorithm.next_state_values(following, self.settings.slate_size)
            return value, online.std(dim=1, correction=0).mean().item()

    def _next_values_by_clicks(
        self, algorithm: QLearning, batch: _Batch, states: _States, vectors: Tensor
    ) -> tuple[Tensor, float]:
        """The same by SlateQ's decomposition, over the candidates of the next decision where they are known."""
        candidates, present = self._next_candidates(batch.rows)
        with torch.no_grad():
            network = self.fit.target
            items = network.item_inputs(self._all_items())
            target_states, target_vectors = self._encode(network, batch, items), network.item_vectors(items)
            online = self._q(self.fit.online, states.next_user, vectors, candidates)
            target = self._q(network, target_states.next_user, target_vectors, candidates)
            following = Following(
                online.float(),
                target.float(),
                lambda: network.value(target_states.after).float(),
                lambda: self._shown_next(network, batch, target_states, items),
                self._clicks(target_states, target_vectors[candidates], present),
            )
            value = algorithm.next_state_values(following, self.settings.slate_size)
            return value, online.std(dim=1, correction=0).mean().item()

    def _clicks(self, states: _States, vectors: Tensor, present: Tensor) -> Clicks:
        """How these items are clicked in the next states, by the target network; vectors [B, C, d], present [B, C]."""
        logits = self.fit.target.click_logits(states.next_user, vectors).float()
        odds = logits.clamp(max=MAX_LOG_ODDS).exp() * present
        return Clicks(odds, self._idle(self.fit.target, states.after).float(), self.settings.slate_search)

    def _next_candidates(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Items of the next decisions, else a sample of the catalogue; and which of them are there; [B, C] both."""
        columns = self._buffer.columns
        length = columns["next_candidates_length"][rows]
        sample = self._candidates().cpu().numpy()
        if (length >= 0).all():
            sample = sample[:0]
        width = max(int(length.max()), len(sample), 1)
        items = np.zeros((len(rows), width), np.int64)
        known = columns["next_candidates"][rows, :width]
        items[:, : known.shape[1]] = known
        items[length < 0, : len(sample)] = sample
        present = np.arange(width)[None] < np.where(length < 0, len(sample), length)[:, None]
        return self._tensor(items), self._tensor(present.astype(np.float32))

    def _candidates(self) -> Tensor:
        """Rows of offered items, a sample that a batch shares."""
        count = min(self.settings.candidates, len(self._offered_rows))
        return self._tensor(self._rng.choice(self._offered_rows, count, replace=False))

    def _shown_next(self, target: Network, batch: _Batch, states: _States, items: Tensor) -> ShownNext:
        """The next slates under the target network."""
        columns = self._buffer.columns
        length = columns["next_slate_length"][batch.rows]
        places = max(int(length.max()), 1)
        slate = self._tensor(columns["next_slate"][batch.rows, :places])
        mask = (np.arange(places)[None] < length[:, None]).astype(np.float32)
        vectors, shown = target.item_vectors(items), self._tensor(mask)
        q = self._q(target, states.next_user, vectors, slate).float() + self._told(self._after(batch), slate)
        return ShownNext(q, shown, self._clicks(states, vectors[slate], shown) if self._by_clicks else None)

    def _policy_losses(
        self, fit: Fit, algorithm: PolicyGradient, batch: _Batch, states: _States, items: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Of a policy learner: the surrogate less the entropy, the critic's loss, and what is reported of them."""
        sample = self._candidates()
        policy, spread = self._slate_policy(fit.online, batch, states, vectors, sample)
        log_behaviour = self._log_behaviour(batch)
        value = fit.online.value(fit.online.observed(states.read.detach(), batch.observation)).float()
        log_ratio = (policy.log_policy - log_behaviour).sum(dim=1)
        steps = self._steps(fit, batch, states, items, vectors, sample, log_ratio)
        trace = v_trace(steps, algorithm.trace_cap)
        slates = Slates(policy.log_policy, log_behaviour, batch.slate_reward, batch.shown)
        loss, weight = algorithm.surrogate(slates, steps, trace)
        entropy_weight = self.settings.entropy_weight * left(self.settings.entropy_half_life, self.steps)
        policy_loss = loss.mean() - entropy_weight * policy.entropy.mean()
        value_loss = ((value - trace.value) ** 2).mean()
        return (
            policy_loss,
            value_loss,
            {
                "policy_loss": policy_loss.item(),
                "value_error": value_loss.item() ** 0.5,
                "entropy": policy.entropy.mean().item(),
                "weight": weight.mean().item(),
                "effective_share": (weight.sum() ** 2 / (weight**2).sum().clamp(min=1e-30)).item() / len(weight),
                "q_spread": spread,
            },
        )

    def _steps(
        self,
        fit: Fit,
        batch: _Batch,
        states: _States,
        items: Tensor,
        vectors: Tensor,
        sample: Tensor,
        log_ratio: Tensor,
    ) -> Steps:
        """These transitions and those that followed them, as V-trace wants them."""
        columns: list[tuple[Tensor, ...]] = []
        critic = fit.target if self.settings.critic == "average" else fit.online
        with torch.no_grad():
            rows, following = batch.rows, self._buffer.following(batch.rows)
            for step in range(self.settings.trace_steps):
                last = step + 1 == self.settings.trace_steps
                follows = np.zeros(len(rows), bool) if last else following >= 0
                columns.append(
                    (
                        log_ratio.detach(),
                        (batch.slate_reward * batch.shown).sum(dim=1) / batch.shown.sum(dim=1),
                        critic.value(states.before).float(),
                        critic.value(states.after).float(),
                        batch.discount,
                        torch.from_numpy(follows).to(self.device),
                    )
                )
                if not follows.any():
                    break
                rows = np.maximum(following, 0)
                batch = self._batch(rows)
                states = self._encode(fit.online, batch, items)
                policy, _ = self._slate_policy(fit.online, batch, states, vectors, sample)
                log_ratio = (policy.log_policy - self._log_behaviour(batch)).sum(dim=1)
                following = np.where(following >= 0, self._buffer.following(rows), -1)
            return Steps(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))

    def _log_behaviour(self, batch: _Batch) -> Tensor:
        """Log of the logged propensities; float[B, K], 0 beyond a slate."""
        propensity = self._buffer.columns["slate_propensity"][batch.rows, : batch.shown.shape[1]]
        return self._tensor(np.log(np.where(propensity > 0, propensity, 1.0)).astype(np.float32))

    def _slate_policy(
        self, network: Network, batch: _Batch, states: _States, vectors: Tensor, sample: Tensor
    ) -> tuple[SlatePolicy, float]:
        """The policy's opinion of the shown slates, and the spread of the candidates' scores.

        Candidates are those of the decision, where the log has them, else the sample of the catalogue.
        """
        columns, rows = self._buffer.columns, batch.rows
        length = columns["candidates_length"][rows]
        unknown = length < 0
        sampled = sample.cpu().numpy() if unknown.any() else np.zeros(0, np.int64)
        width = max(int(length.max()), len(sampled), 1)
        count = np.zeros((len(rows), width), np.float32)
        items = np.zeros((len(rows), width), np.int64)
        known = columns["candidates"].shape[1]
        present = np.arange(known)[None] < length[:, None]
        inclusion = np.where(present, columns["inclusion"][rows], 1.0)
        items[:, :known] = columns["candidates"][rows][:, :width]
        count[:, :known] = (present / inclusion)[:, :width]
        items[unknown, : len(sampled)] = sampled
        count[unknown, : len(sampled)] = len(self._offered_rows) / len(sample)
        candidates = self._tensor(items)
        within = ((candidates[:, :, None] == batch.slate[:, None, :]) & (batch.shown > 0)[:, None, :]).any(dim=2)
        log_count = torch.log(self._tensor(count)).masked_fill(within, -torch.inf)
        weighted = states.user * network.reward_weights
        others = torch.einsum("bd,bcd->bc", weighted, vectors[candidates]).float()
        shown = self._q(network, states.user, vectors, batch.slate).float()
        spread = others.detach().std(dim=1, correction=0).mean().item()
        return slate_policy(shown, batch.shown, others, log_count, self.settings.temperature), spread

    def _next_item_loss(self, batch: _Batch, states: _States, items: Tensor, vectors: Tensor) -> Tensor:
        """Sampled cross entropy of the item clicked next, at every prefix of some histories, or at masked entries."""
        history = batch.history[:_NEXT_ITEM_ROWS]
        length = batch.history_length[:_NEXT_ITEM_ROWS]
        present = torch.arange(history.shape[1], device=self.device)[None] < length[:, None]
        if states.prefixes is None:
            hidden = self._tensor(self._rng.random(history.shape) < _MASKED_SHARE).bool()
            reward = batch.history_reward[:_NEXT_ITEM_ROWS]
            told, present = self.fit.online.predicting(items[history], reward, length, hidden)
        else:
            told = states.prefixes[:_NEXT_ITEM_ROWS, : history.shape[1]]
        if not present.any():
            return vectors.new_zeros(())
        known = self.fit.online.known(batch.tokens[:_NEXT_ITEM_ROWS], batch.token_weight[:_NEXT_ITEM_ROWS])
        prefixes = told[present]
        known = known[:, None].expand(-1, history.shape[1], -1)[present]
        user = self.fit.online.user_vectors(prefixes, known) * self.fit.online.choice_weights
        clicked = history[present]
        negatives = self._tensor(self._rng.choice(self._offered_rows, self.settings.negatives))
        positive = (user * vectors[clicked]).sum(dim=1, keepdim=True)
        negative = (user @ vectors[negatives].T).masked_fill(negatives[None] == clicked[:, None], -torch.inf)
        return functional.cross_entropy(torch.cat([positive, negative], dim=1).float(), torch.zeros_like(clicked))

    def _encode(self, network: Network, batch: _Batch, items: Tensor) -> _States:
        prefixes, read, after = self._around(network, batch, items)
        state, after = network.observed(read, batch.observation), network.observed(after, batch.next_observation)
        known = network.known(batch.tokens, batch.token_weight)
        user, next_user = network.user_vectors(state, known), network.user_vectors(after, known)
        return _States(prefixes, read, state, user, after, next_user)

    @staticmethod
    def _around(network: Network, batch: _Batch, items: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """States after every prefix of the histories (None of a masked Transformer), after the whole, and the next."""
        if network.recurrent:
            prefixes = network.states(items[batch.history], batch.history_reward, batch.history_length)
            state = prefixes[:, -1]
            after = network.states(items[batch.append], batch.append_reward, batch.append_length, state)[:, -1]
            return prefixes, state, after
        rows, reward = batch.appended()
        length = batch.history_length + batch.append_length
        if network.settings.kind == "masked-transformer":
            state = network.last(items[batch.history], batch.history_reward, batch.history_length)
            return None, state, network.last(items[rows], reward, length)
        states = network.states(items[rows], reward, length)
        state = states[torch.arange(len(states), device=states.device), batch.history_length]
        return states[:, : batch.history.shape[1] + 1], state, states[:, -1]

    @staticmethod
    def _q(network: Network, user: Tensor, vectors: Tensor, slate: Tensor) -> Tensor:
        return ((user * network.reward_weights)[:, None, :] * vectors[slate]).sum(dim=2)

    @staticmethod
    def _before(batch: _Batch) -> tuple[Tensor, Tensor]:
        """The histories that these slates were shown after, and their lengths."""
        return batch.history, batch.history_length

    @staticmethod
    def _after(batch: _Batch) -> tuple[Tensor, Tensor]:
        """The histories that the next slates were shown after, and their lengths."""
        return batch.appended()[0], batch.history_length + batch.append_length

    def _told(self, histories: tuple[Tensor, Tensor], items: Tensor) -> Tensor:
        """f(s, a), what follows what says of these items [B, m] after the histories; zeros where there is no table."""
        if self._follows is None:
            return torch.zeros(items.shape, device=self.device)
        if self._successors is None or len(self._successors.starts) != len(self._row) + 1:
            self._successors = self._follows.within(self._row, len(self._row))
        history, length = (part.cpu().numpy() for part in histories)
        back = length[:, None] - 1 - np.arange(self._follows.reach)
        recent = np.where(back >= 0, np.take_along_axis(history, np.maximum(back, 0), 1), -1)
        return self._tensor(self._successors.of(recent, np.ascontiguousarray(items.cpu().numpy())))

    def _credit(self, batch: _Batch) -> Tensor | None:
        """Which shown items get the credit for what followed; None for all alike."""
        if self.settings.future_credit == "slate":
            return None
        return consumed_credit(batch.slate, batch.shown, batch.append, batch.append_length)

    def _weights(self, batch: _Batch) -> Tensor:
        """ω of each shown item; float[B, K], 0 beyond a slate."""
        examination = torch.from_numpy(self._examination).to(self.device)
        examined = examination[(batch.slate_position - 1).clamp(0, MAX_POSITIONS - 1)]
        return torch.where(batch.slate_reward != 0, 1.0, examined) * batch.shown

    def _batch(self, rows: npt.NDArray[np.int64]) -> _Batch:
        columns = self._buffer.columns
        longest = max(int(columns["history_length"][rows].max()), 1)
        appended = max(int(columns["append_length"][rows].max()), 1)
        places = max(int(columns["slate_length"][rows].max()), 1)
        discount = self.settings.discount ** (columns["elapsed_ms"][rows] / self.settings.discount_unit_ms)
        discount[columns["terminated"][rows]] = 0.0
        shown = np.arange(places)[None] < columns["slate_length"][rows][:, None]
        return _Batch(
            rows,
            self._tensor(columns["history"][rows, :longest]),
            self._tensor(columns["history_reward"][rows, :longest]),
            self._tensor(columns["history_length"][rows]),
            self._tensor(columns["append"][rows, :appended]),
            self._tensor(columns["append_reward"][rows, :appended]),
            self._tensor(columns["append_length"][rows]),
            self._tensor(columns["slate"][rows, :places]),
            self._tensor(columns["slate_reward"][rows, :places]),
            self._tensor(columns["slate_position"][rows, :places]),
            self._tensor(shown.astype(np.float32)),
            self._tensor(columns["tokens"][rows]),
            self._tensor(columns["token_weight"][rows]),
            self._tensor(discount.astype(np.float32)),
            *(
                self._tensor(columns[field][rows] if self.encoder.observation else np.zeros((len(rows), 0), np.float32))
                for field in ("observation", "next_observation")
            ),
        )

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int64))
        return tensor.to(self.device)

    def _item_row(self, item_id: str) -> int:
        row = self._row.get(item_id)
        if row is None:
            row = self._row[item_id] = len(self._row)
            self._item_batch = None
        return row

    def _all_items(self) -> ItemBatch:
        """Rows of every item ever named, embedded anew only when one changed."""
        if self._item_batch is None:
            items = [self._items.get(item_id) or Item(item_id=item_id) for item_id in self._row]
            self._item_batch = ItemBatch(*(self._tensor(part) for part in item_tokens(items, self.encoder).cut()))
            self._offered_rows = np.array(sorted(self._row[item_id] for item_id in self._offered), np.int64)
        return self._item_batch

    def _tokens(self, traits: Mapping[str, Any], context: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        ours, our_weights = trait_tokens(traits, self.encoder.token_rows)
        theirs, their_weights = context_tokens(context, self.encoder.token_rows)
        return ours + theirs, our_weights + their_weights

    def _evaluate(self, network: Network, rows: npt.NDArray[np.int64]) -> tuple[_Batch, _States, Tensor]:
        """Encoded transitions and item vectors of a network, without gradients."""
        with torch.no_grad():
            batch = self._batch(rows)
            items = network.item_inputs(self._all_items())
            return batch, self._encode(network, batch, items), network.item_vectors(items)

    def _held_out(self, network: Network) -> dict[str, float]:
        """Root mean squared TD errors on the latest held-out transitions: of this model, and of this process's first.

        Targets are those of this model's V(s') for both, so that one may be compared with the other.
        """
        rows = self._buffer.latest(_EVALUATED, held_out=True)
        if not len(rows) or self._first is None or self._scores_are_logits:
            return {}
        batch, states, vectors = self._evaluate(network, rows)
        _, states_first, vectors_first = self._evaluate(self._first, rows)
        with torch.no_grad():
            y, weight = self._targets(network, batch, states, network.value(states.after))
            q = self._q(network, states.user, vectors, batch.slate)
            q_first = self._q(self._first, states_first.user, vectors_first, batch.slate)
            counted = weight.sum().clamp(min=_LEAST_WEIGHT)
            errors = ((weight * (each - y) ** 2).sum() / counted for each in (q, q_first))
            now, first = (error.sqrt().item() for error in errors)
        return {"td_error_held_out": now, "td_error_held_out_first": first}

    def _estimate_examination(self) -> None:
        """How much each place is looked at: observed rewards over those expected if all were looked at alike."""
        rows = self._buffer.latest(_EVALUATED)
        network = self.fit.online
        batch, states, vectors = self._evaluate(network, rows)
        with torch.no_grad():
            value = batch.discount * network.value(states.after)
            q = self._q(network, states.user, vectors, batch.slate) + self._told(self._before(batch), batch.slate)
            expected = (q - value[:, None]).clamp(min=0.005)
            place = (batch.slate_position - 1).clamp(0, MAX_POSITIONS - 1).flatten().cpu().numpy()
            shown = batch.shown.flatten().cpu().numpy()
            observed = np.bincount(place, batch.slate_reward.flatten().cpu().numpy() * shown, MAX_POSITIONS)
            predicted = np.bincount(place, expected.flatten().cpu().numpy() * shown, MAX_POSITIONS)
        if observed.sum() <= 0:
            return
        scale = predicted.sum() / observed.sum()
        ratio = (observed * scale + _EXAMINATION_PRIOR) / (predicted + _EXAMINATION_PRIOR)
        self._examination = np.clip(ratio / max(ratio[0], 1e-6), _LEAST_EXAMINATION, 1.0).astype(np.float32)

    def publish(self) -> ServingModel:
        """The next version of the model; training goes on as if nothing had happened."""
        self.version += 1
        network = self.fit.published
        if self._first is None:
            self._first = copy.deepcopy(network)
        prior, curve = self._prior(network)
        metrics = self._held_out(network) | curve
        metrics["noise_variance"] = prior.noise_variance
        metrics["prior_trace"] = float(np.trace(np.linalg.inv(prior.precision)))
        standings = self._log.standings()
        for name, one in standings.items():
            told = {"share": one.share, "value": one.value, **one.interval._asdict(), "users": one.users}
            metrics |= {f"strategy.{name}.{key}": float(value) for key, value in told.items()}
        return ServingModel(
            name="headwater",
            version=self.version,
            settings=self.encoder,
            weights=network.weights(),
            prior=prior,
            discount=self.settings.discount,
            discount_unit_ms=self.settings.discount_unit_ms,
            examination=self._examination.copy(),
            popularity=dict(self._shown),
            neighbours=self._neighbours(),
            strategies={name: one.share for name, one in standings.items()},
            metrics=metrics,
            trained_transitions=self.trained_transitions,
            follows=self._follows,
            learners={
                name: fit.published.reward_weights.detach().float().cpu().numpy().copy()
                for name, fit in self._beside.items()
            },
        )

    def evaluations(self) -> list[Evaluation]:
        """What policies are worth by the latest transitions."""
        return self._log.evaluations()

    def _prior(self, network: Network) -> tuple[Prior, dict[str, float]]:
        """What the latest transitions teach of the users' heads, and the curve of what it is worth to a new user.

        A policy learner's prior has the policy's own weights for its mean, so that a stranger is served by the policy,
        and what it says of rewards is spread: the heads learn where this user differs. The bias, which ranks nothing,
        is set so that the scores are the targets' on average.
        """
        mean = network.reward_weights.detach().double().cpu().numpy()
        start = updates.starting(mean)
        rows = self._buffer.latest(self.settings.prior_transitions)
        if not len(rows) or not self._row:
            return start, {}
        others, held_out = updates.held_out_users(self._observations(network, rows), self.settings.cold_start_share)
        if self._scores_are_logits and len(others.y):
            start = updates.levelled(start, others)
        keep_mean = self._scores_are_logits or self._by_clicks
        prior = updates.learn(others, start, self.settings, seed=self.version, keep_mean=keep_mean)
        return prior, cold_start.curve(held_out, prior)

    def _observations(self, network: Network, rows: npt.NDArray[np.int64]) -> Observations:
        """What was shown in these transitions, with its target, in their order."""
        users, features, targets, weights = [], [], [], []
        for part in np.array_split(rows, max(1, len(rows) // _EVALUATED)):
            batch, states, vectors = self._evaluate(network, part)
            with torch.no_grad():
                y, weight = self._targets(network, batch, states, network.value(states.after))
                shown = weight > 0
                features.append((states.user[:, None, :] * vectors[batch.slate])[shown].double().cpu().numpy())
                targets.append(y[shown].double().cpu().numpy())
                weights.append(weight[shown].double().cpu().numpy())
                users.append(np.repeat(self._buffer.columns["user"][part], shown.sum(dim=1).cpu().numpy()))
        return Observations(
            np.concatenate(users).astype(np.int64),
            np.concatenate(features),
            np.concatenate(targets),
            np.concatenate(weights),
        )

    def _neighbours(self) -> dict[str, list[str]]:
        """For each item, those clicked close to it in histories, by cosine of their counts."""
        columns = self._buffer.columns
        latest = {int(columns["user"][row]): row for row in self._buffer.latest(self.settings.buffer_size)}
        rows = np.array(sorted(latest.values()), np.int64)
        if not len(rows):
            return {}
        history, length = columns["history"][rows].astype(np.int64), columns["history_length"][rows][:, None]
        present = np.arange(history.shape[1])[None] < length
        size = len(self._row)
        pairs = [
            code
            for reach in range(1, _NEIGHBOUR_REACH + 1)
            for code in self._pairs(history[:, :-reach][present[:, reach:]], history[:, reach:][present[:, reach:]])
        ]
        codes, counts = np.unique(np.concatenate(pairs), return_counts=True)
        item, other = np.divmod(codes, size)
        clicked = np.bincount(history[present], minlength=size)
        score = counts / np.sqrt(clicked[item] * clicked[other])
        ids = list(self._row)
        found: dict[str, list[str]] = {}
        for place in np.lexsort((other, -score, item)).tolist():
            best = found.setdefault(ids[item[place]], [])
            if item[place] != other[place] and len(best) < self.settings.neighbours:
                best.append(ids[other[place]])
        return {item_id: best for item_id, best in found.items() if best}

    def _pairs(
        self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return first * len(self._row) + second, second * len(self._row) + first

    def checkpoint(self) -> bytes:
        """Everything, so that a restored learner goes on as this one would have."""
        words = {
            "items": [[item_id, self._items.get(item_id)] for item_id in self._row],
            "offered": sorted(self._offered),
            "shown": self._shown,
            "counts": [self.version, self.steps, self.trained_transitions],
            "random": json.dumps(self._rng.bit_generator.state),
            "algorithm": self.settings.algorithm,
        }
        return save(
            {
                **self.fit.state(),
                **{
                    f"learner.{name}.{key}": part
                    for name, fit in self._beside.items()
                    for key, part in fit.state().items()
                },
                **{f"buffer.{name}": column for name, column in self._buffer.state().items()},
                **{f"strategies.{name}": column for name, column in self._log.state().items()},
                **{f"follows.{name}": part for name, part in (self._follows.arrays() if self._follows else {}).items()},
                "examination": self._examination,
                "words": np.frombuffer(msgspec.json.encode(words), np.uint8),
            }
        )

    def restore(self, blob: bytes) -> None:
        """Become the learner that `checkpoint` was taken of; settings have to be the same.

        Raises:
            SettingsError: it was taken of another algorithm.
        """
        arrays = load(blob)
        words = msgspec.json.decode(arrays["words"].tobytes(), type=_Words)
        if words.algorithm != self.settings.algorithm:
            raise SettingsError(
                f"learner.algorithm = {self.settings.algorithm!r}: expected {words.algorithm!r}, of which the "
                "checkpoint was taken; name another trainer.checkpoint_dir or move it away"
            )
        self._row = {item_id: row for row, (item_id, _) in enumerate(words.items)}
        self._items = {item_id: item for item_id, item in words.items if item is not None}
        self._offered, self._shown = set(words.offered), words.shown
        self._item_batch = None
        self.version, self.steps, self.trained_transitions = words.counts
        self._rng.bit_generator.state = json.loads(words.random)
        self._examination = arrays["examination"].copy()
        self.fit.restore(arrays)
        for name, fit in self._beside.items():
            if state := _part(arrays, f"learner.{name}."):  # else a strategy has brought it since: it begins anew
                fit.restore(state)
        self._buffer.restore(_part(arrays, "buffer."))
        follows = _part(arrays, "follows.")
        self._follows, self._successors = Follows.of(follows) if follows else None, None
        strategies = _part(arrays, "strategies.")
        if strategies:  # a checkpoint of an earlier release has none
            self._log.restore(strategies)


class _Words(msgspec.Struct, frozen=True):
    items: list[tuple[str, Item | None]]
    offered: list[str]
    shown: dict[str, tuple[float, float]]
    counts: tuple[int, int, int]
    random: str
    algorithm: str = "double-q-learning"


def _part(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of this prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

"""What a model has to beat, and the score that a worker gives to a user whose head has seen nothing."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.evaluation.histories import History, latest
from model_core.follows import recent_rows
from model_core.records import Item
from model_core.serving import ServingModel

__all__ = ["MarkovChain", "model_scores", "popularity"]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

_AT_ONCE: Final = 256
_BACKGROUND: Final = 1e-4
"""Weight of popularity in a Markov chain's scores: it only orders what never followed."""


def popularity(train: Sequence[History], items: int) -> FloatArray:
    """How often each item was taken; float64[items]."""
    events = [history.items for history in train]
    return np.bincount(np.concatenate(events or [np.zeros(0, np.int64)]), minlength=items).astype(np.float64)


class MarkovChain:
    """Transition shares from each of the last `order` items, the k-th last weighing 1 / k.

    Args:
        train: histories to count in.
        items: of the catalogue.
        order: how far back.
    """

    def __init__(self, train: Sequence[History], items: int, order: int = 3) -> None:
        popular = popularity(train, items)
        self._background = _BACKGROUND * popular / max(popular.sum(), 1.0)
        self._shares = []
        for back in range(1, order + 1):
            counts = np.zeros((items, items), np.float32)
            for history in train:
                np.add.at(counts, (history.items[:-back], history.items[back:]), 1.0)
            self._shares.append(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))

    def scores(self, histories: Sequence[History]) -> FloatArray:
        """Of every item after each history; float64[n, items]."""
        found = np.tile(self._background, (len(histories), 1))
        for place, history in enumerate(histories):
            for back, shares in enumerate(self._shares[: len(history.items)], start=1):
                found[place] += shares[history.items[-back]] / back
        return found


def model_scores(model: ServingModel, items: Sequence[Item], histories: Sequence[History]) -> Float32Array:
    """φ(s, a)ᵀ E[w] + f(s, a) of every item after each history, by the prior: how a worker ranks for a stranger."""
    weight = model.prior.mean.astype(np.float32)
    inputs, vectors = model.item_inputs(items), model.item_vectors(items)
    row = {item.item_id: number for number, item in enumerate(items)}
    following = None if model.follows is None else model.follows.within(row, len(items))
    found = np.zeros((len(histories), len(items)), np.float32)
    for start in range(0, len(histories), _AT_ONCE):
        part = [latest(history) for history in histories[start : start + _AT_ONCE]]
        length = np.array([len(history.items) for history in part], np.int64)
        x = np.zeros((len(part), int(length.max(initial=0)), inputs.shape[1]), np.float32)
        reward = np.zeros(x.shape[:2], np.float32)
        for place, history in enumerate(part):
            x[place, : length[place]] = inputs[history.items]
            reward[place, : length[place]] = history.rewards
        users = model.user_vectors(model.last(x, reward, length), [one.traits for one in part], [{}] * len(part))
        found[start : start + len(part)] = (users * weight) @ vectors.T
        if following is not None:
            recent = recent_rows([history.items for history in part], len(following.lags))
            found[start : start + len(part)] += following.scores(recent)
    return found

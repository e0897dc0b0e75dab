"""What numpy serves is what torch learned."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model_core.config import EncoderSettings
from model_core.encoder.network import ItemBatch, Network
from model_core.features.tokens import context_tokens, item_tokens, trait_tokens
from model_core.records import Item
from model_core.serving import ServingModel
from tests.unit.learner_case import CATALOGUE, ENCODER, both_forms

ITEMS = [*CATALOGUE, Item(item_id="bare"), Item(item_id="wordy", text="a b c d e f g h i j k")]


def both(encoder: EncoderSettings) -> tuple[Network, ServingModel]:
    """One set of random weights, in torch and in numpy."""
    return both_forms(encoder, draws=2, seed=2, deviation=0.4)


def batch(encoder: EncoderSettings) -> ItemBatch:
    return ItemBatch(*(torch.from_numpy(part) for part in item_tokens(ITEMS, encoder)))


@pytest.mark.parametrize("encoder", [ENCODER, EncoderSettings()])
def test_item_vectors_are_the_same(encoder: EncoderSettings) -> None:
    """Inputs and vectors of items with and without words agree to 1e-5."""
    network, model = both(encoder)
    with torch.no_grad():
        x = network.item_inputs(batch(encoder))
        np.testing.assert_allclose(model.item_inputs(ITEMS), x.numpy(), atol=1e-5)
        np.testing.assert_allclose(model.item_vectors(ITEMS), network.item_vectors(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("encoder", [ENCODER, EncoderSettings()])
def test_states_and_values_are_the_same(encoder: EncoderSettings) -> None:
    """States after every prefix, padded histories and empty ones included, and V of each, agree to 1e-5."""
    network, model = both(encoder)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, encoder.embedding)).astype(np.float32)
    reward = rng.normal(size=(5, 7)).astype(np.float32)
    length = np.array([0, 1, 3, 7, 6])
    with torch.no_grad():
        theirs = network.states(torch.from_numpy(x), torch.from_numpy(reward), torch.from_numpy(length))
        values = network.value(theirs.flatten(0, 1))
    ours = model.encode(x, reward, length)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.value(ours.reshape(-1, encoder.hidden)), values.numpy(), atol=1e-5)


def test_one_step_at_a_time_is_the_whole_history() -> None:
    """`advance`, as a worker calls it event by event, reaches the states of `encode`."""
    _, model = both(ENCODER)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, ENCODER.embedding)).astype(np.float32)
    reward = rng.random((2, 6)).astype(np.float32)
    states = model.encode(x, reward, np.array([6, 6]))
    state = states[:, 0]
    for place in range(6):
        state = model.advance(state, x[:, place], reward[:, place])
        np.testing.assert_allclose(state, states[:, place + 1], atol=1e-6)


@pytest.mark.parametrize("encoder", [ENCODER, EncoderSettings()])
def test_user_vectors_are_the_same(encoder: EncoderSettings) -> None:
    """Traits and contexts, none, one or several, enter both alike."""
    network, model = both(encoder)
    rng = np.random.default_rng(1)
    h = rng.normal(size=(3, encoder.hidden)).astype(np.float32)
    traits: list[dict[str, Any]] = [{}, {"age": "25"}, {"age": "30", "sex": "f", "n": 3}]
    context: list[dict[str, Any]] = [{"device": "tv"}, {}, {"device": "phone", "hour": 7}]
    tokens, weights = np.zeros((3, 8), np.int64), np.zeros((3, 8), np.float32)
    for user in range(3):
        ours, our_weights = trait_tokens(traits[user], encoder.token_rows)
        theirs, their_weights = context_tokens(context[user], encoder.token_rows)
        tokens[user, : len(ours + theirs)] = ours + theirs
        weights[user, : len(ours + theirs)] = our_weights + their_weights
    with torch.no_grad():
        known = network.known(torch.from_numpy(tokens), torch.from_numpy(weights))
        expected = network.user_vectors(torch.from_numpy(h), known).numpy()
    np.testing.assert_allclose(model.user_vectors(h, traits, context), expected, atol=1e-5)


def test_what_is_observed_and_the_odds_of_a_click_are_the_same() -> None:
    """A simulator's observation enters the state, and the choice's odds are e to its logits, in both alike."""
    encoder = replace(ENCODER, observation=5, choice=True)
    network, model = both(encoder)
    rng = np.random.default_rng(2)
    h, seen = rng.normal(size=(3, encoder.hidden)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    user, vectors = rng.normal(size=(2, 3, encoder.dimension)).astype(np.float32)
    with torch.no_grad():
        states = network.observed(torch.from_numpy(h), torch.from_numpy(seen))
        logits = network.click_logits(torch.from_numpy(user), torch.from_numpy(vectors)[None].expand(3, -1, -1))
    np.testing.assert_allclose(model.observed(h, seen), states.numpy(), atol=1e-6)
    np.testing.assert_allclose(model.click_odds(user, vectors), logits.exp().numpy(), rtol=1e-4)


def test_groups_cover_every_coordinate_once() -> None:
    """What a coordinate stands for is said exactly once."""
    model = ServingModel.initial(ENCODER)
    covered = np.zeros(model.dimension, int)
    for part in model.groups.values():
        covered[part] += 1
    assert covered.tolist() == [1] * model.dimension

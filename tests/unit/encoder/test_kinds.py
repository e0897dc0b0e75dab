"""Every kind of encoder, in torch, in numpy and in the engine."""

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model_core import user_state
from model_core.candidates import Catalogue
from model_core.config import EncoderKind, EncoderSettings, PolicySettings
from model_core.encoder.network import Network
from model_core.engine import Engine, EngineSettings
from model_core.errors import InvariantError, SettingsError
from model_core.learner import Learner
from model_core.records import Click, Impression
from model_core.serving import ServingModel
from tests.unit.engine_case import JOIN, T0, Task, click, impression, items
from tests.unit.learner_case import SETTINGS, both_forms, transition

KINDS = get_args(EncoderKind)
TRANSFORMERS = [kind for kind in KINDS if kind.endswith("transformer")]
LENGTHS = np.array([0, 1, 3, 20, 15, 16])


def encoder(kind: EncoderKind, **more: int) -> EncoderSettings:
    shapes: dict[str, Any] = {
        "hidden": 16,
        "embedding": 8,
        "dimension": 16,
        "id_rows": 64,
        "token_rows": 64,
        "window": 5,
    } | more
    return EncoderSettings(kind=kind, **shapes)


def both(settings: EncoderSettings) -> tuple[Network, ServingModel]:
    """One set of random weights, in torch and in numpy."""
    return both_forms(settings, draws=1, seed=2, deviation=0.4)


def histories() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    x, reward = rng.normal(size=(6, 20, 8)), rng.normal(size=(6, 20))
    return x.astype(np.float32), reward.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_serves_what_torch_learned(kind: EncoderKind) -> None:
    """States after every prefix, empty, short and beyond the window, agree to 1e-5, and so does the last one."""
    network, model = both(encoder(kind))
    x, reward = histories()
    given = torch.from_numpy(x), torch.from_numpy(reward), torch.from_numpy(LENGTHS)
    with torch.no_grad():
        theirs, last = network.states(*given).numpy(), network.last(*given).numpy()
    ours = model.encode(x, reward, LENGTHS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(model.last(x, reward, LENGTHS), last, atol=1e-5)
    assert not np.allclose(ours[3, 5], ours[3, 6])


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_state_does_not_depend_on_who_else_is_read(kind: EncoderKind) -> None:
    """Alone, and padded beside longer histories, the bits are the same."""
    _, model = both(encoder(kind))
    x, reward = histories()
    together = model.last(x, reward, LENGTHS)
    for user, length in enumerate(LENGTHS.tolist()):
        one = slice(user, user + 1)
        alone = model.last(x[one, :length], reward[one, :length], LENGTHS[one])
        assert alone.tobytes() == together[one].tobytes()


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_what_lies_beyond_the_reach_changes_nothing(kind: EncoderKind) -> None:
    """A worker reads the last entries alone and comes to the state of the whole history."""
    _, model = both(encoder(kind))
    x, reward = histories()
    length = np.array([20])
    whole = model.last(x[3:4], reward[3:4], length)
    cut = model.last(x[3:4, -model.reach :], reward[3:4, -model.reach :], np.array([model.reach]))
    np.testing.assert_allclose(cut, whole, atol=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_transformer_has_no_step(kind: EncoderKind) -> None:
    """`advance` of what reads its history again is our fault, and says what to call."""
    _, model = both(encoder(kind))
    with pytest.raises(InvariantError, match="last"):
        model.advance(np.zeros((1, 16), np.float32), np.zeros((1, 8), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_entries_are_not_seen(kind: EncoderKind) -> None:
    """The state that is to tell an entry does not change with the entry; what follows it changes a mask's alone."""
    network, _ = both(encoder(kind))
    x, reward = (torch.from_numpy(part[3:4]) for part in histories())
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    hidden[0, 10] = True
    changed = x.clone()
    changed[0, 10] += 1.0
    with torch.no_grad():
        told, which = network.predicting(x, reward, torch.tensor([20]), hidden)
        again, _ = network.predicting(changed, reward, torch.tensor([20]), hidden)
    assert which[0, 10]
    assert which.sum() == (1 if kind == "masked-transformer" else 20)
    torch.testing.assert_close(again[0, 10], told[0, 10])


def engine(model: ServingModel) -> Engine:
    catalogue = Catalogue()
    for item in items(20):
        catalogue.set(item)
    policy = PolicySettings(slate_size=4, candidates=20)
    return Engine(EngineSettings(join=JOIN, policy=policy, encoder=model.settings), catalogue, model, seed=7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_holds_the_state_of_the_history(kind: EncoderKind) -> None:
    """Clicks in several batches, and one of an item that nobody knows, lead to the state that a rebuild finds."""
    _, model = both(encoder(kind, window=50))
    task = Task(engine(model))
    shown = ["m1", "m2", "m3", "m4"]
    for n in range(4):
        at = T0 + n * 10_000
        task.send([impression("u", f"i{n}", at, shown), click("u", f"c{n}", f"i{n}", shown[n], at + 5)])
    state = user_state.decode(task.states[b"u"])
    history = state.join.history
    assert [entry.item_id for entry in history] == shown
    known = {item.item_id: x for item, x in zip(items(20), model.item_inputs(items(20)), strict=True)}
    x = np.array([[known[entry.item_id] for entry in history]])
    expected = model.encode(x, np.ones((1, 4), np.float32), np.array([4]))[0, -1]
    np.testing.assert_allclose(np.frombuffer(state.hidden, np.float32), expected, atol=1e-6)
    assert len(task.recommendations()) == 4


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_an_impression_stands_on_what_lies_before_it(kind: EncoderKind) -> None:
    """In one batch with later clicks, its features are those of a batch of its own."""
    _, model = both(encoder(kind))
    apart, together = Task(engine(model)), Task(engine(model))
    first: list[Impression | Click] = [impression("u", "i1", T0, ["m1", "m2"]), click("u", "c1", "i1", "m1", T0 + 5)]
    second: list[Impression | Click] = [
        impression("u", "i2", T0 + 9_000, ["m3", "m4"]),
        click("u", "c2", "i2", "m3", T0 + 9_005),
    ]
    for task in (apart, together):
        task.send(first[:1])
    for record in (*first[1:], *second):
        apart.send([record])
    together.send([*first[1:], *second])
    ours, theirs = (user_state.decode(task.states[b"u"]) for task in (together, apart))
    assert ours.hidden == theirs.hidden
    for one, other in zip(ours.join.open, theirs.join.open, strict=True):
        np.testing.assert_allclose(
            np.frombuffer(one.features, np.float32), np.frombuffer(other.features, np.float32), atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_of_one_and_an_empty_history_have_a_slate(kind: EncoderKind) -> None:
    """A stranger is shown the one item there is."""
    _, model = both(encoder(kind))
    catalogue = Catalogue()
    catalogue.set(items(1)[0])
    task = Task(Engine(EngineSettings(join=JOIN, encoder=model.settings), catalogue, model, seed=7))
    task.send([impression("u", "i1", T0, ["m0"])])
    assert [place.item_id for place in task.recommendations()[0].slate] == ["m0"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_learns_with_every_kind(kind: EncoderKind) -> None:
    """The next-item loss falls, and a restored learner goes on bit for bit."""
    settings = encoder(kind, id_rows=256, token_rows=256)
    learner = Learner(SETTINGS, settings, device="cpu", seed=3)
    for item in items(12):
        learner.set_item(item)
    for user in range(40):
        history: list[str] = []
        for visit in range(5):
            chosen = f"m{(user + visit) % 12}"
            reward = [(chosen, 1.0), (f"m{(user + 5) % 12}", 0.0)]
            learner.add(transition(f"u{user}", f"i{visit}", reward, list(history), event_time_ms=T0 + visit))
            history.append(chosen)
    before = learner.train(5)["next_item_loss"]
    learner.train(60)
    restored = Learner(SETTINGS, settings, device="cpu", seed=9)
    restored.restore(learner.checkpoint())
    after = learner.train(5)
    assert after["next_item_loss"] < before - 0.3
    assert restored.train(5) == after


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (EncoderSettings(kind="lstm", hidden=15), "hidden"),
        (EncoderSettings(kind="causal-transformer", hidden=15), "hidden"),
        (EncoderSettings(kind="bidirectional"), "kind"),  # type: ignore[arg-type]
        (EncoderSettings(window=0), "window"),
    ],
)
def test_wrong_shapes_are_refused_by_name(settings: EncoderSettings, key: str) -> None:
    """An odd LSTM, heads that do not divide the state, an unknown kind and an empty window name the setting."""
    with pytest.raises(SettingsError, match=f"encoder.{key}"):
        settings.check()

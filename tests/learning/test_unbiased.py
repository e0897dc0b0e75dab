"""What delays and places do to clicks does not reach what is learned: a simulator in which both are known."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from model_core.config import EncoderSettings, LearnerSettings
from model_core.learner import Learner
from model_core.records import Click, Impression, Item, Transition
from tests.unit.engine_case import JOIN, T0, Task, click, engine, impression
from tests.unit.learner_case import transition

ATTRACTION = np.array([0.6, 0.3, 0.6, 0.3, 0.1, 0.1])
"""Of six items. Clicks on the first two come after 40 s on average, those on the others after 5 s."""
DELAY_MS = np.array([40_000.0, 40_000.0, 5_000.0, 5_000.0, 5_000.0, 5_000.0])
WINDOW_MS = JOIN.attribution_window_ms
PLACES = 3
EXAMINED = 1 / (1 + 0.7 * np.arange(PLACES))
ENCODER = EncoderSettings(
    dimension=12, item_coordinates=4, hidden=8, embedding=8, id_rows=256, token_rows=64, tokens_per_item=4
)


def world(people: int, seed: int) -> list[tuple[int, Impression | Click]]:
    """Impressions, and clicks with their delays cut at the window, by the time at which they happen."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, Impression | Click]] = []
    for person in range(people):
        time_ms = T0 + 1_000 * person
        shown = rng.permutation(len(ATTRACTION))[:PLACES].tolist()
        found.append((time_ms, impression(f"u{person}", "i", time_ms, [f"m{item}" for item in shown])))
        for item in shown:
            if rng.random() < ATTRACTION[item]:
                at_ms = time_ms + min(int(rng.exponential(DELAY_MS[item])), WINDOW_MS)
                found.append((at_ms, click(f"u{person}", f"c{item}", "i", f"m{item}", at_ms)))
    return sorted(found, key=lambda one: one[0])


def rates(transitions: list[Transition]) -> npt.NDArray[np.float64]:
    """Mean reward of each item."""
    shown, reward = np.zeros((2, len(ATTRACTION)))
    for one in transitions:
        for item in one.slate:
            shown[int(item.item_id[1:])] += 1
            reward[int(item.item_id[1:])] += item.reward
    found: npt.NDArray[np.float64] = reward / shown
    return found


def test_delayed_clicks_do_not_bias_rewards() -> None:
    """Settled rewards are the attractions, as though clicks were at once; those known ten seconds on are far below."""
    people = 600
    happened = world(people, 1)
    join = replace(JOIN, provisional_transitions=True)
    task = Task(engine(len(ATTRACTION), join=join))
    for start in range(0, len(happened), 100):
        task.send([record for _, record in happened[start : start + 100]])
    task.heartbeat(happened[-1][0] + WINDOW_MS + JOIN.session_gap_ms + JOIN.allowed_lateness_ms + 1)
    settled = [one for one in task.last_revisions().values() if one.settled]
    assert len(settled) == people
    assert not task.dead()
    error = (ATTRACTION * (1 - ATTRACTION) / (people * PLACES / len(ATTRACTION))) ** 0.5
    assert (np.abs(rates(settled) - ATTRACTION) < 3.5 * error).all()
    shown_ms = {one.user_id: one.event_time_ms for one in settled}
    early = {
        (record.user_id, record.item_id)
        for at_ms, record in happened
        if isinstance(record, Click) and at_ms - shown_ms[record.user_id] <= 10_000
    }
    at_once = np.zeros(len(ATTRACTION))
    for one in settled:
        for item in one.slate:
            at_once[int(item.item_id[1:])] += (one.user_id, item.item_id) in early
    biased = at_once / (people * PLACES / len(ATTRACTION))
    assert biased[0] < biased[3] < ATTRACTION[3], "who does not wait takes the better item for the worse one"


@pytest.mark.learning
def test_places_do_not_bias_what_items_are_worth() -> None:
    """Each item stands mostly at one place; Q tells them by attraction, where clicks by views tell them by place."""
    rng = np.random.default_rng(2)
    attraction = np.array([0.30, 0.37, 0.45])
    settings = LearnerSettings(
        batch_size=128, slate_size=PLACES, candidates=3, negatives=3, next_item_weight=0.0, discount=0.0,
        held_out_share=0.0, weight_decay=0.0, learning_rate=3e-3,
    )  # fmt: skip
    made = Learner(settings, ENCODER, device="cpu", seed=1)
    for item in range(PLACES):
        made.set_item(Item(item_id=f"m{item}"))
    clicks, views = np.zeros((2, PLACES))
    for person in range(6_000):
        order = rng.permutation(PLACES) if rng.random() < 0.4 else np.arange(PLACES)
        clicked = rng.random(PLACES) < attraction[order] * EXAMINED
        np.add.at(views, order, 1)
        np.add.at(clicks, order, clicked)
        rewards = [(f"m{item}", float(hit)) for item, hit in zip(order.tolist(), clicked.tolist(), strict=True)]
        made.add(transition(f"u{person}", "i", rewards, terminated=True))
    assert (clicks / views).argmax() == 0, "the worst item is clicked most often, for it mostly stands first"
    made.train(800)
    model = made.publish()
    user = model.user_vectors(np.zeros((1, ENCODER.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    scores = ((user * mean) @ model.item_vectors([Item(item_id=f"m{item}") for item in range(PLACES)]).T)[0]
    assert scores.argmax() == 2
    assert 1 > model.examination[1] > model.examination[2]
    assert np.abs(model.examination[:PLACES] - EXAMINED).max() < 0.17, "drawn towards 1, as its docstring says"

"""When the trainer trains and publishes."""

from dataclasses import replace

import pytest

from model_core.errors import SettingsError
from streams.training.schedule import Schedule, ScheduleState, transitions_per_round
from streams.training.settings import TrainerSettings


def rounds_at(settings: TrainerSettings, count: int, state: ScheduleState) -> list[int]:
    schedule, trained = Schedule(settings, 8, state), []
    for _ in range(count):
        schedule.consume()
        while schedule.round_due():
            schedule.trained()
            trained.append(schedule.state.transitions)
    return trained


SETTINGS = TrainerSettings(min_transitions=10, early_transitions=0, replay_ratio=4.0, steps_per_round=2)


def test_a_round_is_paid_by_its_samples() -> None:
    """Two steps of 8 samples at 4 samples a transition cost 4 transitions."""
    assert transitions_per_round(SETTINGS, 8, 1) == 4


def test_what_is_owed_is_trained_when_there_is_enough() -> None:
    """Nothing before the minimum; then what it pays for at once, then evenly."""
    assert rounds_at(SETTINGS, 21, ScheduleState()) == [10, 10, 12, 16, 20]


def test_the_first_transitions_are_replayed_more_often() -> None:
    """While there is little to learn from it is worth more: twice as often up to the 16th here."""
    early = replace(SETTINGS, early_transitions=16, early_replay_ratio=8.0)
    assert rounds_at(early, 24, ScheduleState()) == [10, 10, 10, 10, 10, 12, 14, 16, 20, 24]


def test_training_falls_at_the_same_counts_after_a_resume() -> None:
    """A state carried over at any count goes on as if nothing had been between."""
    whole = rounds_at(SETTINGS, 40, ScheduleState())
    for cut in range(40):
        state = ScheduleState()
        assert rounds_at(SETTINGS, cut, state) + rounds_at(SETTINGS, 40 - cut, state) == whole


def test_steps_are_counted() -> None:
    """The total of steps is that of the rounds."""
    state = ScheduleState()
    rounds_at(SETTINGS, 21, state)
    assert (state.steps, state.unpublished_steps, state.owed) == (10, 10, 1)


def test_models_by_count_go_out_once_at_each_multiple() -> None:
    """A publication is due at each multiple of the count, if something was learned since the last."""
    settings = replace(SETTINGS, publish_every_transitions=8)
    schedule, published = Schedule(settings, 8, ScheduleState()), []
    for _ in range(30):
        schedule.consume()
        while schedule.round_due():
            schedule.trained()
        if schedule.publication_due():
            schedule.published()
            published.append(schedule.state.transitions)
    assert published == [10, 16, 24]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 0),
        ("checkpoints_kept", 1),
        ("versions_kept", 2),
        ("replay_ratio", 0.0),
        ("niceness", 20),
        ("publish_interval_s", float("inf")),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(key: str, value: float) -> None:
    """The error has the key, the value and the expectation."""
    with pytest.raises(SettingsError, match=rf"trainer\.{key} = .*expected"):
        TrainerSettings(**{key: value}).check()  # type: ignore[arg-type]

"""When to train: a pure function of the count of settled transitions consumed, and of nothing else.

Rules:
    1. Nothing is trained before `min_transitions` settled transitions; what they are owed is then trained.
    2. From there on, one round of `steps_per_round` steps for every `transitions_per_round` transitions, so
       that the replay ratio is kept, samples drawn for each transition: a round costs steps · batch / ratio.
    3. Records that are no settled transition (provisional ones, erasures, garbage) do not count.

No clock enters, so a run that was killed and resumed trains on the same buffer at the same points.
"""

import math

from msgspec import Struct

from streams.training.settings import TrainerSettings

__all__ = ["Schedule", "ScheduleState", "transitions_per_round"]


class ScheduleState(Struct):
    """How far training has come; part of the checkpoint.

    Attributes:
        transitions: settled transitions consumed, over all time.
        owed: of these, how many no round has answered yet.
        steps: training steps done, over all time.
        unpublished_steps: of these, done since the last publication.
        published_at: `transitions` at the last publication by count.
    """

    transitions: int = 0
    owed: int = 0
    steps: int = 0
    unpublished_steps: int = 0
    published_at: int = 0


def transitions_per_round(settings: TrainerSettings, batch_size: int, transitions: int) -> int:
    """How many settled transitions pay for one round of training (at least one), after so many of them."""
    early = transitions <= settings.early_transitions
    ratio = settings.early_replay_ratio if early else settings.replay_ratio
    return max(1, math.ceil(settings.steps_per_round * batch_size / ratio))


class Schedule:
    """Counts transitions and says what is due."""

    def __init__(self, settings: TrainerSettings, batch_size: int, state: ScheduleState) -> None:
        self.state = state
        self._settings = settings
        self._batch_size = batch_size

    def consume(self) -> None:
        """Count one settled transition."""
        self.state.transitions += 1
        self.state.owed += 1

    def round_due(self) -> bool:
        """Whether a round of training has to be done before the next record is taken."""
        enough = self.state.transitions >= self._settings.min_transitions
        return enough and self.state.owed >= self._per_round()

    def trained(self, *, learned: bool = True) -> None:
        """Note that one round was done; without anything to learn from it is passed over."""
        self.state.owed -= self._per_round()
        if not learned:
            return
        self.state.steps += self._settings.steps_per_round
        self.state.unpublished_steps += self._settings.steps_per_round

    def _per_round(self) -> int:
        return transitions_per_round(self._settings, self._batch_size, self.state.transitions)

    def publication_due(self) -> bool:
        """Whether a model goes out at this count (the first at once); never where they go out by the clock."""
        every, state = self._settings.publish_every_transitions, self.state
        if every == 0 or state.unpublished_steps == 0:
            return False
        return state.published_at == 0 or state.transitions // every > state.published_at // every

    def published(self) -> None:
        """Note that a model went out."""
        self.state.unpublished_steps = 0
        self.state.published_at = self.state.transitions

    def never_arrived(self) -> None:
        """Note that the last model did not reach the topic: one is due although nothing was learned since."""
        self.state.unpublished_steps = max(1, self.state.unpublished_steps)

"""Every default of the trainer role, once, with its meaning and unit."""

import math
from dataclasses import dataclass

from model_core.errors import SettingsError

__all__ = ["TrainerSettings"]


def _expect(holds: bool, key: str, value: object, expected: str) -> None:  # noqa: FBT001 - an assertion
    if not holds:
        raise SettingsError(f"trainer.{key} = {value!r}: expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How the trainer process trains, checkpoints and publishes.

    Training is scheduled by the count of transitions consumed, never by a clock, so that it is a function of
    the input's order; clocks decide only when something is written out.

    Attributes:
        device: a torch device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`, `cuda:1`.
        start: folder of a model's files (of `headwater pretrain`) that the trainer begins with where it has no
            checkpoint; empty for untrained weights.
        threads: of torch on the CPU; serving shares the machine.
        niceness: added to the child process's nice value, 0 to 19.
        seed: of all randomness in training.
        checkpoint_dir: where checkpoints are kept; empty for `trainer` in the data directory.
        checkpoint_interval_s: at most this many seconds of input are learned again after a crash (20 times
            the duration of a checkpoint where that is more, so that writing takes 5 % at most).
        checkpoints_kept: files kept, the newest included; 2 or more, so that a torn one has a predecessor.
        min_transitions: settled transitions before the first training step.
        early_transitions: the first ones, over all time, which are replayed more often: while there is little
            to learn from, it is worth more, and costs little.
        early_replay_ratio: samples drawn from the buffer for each of these.
        replay_ratio: samples drawn from the buffer for each settled transition after them.
        steps_per_round: training steps done at a time.
        publish_interval_s: a model goes out this many seconds after the last one, if it has learned since (10
            times the duration of making one where that is more).
        publish_every_transitions: the first model goes out once what is there is learned, others at every
            multiple of this count, whatever the clock says, and once more when input pauses for
            `publish_interval_s`; 0 for by the clock.
        versions_kept: model versions whose parts stay in `models`, the newest included; `model-versions` has them all.
        in_flight_bytes: transitions handed to the child and not yet consumed; more waits in Kafka.
        stop_timeout_s: a child that has not checkpointed and ended by then is killed (its last checkpoint
            stands).
        failpoints: for tests only, what to arm in the child process (see `streams.failpoints`).
    """

    device: str = "auto"
    start: str = ""
    threads: int = 1
    niceness: int = 10
    seed: int = 0
    checkpoint_dir: str = ""
    checkpoint_interval_s: float = 60.0
    checkpoints_kept: int = 2
    min_transitions: int = 500
    early_transitions: int = 2_000
    early_replay_ratio: float = 16.0
    replay_ratio: float = 2.0
    steps_per_round: int = 4
    publish_interval_s: float = 15.0
    publish_every_transitions: int = 0
    versions_kept: int = 3
    in_flight_bytes: int = 8 * 2**20
    stop_timeout_s: float = 6.0
    failpoints: str = ""

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        _expect(bool(self.device), "device", self.device, "auto, cpu, cuda or another torch device")
        _expect(0 <= self.niceness <= 19, "niceness", self.niceness, "0 to 19")  # noqa: PLR2004 - nice(1)
        for key, least in (
            ("threads", 1),
            ("checkpoints_kept", 2),
            ("min_transitions", 1),
            ("early_transitions", 0),
            ("steps_per_round", 1),
            ("publish_every_transitions", 0),
            ("versions_kept", 3),
            ("in_flight_bytes", 1),
        ):
            _expect(getattr(self, key) >= least, key, getattr(self, key), f"{least} or more")
        for key in (
            "checkpoint_interval_s",
            "early_replay_ratio",
            "replay_ratio",
            "publish_interval_s",
            "stop_timeout_s",
        ):
            value = getattr(self, key)
            _expect(value > 0 and math.isfinite(value), key, value, "more than 0")

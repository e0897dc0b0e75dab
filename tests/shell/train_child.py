"""A trainer child with a learner that is quick and whose every bit depends on what it was fed, in which order."""

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec

from model_core.errors import ModelError
from model_core.records import Evaluation, Item, ModelManifest, Transition
from streams.training.child import main
from streams.training.messages import Start

POISON = "poison"
"""Adding a transition of this user raises."""
SLOW = "slow"
"""Adding a transition of this user takes half a second."""


class FakeLearner:
    """Its weights are a hash chain over everything it was told."""

    device = "cpu"

    def __init__(self) -> None:
        self.version = 0
        self.weights = b""
        self.users: list[str] = []
        self.left_out: Mapping[str, int] = {}

    @property
    def buffer_size(self) -> int:
        return len(self.users)

    def _mix(self, *parts: object) -> None:
        self.weights = hashlib.sha256(self.weights + repr(parts).encode()).digest()

    def set_item(self, item: Item) -> None:
        self._mix("item", item.item_id)

    def remove_item(self, item_id: str) -> None:
        self._mix("remove", item_id)

    def add(self, transition: Transition) -> None:
        if transition.user_id == POISON:
            raise ModelError("poisoned")
        if transition.user_id == SLOW:
            time.sleep(0.5)
        self.users.append(transition.user_id)
        self._mix("add", transition.transition_id)

    def erase(self, user_id: str) -> None:
        self.users = [user for user in self.users if user != user_id]

    def train(self, steps: int) -> dict[str, float]:
        self._mix("train", steps, sorted(self.users))
        return {"loss": float(self.weights[0])}

    def publish(self) -> tuple[ModelManifest, list[bytes]]:
        self.version += 1
        part = self.weights + msgspec.json.encode(sorted(self.users))
        manifest = ModelManifest(
            name="fake",
            version=self.version,
            parts=2,
            bytes=len(part),
            hash=hashlib.sha256(part).hexdigest(),
            tensors={},
            features=self.version,
        )
        return manifest, [part[:10], part[10:]]

    def evaluations(self) -> list[Evaluation]:
        return [
            Evaluation(
                policy="fake",
                estimator="on_policy",
                value=float(len(self.users)),
                low=0.0,
                high=1.0,
                effective_sample_size=1.0,
                mean_weight=1.0,
                largest_weight=1.0,
                verdict="supported",
            )
        ]

    def checkpoint(self) -> bytes:
        return msgspec.msgpack.encode((self.weights, self.users))

    def restore(self, blob: bytes) -> None:
        self.weights, self.users = msgspec.msgpack.decode(blob, type=tuple[bytes, list[str]])


def make(_: Start) -> FakeLearner:
    return FakeLearner()


if __name__ == "__main__":
    sys.exit(main(make))

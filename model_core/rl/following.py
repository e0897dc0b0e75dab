"""What the networks say of the state after each of B transitions."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from model_core.rl.clicks import Clicks

__all__ = ["Following", "ShownNext"]


class ShownNext(NamedTuple):
    """The next slates.

    Attributes:
        q: float[B, K], of each item under the target network.
        mask: float[B, K], 1 for an item and 0 beyond a slate; a row of zeros where nothing followed.
        clicks: on these items, where V(s) is SlateQ's.
    """

    q: Tensor
    mask: Tensor
    clicks: Clicks | None = None


class Following(NamedTuple):
    """The B next states.

    Attributes:
        online: float[B, C], Q of each candidate under the online network.
        target: float[B, C], the same under the target network.
        value: float[B], the target network's value head; computed for those who ask.
        shown: the next slates; computed for those who ask.
        clicks: on the candidates, where V(s) is SlateQ's.
    """

    online: Tensor
    target: Tensor
    value: Callable[[], Tensor]
    shown: Callable[[], ShownNext]
    clicks: Clicks | None = None

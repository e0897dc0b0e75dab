"""How evenly users whose activity follows Zipf's law spread over 64 partitions: the busiest over the mean. Simulated.

    python -m benchmarks.skew [--quick] [--seed N] [--json] [--keep]

The r-th most active of 200 000 users has a share of the events proportional to 1 / r^s, and its key goes where Kafka's
own partitioner puts it. A stream task is a partition, so the busiest one sets how far workers can share the load.
"""

import argparse
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import Figure, main
from streams.topics import partition_for

__all__ = ["over_mean", "shares"]

_PARTITIONS: Final = 64
_USERS: Final = 200_000
_QUICK: Final = 20_000
_EXPONENTS: Final = (0.6, 0.8, 1.0, 1.2)
_SEEDS: Final = 5


def shares(users: int, exponent: float) -> npt.NDArray[np.float64]:
    """Share of the events of each user, the most active first; float64[users]."""
    weights = 1.0 / np.arange(1, users + 1) ** exponent
    found: npt.NDArray[np.float64] = weights / weights.sum()
    return found


def over_mean(share: npt.NDArray[np.float64], partition: npt.NDArray[np.int64], partitions: int) -> float:
    """Load of the busiest partition over the mean of all."""
    return float(np.bincount(partition, share, minlength=partitions).max() * partitions)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """By exponent: the mean over seeds and their range; and the busiest user's own share."""
    users = _QUICK if options.quick else _USERS
    seeds = range(options.seed, options.seed + _SEEDS)
    placed = [
        np.array([partition_for(f"{seed}-{user}".encode(), _PARTITIONS) for user in range(users)]) for seed in seeds
    ]
    for exponent in _EXPONENTS:
        share = shares(users, exponent)
        found = tuple(over_mean(share, partition, _PARTITIONS) for partition in placed)
        name = f"zipf_{exponent}"
        yield Figure(f"{name}_busiest_over_mean", float(np.mean(found)), min(found), max(found), runs=_SEEDS)
        yield Figure(f"{name}_busiest_user_share", float(share[0]))


if __name__ == "__main__":
    main("skew", __doc__, measure)

"""Feeds by their names on the command line: for `produce` and for `replay`."""

from pathlib import Path
from typing import Final, get_args

from model_core.errors import SettingsError
from producers.closed_loop import LoopSettings
from producers.datasets import MOVIELENS, OPEN_BANDIT, fetch
from producers.feeds.feed import Feed
from producers.feeds.jsonl import jsonl_feed
from producers.feeds.movielens import movielens_feed
from producers.feeds.open_bandit import Behaviour, Campaign, open_bandit_feed
from producers.simulate import simulated_log, simulated_people

__all__ = ["feed_of"]

_START_MS: Final = 1_700_000_000_000
_ROUNDS: Final = 20
_NAMES: Final = "a JSONL file or folder, open-bandit[:random|bts[/all|men|women]], movielens, or simulate"


def feed_of(name: str, *, seed: int) -> Feed:
    """The feed of a name.

    Args:
        name: a path, or one of the feeds that come with Headwater.
        seed: of the simulator.

    Raises:
        SettingsError: there is no such feed.
        DatasetUnavailableError: its data cannot be had.
    """
    kind, _, choice = name.partition(":")
    if kind == "open-bandit":
        return _open_bandit(choice)
    if name == "movielens":
        return movielens_feed(fetch(MOVIELENS))
    if name == "simulate":
        return simulated_log(
            simulated_people(seed=seed),
            LoopSettings(start_ms=_START_MS, rounds=_ROUNDS, arms=("random",), patience_steps=0),
        )
    path = Path(name)
    if path.exists():
        return jsonl_feed(path)
    raise SettingsError(f"FEED = {name!r}: expected {_NAMES}")


def _open_bandit(choice: str) -> Feed:
    named, _, about = choice.partition("/")
    behaviour = next((one for one in get_args(Behaviour) if one == (named or "random")), None)
    campaign = next((one for one in get_args(Campaign) if one == (about or "all")), None)
    if behaviour is None or campaign is None:
        raise SettingsError(f"FEED = 'open-bandit:{choice}': expected {_NAMES}")
    return open_bandit_feed(fetch(OPEN_BANDIT), behaviour, campaign)

"""Event feeds: ordered streams of source records, from logs and from public data sets."""

from producers.feeds.feed import Feed, FeedRecord, heartbeat, merge, of
from producers.feeds.jsonl import jsonl_feed
from producers.feeds.movielens import movielens_feed
from producers.feeds.open_bandit import open_bandit_feed

__all__ = [
    "Feed",
    "FeedRecord",
    "heartbeat",
    "jsonl_feed",
    "merge",
    "movielens_feed",
    "of",
    "open_bandit_feed",
]

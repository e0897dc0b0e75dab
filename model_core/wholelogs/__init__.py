"""Whole logs as columns: a backfill that steps nobody, and comes to what the engine comes to.

`columns` makes columns of records, `joined` is the join over them, `heads` what the users' heads and encoder states
come to, `states` the users' records and the last revisions; `apart` steps those whom columns do not express; `whole` is
all of it for one stream task.
"""

from model_core.wholelogs.columns import ROLES, Columns, Gathering
from model_core.wholelogs.whole import WholeTask, why_not

__all__ = ["ROLES", "Columns", "Gathering", "WholeTask", "why_not"]

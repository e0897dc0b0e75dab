"""Partitions and their copies, over generated comings and goings of workers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.assignor import Share, distribute

Memberships = list[set[str]]
MEMBERS = st.sets(st.sampled_from("abcdef"), min_size=1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(MEMBERS, min_size=1, max_size=6), st.integers(0, 12), st.integers(0, 3))
def test_each_partition_is_served_once_and_copied_elsewhere(
    memberships: Memberships, partitions: int, replicas: int
) -> None:
    """Nobody serves two more than another; copies are of what others serve, as many as there are others."""
    shares: dict[str, Share] = {}
    for members in memberships:
        shares = distribute({name: shares.get(name, Share()) for name in members}, partitions, replicas)
        served = sorted(at for share in shares.values() for at in share.active)
        assert served == [*range(partitions)]
        sizes = [len(share.active) for share in shares.values()]
        assert max(sizes) - min(sizes) <= 1
        copied = sorted(at for share in shares.values() for at in share.standby)
        assert copied == sorted([*range(partitions)] * min(replicas, len(members) - 1))
        assert not any(share.active & share.standby for share in shares.values())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(MEMBERS, min_size=1, max_size=6), st.integers(0, 12), st.integers(0, 2))
def test_where_nobody_comes_or_goes_nothing_moves(memberships: Memberships, partitions: int, replicas: int) -> None:
    """And who stays gives up no more than evenness takes from it."""
    shares: dict[str, Share] = {}
    for members in memberships:
        before = {name: shares.get(name, Share()) for name in members}
        shares = distribute(before, partitions, replicas)
        for name, share in shares.items():
            kept = len(share.active & before[name].active)
            assert kept >= min(len(before[name].active), partitions // len(members))
        assert distribute(shares, partitions, replicas) == shares


def test_who_has_a_copy_takes_over() -> None:
    """Of three workers one is lost: each of its partitions goes to the worker that kept a copy of it."""
    three = distribute({name: Share() for name in "abc"}, 6, 1)
    two = distribute({name: three[name] for name in "bc"}, 6, 1)
    for at in three["a"].active:
        (heir,) = [name for name in "bc" if at in two[name].active]
        assert at in three[heir].standby


def test_two_who_claim_a_partition_do_not_both_serve_it() -> None:
    """A worker that slept through a rebalance comes back with what others serve by now."""
    claimed = Share(frozenset({0, 1}))
    shares = distribute({"a": claimed, "b": claimed, "c": Share()}, 3, 0)
    assert sorted(at for share in shares.values() for at in share.active) == [0, 1, 2]

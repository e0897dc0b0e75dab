"""Candidates are what may be offered, from the sources that claim them."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from model_core.candidates import SOURCES, Candidates, Catalogue, Embedded
from model_core.config import PolicySettings
from model_core.records import Item
from model_core.serving import ServingModel
from model_core.user_state import item_key
from tests.unit.learner_case import ENCODER

COUNT = 40
NAMES = sorted((f"m{n}" for n in range(COUNT + 10)), key=item_key)
"""In the order of their rows."""
MODEL = replace(
    ServingModel.initial(ENCODER),
    popularity={NAMES[n]: (100.0, 90.0 - n) for n in range(30)},
    neighbours={NAMES[0]: [NAMES[35], NAMES[39]], NAMES[1]: [NAMES[38]]},
)
SETTINGS = PolicySettings(slate_size=3, candidates=12, popular_share=0.25, new_share=0.25, cooccurring_share=0.25)
NOBODY = np.zeros(0, np.int64)
SCORES = np.random.default_rng(5).random((4, COUNT)).astype(np.float32)


def catalogue(count: int = COUNT) -> Catalogue:
    made = Catalogue()
    for n in range(count):
        made.set(Item(item_id=NAMES[n], title=f"Film {n}", categories=[f"c{n % 3}"]))
    return made


def selected(embedded: Embedded, users: int = 4, last: list[list[str]] | None = None) -> Candidates:
    turn = np.linspace(0.0, 0.99, users)
    scores = np.resize(SCORES, (users, len(embedded.available)))
    return embedded.select(scores, last or [[] for _ in range(users)], [NOBODY] * users, turn)


def test_each_user_gets_as_many_different_candidates_as_wanted() -> None:
    """Distinct rows, ordered by item key."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    pool = selected(embedded)
    assert pool.rows.shape == (4, 12)
    for rows in pool.rows:
        assert len(set(rows.tolist())) == 12
        assert (np.diff(embedded.keys[rows].astype(object)) > 0).all()


def test_sources_claim_their_shares() -> None:
    """A quarter popular, a quarter new, the co-clicked of the last items, the rest nearest."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    pool = selected(embedded, 1, [[NAMES[0], NAMES[1]]])
    by_source = {
        name: {int(row) for row, source in zip(pool.rows[0], pool.source[0], strict=True) if SOURCES[source] == name}
        for name in SOURCES
    }
    assert by_source["popular"] == {0, 1, 2}
    assert by_source["co-clicked"] == {35, 39, 38}
    assert by_source["new"] == {30, 31, 32}
    assert len(by_source["nearest"]) == 3
    others = [row for row in range(COUNT) if row not in set().union(*by_source.values())]
    assert SCORES[0, list(by_source["nearest"])].min() > SCORES[0, others].max()


def test_new_items_take_turns() -> None:
    """Over many draws every new item is a candidate of somebody."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    pool = selected(embedded, 50)
    new = pool.rows[pool.source == SOURCES.index("new")]
    assert set(new.tolist()) == set(range(30, 40))


def test_what_is_seen_is_no_candidate_whatever_claims_it() -> None:
    """The filter binds popular, new, co-clicked and near items alike, one user at a time."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    seen = np.array([0, 1, 30, 31, 35, int(SCORES[0].argmax())])
    pool = embedded.select(SCORES[:2], [[NAMES[0]], [NAMES[0]]], [seen, NOBODY], np.zeros(2))
    assert not set(seen.tolist()) & set(pool.rows[0].tolist())
    assert {0, 1, 35} <= set(pool.rows[1].tolist())


def test_a_user_who_has_seen_almost_all_gets_what_is_left() -> None:
    """Fewer candidates than wanted: the rest of the row is -1, at its end."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    pool = embedded.select(SCORES[:1], [[]], [np.arange(37)], np.zeros(1))
    assert sorted(pool.rows[0, :3].tolist()) == [37, 38, 39]
    assert pool.rows[0, 3:].tolist() == [-1] * 9


def test_unavailable_and_removed_items_are_never_offered() -> None:
    """Neither popularity nor co-clicks bring them back; an item that returns is offered again."""
    items = catalogue()
    embedded = Embedded(items, MODEL, SETTINGS)
    items.remove(NAMES[0])
    items.set(Item(item_id=NAMES[35], available=False))
    embedded.refresh()
    pool = selected(embedded, 30, [[NAMES[0]]] * 30)
    assert not {0, 35} & set(pool.rows.ravel().tolist())
    items.set(Item(item_id=NAMES[0]))
    embedded.refresh()
    assert 0 in selected(embedded).rows


@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_small_catalogues_are_offered_whole(count: int) -> None:
    """With fewer items than candidates wanted, each of them is one."""
    embedded = Embedded(catalogue(count), MODEL, SETTINGS)
    pool = selected(embedded, 2)
    assert pool.rows.shape == (2, min(count, 12))
    assert all(len(set(rows.tolist())) == min(count, 12) for rows in pool.rows)


def test_a_refreshed_catalogue_is_one_embedded_anew() -> None:
    """New, changed and removed items: the same vectors, and the same candidates by id."""
    items = catalogue()
    embedded = Embedded(items, MODEL, SETTINGS)
    items.set(Item(item_id="fresh", title="New one"))
    items.set(Item(item_id=NAMES[3], title="Other words"))
    items.remove(NAMES[4])
    embedded.refresh()
    anew = Embedded(items, MODEL, SETTINGS)
    alive = embedded.available
    assert np.array_equal(alive, anew.available)
    np.testing.assert_allclose(embedded.vectors[alive], anew.vectors[alive], atol=1e-6)
    assert np.array_equal(embedded.keys, anew.keys)
    ours, theirs = selected(embedded), selected(anew)
    assert np.array_equal(ours.rows, theirs.rows)
    assert np.array_equal(ours.source, theirs.source)


def test_a_batch_of_one_and_a_batch_of_many_choose_alike() -> None:
    """A user's candidates do not depend on who else is served."""
    embedded = Embedded(catalogue(), MODEL, SETTINGS)
    turn = np.array([0.1, 0.5, 0.9, 0.3])
    last = [[NAMES[0]], [], [NAMES[1], NAMES[0]], ["unknown"]]
    seen = [NOBODY, np.array([2, 3]), NOBODY, np.array([36])]
    together = embedded.select(SCORES, last, seen, turn)
    for user in range(4):
        one = slice(user, user + 1)
        alone = embedded.select(SCORES[one], last[one], seen[one], turn[one])
        assert np.array_equal(alone.rows[0], together.rows[user])
        assert np.array_equal(alone.source[0], together.source[user])


def test_rows_are_kept_and_found_by_id_and_key() -> None:
    """A removed item keeps its row, so that histories that hold it still encode."""
    items = catalogue(3)
    items.remove(NAMES[1])
    items.set(msgspec.structs.replace(Item(item_id=NAMES[2]), title="x"))
    assert [items.row(name) for name in (NAMES[0], NAMES[1], NAMES[2], NAMES[9])] == [0, 1, 2, -1]
    assert [items.row_of_key(key) for key in items.keys] == [0, 1, 2]
    assert items.row_of_key(12345) == -1
    assert len(items) == 2


def test_the_order_in_which_items_came_changes_nothing() -> None:
    """All at once, one by one in any order, or changed on the way: the same bits, row by row."""
    items = [Item(item_id=NAMES[n], title=f"Film {n}", categories=[f"c{n % 3}"]) for n in range(COUNT)]
    embedded = [Embedded(catalogue(), MODEL, SETTINGS)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(COUNT).tolist()
        made = Catalogue()
        one_by_one = Embedded(made, MODEL, SETTINGS)
        for n in order:
            made.set(msgspec.structs.replace(items[n], title="Another"))
            one_by_one.refresh()
            made.set(items[n])
        one_by_one.refresh()
        assert [made.row(NAMES[n]) for n in range(COUNT)] == list(range(COUNT))
        embedded.append(one_by_one)
    for one in embedded[1:]:
        assert one.vectors.tobytes() == embedded[0].vectors.tobytes()
        assert one.inputs.tobytes() == embedded[0].inputs.tobytes()
        pool, expected = selected(one), selected(embedded[0])
        assert (pool.rows.tolist(), pool.source.tolist()) == (expected.rows.tolist(), expected.source.tolist())

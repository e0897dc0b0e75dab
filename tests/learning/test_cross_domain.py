"""The benchmark of a start from another catalogue, a few epochs of the old shop."""

import importlib.util

import numpy as np
import pytest

from benchmarks.cross_domain import Shop, shops
from benchmarks.next_item import data
from producers.datasets import DatasetUnavailableError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="headwater[text] is not installed (Python 3.11 to 3.13)"
)


@pytest.fixture(scope="module")
def made() -> tuple[Shop, Shop]:
    """The old and the new shop of the first seed, from the cache or the package index."""
    try:
        return shops(data(), 1)
    except DatasetUnavailableError as error:
        pytest.skip(str(error))


def test_the_shops_share_no_film_and_nobody_is_asked_what_was_taught(made: tuple[Shop, Shop]) -> None:
    """Half of the films each, some 850 and 90 people; the last film is behind all that teaches."""
    old, new = made
    assert not {item.item_id for item in old.items} & {item.item_id for item in new.items}
    assert len(old.items) + len(new.items) == 1_682
    assert 800 < len(old.test) < 943 * 0.95
    assert 60 < len(new.test) < 943 * 0.15
    for shop in made:
        for taught_by, earlier, last in zip(shop.train, shop.validation, shop.test, strict=True):
            np.testing.assert_array_equal(earlier.history.items, taught_by.items)
            np.testing.assert_array_equal(last.history.items, [*taught_by.items, earlier.item])
            assert last.item not in last.history.items
            assert int(taught_by.items.max()) < len(shop.items)

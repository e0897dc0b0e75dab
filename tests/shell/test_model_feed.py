"""`models` into the engine: what completes a model swaps it in, what is wrong with it is refused and counted."""

from typing import Any, NamedTuple

import pytest

from model_core import model_file, records
from model_core.config import EncoderSettings
from model_core.errors import ModelError
from model_core.records import Cause, ModelManifest
from model_core.serving import ServingModel
from streams.metrics import Metrics
from streams.models import ModelFeed


class Message(NamedTuple):
    """A record of the topic, as librdkafka gives it."""

    named: str
    content: bytes | None
    at: int = 0

    def key(self) -> bytes:
        return self.named.encode()

    def value(self) -> bytes | None:
        return self.content

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at


class Served:
    """What was swapped in, and the feed that did it."""

    def __init__(self, name: str | None = None) -> None:
        self.models: list[Any] = []
        self.causes: list[Cause] = []
        self.metrics = Metrics()
        self.feed = ModelFeed(self._swap, self.metrics, name=name)

    def _swap(self, model: Any, cause: Cause) -> None:
        self.models.append(model)
        self.causes.append(cause)

    @property
    def versions(self) -> list[int]:
        return [model.version for model in self.models]

    @property
    def refused(self) -> float:
        return self.metrics.registry.get_sample_value("headwater_models_refused_total") or 0.0


def model(version: int) -> tuple[ModelManifest, list[bytes]]:
    made = ServingModel.initial(EncoderSettings())
    made.version = version
    manifest, parts = model_file.pack(made)
    return manifest, parts


def messages(version: int, *, at: int = 0) -> list[Message]:
    manifest, parts = model(version)
    name = manifest.name
    return [
        *(Message(f"{name}/{version}/{number}", part) for number, part in enumerate(parts)),
        Message(name, records.encode(manifest), at),
    ]


def test_parts_and_then_the_manifest_swap_a_model_in() -> None:
    """Nothing happens before the manifest; the cause is its place in the log; a newer one follows."""
    served = Served()
    *parts, manifest = messages(1, at=7)
    served.feed.apply(parts)
    assert served.models == []
    served.feed.apply([manifest])
    served.feed.apply(messages(2))
    assert served.versions == [1, 2]
    assert served.causes[0] == Cause(topic="models", partition=0, offset=7)
    assert served.metrics.registry.get_sample_value("headwater_model_version") == 2.0


def test_of_a_backlog_only_the_newest_good_model_serves() -> None:
    """A reader that comes late swaps once."""
    served = Served()
    served.feed.apply([*messages(1), *messages(2), *messages(3)])
    assert served.versions == [3]


@pytest.mark.parametrize("flaw", ["a byte is wrong", "a part is missing", "no manifest"])
def test_a_bad_model_is_refused_and_the_old_one_serves_on(flaw: str) -> None:
    """Counted, logged, and the next good one is taken in as if nothing had been."""
    served = Served()
    served.feed.apply(messages(1))
    bad = messages(2)
    if flaw == "a byte is wrong":
        content = bytearray(bad[0].content or b"")
        content[-1] ^= 1
        bad[0] = bad[0]._replace(content=bytes(content))
    elif flaw == "a part is missing":
        bad = bad[1:]
    else:
        bad[-1] = bad[-1]._replace(content=b'{"name": 3}')
    served.feed.apply(bad)
    assert served.versions == [1]
    assert served.refused == 1.0
    served.feed.apply(messages(3))
    assert served.versions == [1, 3]


def test_another_name_is_none_of_this_workers_business() -> None:
    """A worker that serves one name neither swaps nor refuses others."""
    served = Served(name="somebody-else")
    served.feed.apply(messages(1))
    assert served.models == []
    assert served.refused == 0.0


def test_the_file_says_what_is_wrong_and_what_to_do() -> None:
    """An error of a model names its version and keeps the old one."""
    manifest, parts = model(5)
    with pytest.raises(ModelError, match=r"model 5 .*keep the model that serves"):
        model_file.unpack(manifest, [parts[0][:-1], *parts[1:]])


def test_a_model_that_the_engine_cannot_serve_is_refused_and_the_next_one_serves() -> None:
    """What the swap itself finds wrong counts as refused; the feed goes on."""
    served = Served()

    def swap(model: Any, cause: Cause) -> None:
        if model.version == 1:
            raise ModelError("it wants other text vectors")
        served._swap(model, cause)

    feed = ModelFeed(swap, served.metrics)
    for version in (1, 2):
        manifest, parts = model(version)
        for number, part in enumerate(parts):
            feed.apply([Message(f"headwater/{version}/{number}", part)])
        feed.apply([Message("headwater", records.encode(manifest))])
    assert (served.versions, served.refused) == ([2], 1.0)

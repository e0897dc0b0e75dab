"""`headwater pretrain --publish` on Apache Kafka."""

from dataclasses import replace
from pathlib import Path

import pytest

from headwater.pretrain import PretrainOptions, pretrain
from model_core import model_file
from model_core.errors import HeadwaterError
from streams import model_files
from tests.shell.test_pretrain import SETTINGS, log
from tests.shell.train_kafka import Bench, wait_ready

pytestmark = pytest.mark.broker


def test_a_pretrained_model_is_on_the_topic_as_the_next_version(broker: str, tmp_path: Path) -> None:
    """Whole, bit for bit the folder's and with its table; a second goes on above it, and so does a trainer."""
    bench = Bench(broker, tmp_path, "pretrained")
    settings = replace(SETTINGS, streams=bench.settings, pretraining=replace(SETTINGS.pretraining, epochs=1))
    for number in (1, 2):
        out = tmp_path / f"model{number}"
        found = pretrain(settings, PretrainOptions(str(log(tmp_path)), out, publish=True, seed=number))
        assert found is not None
        assert (found.version, found.published) == (number, True)
        manifest, joined = bench.models(number)[number]
        assert joined == (out / model_files.WEIGHTS).read_bytes()
        model = model_file.unpack(manifest, [joined])
        assert model.version == number
        assert model.follows is not None
        assert model.neighbours["m0"][0] == "m1"
    bench.transitions(0, 60)
    with bench.trainer() as trainer:
        wait_ready(trainer)
        assert [*bench.models(4)] == [1, 2, 3, 4]


def test_publishing_needs_the_topics(broker: str, tmp_path: Path) -> None:
    """Where nobody created them the error says how, after the model is in no topic."""
    bench = Bench(broker, tmp_path, "declared")
    nowhere = replace(bench.settings, topic_prefix="nowhere-")
    settings = replace(SETTINGS, streams=nowhere, pretraining=replace(SETTINGS.pretraining, epochs=1))
    with pytest.raises(HeadwaterError, match="topics create"):
        pretrain(settings, PretrainOptions(str(log(tmp_path)), tmp_path / "model", publish=True))

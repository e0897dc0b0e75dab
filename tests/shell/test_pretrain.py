"""`headwater pretrain` and `benchmark-model`, on a small log in files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headwater.benchmark_model import BenchmarkOptions, benchmark_model
from headwater.benchmark_model import described as described_benchmark
from headwater.histories import logged
from headwater.pretrain import CHECKPOINT, PretrainOptions, described, pretrain
from headwater.replay import engine_with
from headwater.settings import Settings
from model_core.config import EncoderKind, EncoderSettings, PretrainingSettings
from model_core.errors import ModelError, SettingsError
from streams import model_files
from streams.training.learner import learner_of
from tests.shell.train_helpers import start

T0 = 1_700_000_000_000
COUNT = 8
SETTINGS = Settings(
    encoder=EncoderSettings(hidden=16, embedding=16, dimension=24, id_rows=128, token_rows=128),
    pretraining=PretrainingSettings(epochs=25, patience=25, learning_rate=0.02, dropout=0.0, batch_entries=100),
)


def log(folder: Path, *more: dict[str, Any]) -> Path:
    """People who click through a catalogue in order, one film shown beside each, in one mixed file."""
    path = folder / "log.jsonl"
    rows: list[dict[str, Any]] = [{"topic": "items", "item_id": f"m{n}", "title": f"Film {n}"} for n in range(COUNT)]
    rows += [{"topic": "users", "user_id": f"u{user}", "traits": {"age": "25"}} for user in range(30)]
    for visit in range(8):
        for user in range(30):
            item, other = f"m{(user + visit) % COUNT}", f"m{(user + visit + 4) % COUNT}"
            about = {"impression_id": f"i{visit}", "user_id": f"u{user}", "event_time_ms": T0 + visit * 60_000 + user}
            rows.append({"topic": "impressions", **about, "slate": [{"item_id": item}, {"item_id": other}]})
            rows.append({"topic": "clicks", **about, "click_id": f"c{visit}", "item_id": item})
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    return path


def test_a_pretrained_model_serves_is_measured_and_starts_the_trainer(tmp_path: Path) -> None:
    """Its files go into an engine, beat popularity by far, and are the weights that a trainer begins with."""
    options = PretrainOptions(str(log(tmp_path)), tmp_path / "model", fine_tune="click", depth="all")
    said: list[str] = []
    found = pretrain(SETTINGS, options, show=said.append)
    assert found is not None
    assert found.ndcg10_test is not None
    assert found.fine_tuned is not None
    assert found.fine_tuned[1] < found.fine_tuned[0]
    assert len([line for line in said if line.startswith("epoch")]) == found.epochs
    assert "test" in described(found)
    model = engine_with(SETTINGS, tmp_path / "model").model
    assert model.metrics["ndcg10_test"] == found.ndcg10_test
    measured = benchmark_model(SETTINGS, BenchmarkOptions(tmp_path / "model", options.data, test_share=0.2))
    rows = measured.rows
    assert rows["model"].ndcg10.low > rows["popularity"].ndcg10.high
    assert sum(rows["model"].exposure.values()) == pytest.approx(1.0)
    assert measured.people == 30
    assert "popularity" in described_benchmark(measured)
    begin = start(tmp_path / "trainer", start=str(tmp_path / "model"), device="cpu", threads=1)
    trainer = learner_of(msgspec.structs.replace(begin, encoder=SETTINGS.encoder))
    np.testing.assert_array_equal(trainer.fit.online.weights()["gru_hidden"], model.weights["gru_hidden"])


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """What is in the folder after some epochs is gone on from; the model is that of an undisturbed run."""
    data = str(log(tmp_path))
    whole = PretrainOptions(data, tmp_path / "whole")
    parts = PretrainOptions(data, tmp_path / "parts")
    pretrain(SETTINGS, whole)

    class CutOffError(Exception):
        """The process ends here."""

    def stop(line: str) -> None:
        if line.startswith("epoch 9"):
            raise CutOffError

    with pytest.raises(CutOffError):
        pretrain(SETTINGS, parts, show=stop)
    said: list[str] = []
    pretrain(SETTINGS, parts, show=said.append)
    assert said[0] == "goes on after epoch 8"
    for name in (model_files.WEIGHTS, model_files.MANIFEST, CHECKPOINT):
        assert (whole.out / name).read_bytes() == (parts.out / name).read_bytes()


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    """Another seed is another run, and the error says what to do."""
    options = PretrainOptions(str(log(tmp_path)), tmp_path / "model")
    short = replace(SETTINGS, pretraining=replace(SETTINGS.pretraining, epochs=1))
    pretrain(short, options)
    with pytest.raises(SettingsError, match=CHECKPOINT):
        pretrain(short, options._replace(seed=2))


def test_what_a_log_says_badly_is_left_out_and_counted(tmp_path: Path) -> None:
    """Unreadable lines, kinds without a weight, and films that no catalogue names."""
    about = {"user_id": "u1", "impression_id": "i9", "event_time_ms": T0}
    path = log(
        tmp_path,
        {"topic": "clicks", "click_id": "c8"},
        {"topic": "clicks", **about, "click_id": "c9", "item_id": "m1", "kind": "purchase"},
        {"topic": "clicks", **about, "click_id": "c10", "item_id": "unheard-of"},
    )
    found = logged(SETTINGS, str(path), seed=1)
    assert found.left_out == {"schema": 1, "unknown-kind": 1}
    assert [item.item_id for item in found.items][-1] == "unheard-of"
    assert len(found.shown) == 2 * 8 * 30
    assert {example.reward for _, example in found.shown} == {0.0, 1.0}


def test_a_log_without_clicks_is_refused(tmp_path: Path) -> None:
    """There is nothing to learn from, and the error says so."""
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "m1"}\n')
    with pytest.raises(SettingsError, match="expected clicks"):
        pretrain(SETTINGS, PretrainOptions(str(path), tmp_path / "model"))


@pytest.mark.parametrize("kind", ["lstm", "masked-transformer"])
def test_a_model_of_another_shape_starts_nothing(tmp_path: Path, kind: EncoderKind) -> None:
    """Neither a pretraining nor a trainer: the error names what differs."""
    data = str(log(tmp_path))
    short = replace(SETTINGS, pretraining=replace(SETTINGS.pretraining, epochs=1))
    pretrain(short, PretrainOptions(data, tmp_path / "model"))
    other = replace(short, encoder=replace(SETTINGS.encoder, kind=kind))
    with pytest.raises(ModelError, match="another shape"):
        pretrain(other, PretrainOptions(data, tmp_path / "other", start=tmp_path / "model"))
    begin = start(tmp_path / "trainer", start=str(tmp_path / "model"), device="cpu", threads=1)
    with pytest.raises(ModelError, match="another shape"):
        learner_of(msgspec.structs.replace(begin, encoder=other.encoder))


def test_the_commands_print_one_object_and_exit_as_the_contract_says(tmp_path: Path) -> None:
    """0 with an object last on stdout; 2 for data or a model that is not there; 1 for a damaged one."""
    data, out = str(log(tmp_path)), str(tmp_path / "model")
    tune = ("--set", "pretraining.epochs=2", "--set", "encoder.hidden=8")
    found = command(*tune, "pretrain", "--data", data, "--out", out, "--kind", "causal-transformer", "--json")
    assert json.loads(found.stdout.splitlines()[-1])["kind"] == "causal-transformer"
    found = command("benchmark-model", out, "--data", data, "--json")
    assert set(json.loads(found.stdout)["rows"]) == {"model", "popularity", "markov"}
    assert command("pretrain", "--data", str(tmp_path / "nothing"), "--out", out, code=2).stdout == ""
    assert "manifest.json" in command("benchmark-model", str(tmp_path), "--data", data, code=2).stderr
    weights = tmp_path / "model" / model_files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "bytes" in command("benchmark-model", out, "--data", data, code=1).stderr


def test_two_processes_pretrain_one_model(tmp_path: Path) -> None:
    """Under torchrun each takes half of the batches; one writes the model, which has learned the order."""
    data, out = str(log(tmp_path)), tmp_path / "model"
    tune = [f"--set=pretraining.{one}" for one in ("epochs=15", "learning_rate=0.02", "batch_entries=60", "dropout=0")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "headwater"]
    told = [*launch, *tune, "--set=encoder.id_rows=128", "pretrain", "--data", data, "--out", str(out), "--json"]
    done = subprocess.run(told, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 1
    assert found[0]["ndcg10_test"] > 0.8
    assert model_files.read(out).metrics["ndcg10_test"] == found[0]["ndcg10_test"]


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "headwater", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr
    return done

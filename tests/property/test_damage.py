"""Bytes that are not what was written end in the error that is named for them, whatever they are."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import operator
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.settings import Settings, load
from model_core import model_file, records, user_state
from model_core.config import EncoderSettings
from model_core.errors import DecodeError, ModelError, SettingsError, StateError
from model_core.intake import clock_of
from model_core.records import ModelManifest
from model_core.serving import ServingModel
from streams.ports import pack, unpack
from streams.task import decode_offsets
from streams.training.checkpoint import CheckpointError, CheckpointStore, Header, read
from streams.training.schedule import ScheduleState
from tests.shell.test_model_feed import Message, Served, messages
from tests.shell.test_model_feed import model as messages_of
from tests.unit.engine_case import T0, Task, click, engine, impression

NUMBERS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
SCALARS = NUMBERS | st.text(max_size=20) | st.binary(max_size=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some changed, cut out, put in or left away at the end."""
    place = draw(st.integers(0, len(whole) - 1))
    length = draw(st.integers(0, 40))
    match draw(st.sampled_from(("change", "cut", "insert", "truncate", "flip"))):
        case "change":
            return whole[:place] + draw(st.binary(max_size=40)) + whole[place + length :]
        case "cut":
            return whole[:place] + whole[place + length :]
        case "insert":
            return whole[:place] + draw(st.binary(min_size=1, max_size=40)) + whole[place:]
        case "truncate":
            return whole[:place]
        case _:
            return whole[:place] + bytes((whole[place] ^ 1 << draw(st.integers(0, 7)),)) + whole[place + 1 :]


@functools.cache
def a_users_record() -> bytes:
    task = Task(engine())
    task.send(
        [impression("u", "i", T0, ["m1", "m2"]), click("u", "c", "i", "m1", T0 + 9), click("u", "d", "j", "m1", T0)]
    )
    return task.states[b"u"]


@functools.cache
def a_model() -> tuple[ModelManifest, bytes]:
    manifest, parts = model_file.pack(ServingModel.initial(EncoderSettings()))
    return manifest, b"".join(parts)


@given(st.data())
def test_a_damaged_users_record_is_a_state_error(data: st.DataObject) -> None:
    """Its checksum finds every change; what passes is what was written."""
    whole = a_users_record()
    found = data.draw(damaged(whole))
    if found == whole:
        return
    with pytest.raises(StateError):
        user_state.decode(found)


@given(st.lists(SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS), max_size=14))
def test_another_record_under_a_right_checksum_is_a_state_error_or_a_record(fields: list[Any]) -> None:
    """A body of the right form that some other code wrote: refused, or read as what it says."""
    fields = [one if not isinstance(one, int) or abs(one) < 2**63 else 0 for one in fields]
    try:
        body = msgspec.msgpack.encode(fields)
    except OverflowError:
        return
    stored = bytes((user_state.VERSION,)) + user_state.checksum(body) + body
    try:
        state = user_state.decode(stored)
    except StateError:
        return
    assert user_state.decode(user_state.encode(state)) == state


@given(st.binary(max_size=60))
def test_a_changelog_record_is_read_or_a_state_error(value: bytes) -> None:
    """A user's record and the task's own: torn ones are named, none is taken for another."""
    for decode in (clock_of, decode_offsets):
        with contextlib.suppress(StateError):
            decode(value)
    try:
        due, state = unpack(value)
    except StateError:
        assert len(value) <= 16
    else:
        assert pack(due, state) == value


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_model_is_a_model_error(data: st.DataObject) -> None:
    """In one part or in several, the hash finds it before a byte is used."""
    manifest, whole = a_model()
    found = data.draw(damaged(whole))
    if found == whole:
        return
    middle = data.draw(st.integers(0, len(found)))
    with pytest.raises(ModelError):
        model_file.unpack(manifest, [found[:middle], found[middle:]])


@settings(max_examples=150)
@given(st.data())
def test_a_model_that_was_made_wrong_is_a_model_error_or_can_serve(data: st.DataObject) -> None:
    """Under a manifest that vouches for it: header and constants are changed, where most can go wrong."""
    manifest, whole = a_model()
    header = 8 + int.from_bytes(whole[:8], "little")
    near = data.draw(st.sampled_from((whole[:header], whole[-2_000:])))
    found = whole.replace(near, data.draw(damaged(near)), 1)
    vouching = msgspec.structs.replace(manifest, bytes=len(found), hash=hashlib.sha256(found).hexdigest())
    try:
        model = model_file.unpack(vouching, [found])
    except ModelError:
        return
    assert all(np.isfinite(weight).all() for weight in model.weights.values())
    assert np.isfinite(model.prior.precision).all()


@given(st.dictionaries(st.sampled_from([*ModelManifest.__struct_fields__, "else"]), JSON))
def test_a_manifest_is_read_or_a_decode_error(fields: dict[str, Any]) -> None:
    """What stands under a model's name may be anything; a manifest of nothing vouches for no model."""
    manifest, whole = a_model()
    written = msgspec.to_builtins(manifest) | fields
    try:
        found = records.decode_as(ModelManifest, msgspec.json.encode(written))
    except DecodeError:
        return
    try:
        model_file.unpack(found, [whole])
    except ModelError:
        assert found != manifest


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(("headwater", "headwater/1/0", "x/y", "")), JSON | NUMBERS), max_size=4))
def test_whatever_stands_on_models_the_one_that_serves_stays(written: list[tuple[str, Any]]) -> None:
    """Manifests of a million million parts among it: refused, counted, and the next good one is taken in."""
    served = Served()
    served.feed.apply(messages(1))
    manifest = msgspec.to_builtins(messages_of(2)[0])
    for key, content in written:
        fields = content if isinstance(content, dict) else {"parts": content, "version": 9}
        for value in (content, manifest | fields):
            served.feed.apply([Message(key, msgspec.json.encode(value))])
    assert served.versions == [1]
    served.feed.apply(messages(3))
    assert served.versions == [1, 3]


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    header = Header(
        sequence=1,
        source="transitions@1",
        encoder="{}",
        offsets={0: 7},
        schedule=ScheduleState(),
        version=3,
        learner_bytes=900,
    )
    with tempfile.TemporaryDirectory() as folder:
        path, _ = CheckpointStore(Path(folder)).write(header, bytes(range(90)) * 10)
        return path.read_bytes()


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_checkpoint_is_a_checkpoint_error(data: st.DataObject, checkpoint: bytes) -> None:
    """Torn anywhere or altered by a bit, its hash finds it."""
    found = data.draw(damaged(checkpoint) | st.binary(max_size=80))
    if found == checkpoint:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.checkpoint"
        path.write_bytes(found)
        with pytest.raises(CheckpointError):
            read(path)


NAMES = [
    f"{group.name}.{one.name}"
    for group in dataclasses.fields(Settings)
    for one in dataclasses.fields(getattr(Settings(), group.name))
    if (group.name, one.name) != ("streams", "security")
]


@settings(max_examples=400)
@given(st.sampled_from(NAMES), SCALARS | st.text(max_size=40) | st.lists(SCALARS, max_size=3) | JSON)
def test_any_value_of_a_setting_is_taken_or_a_settings_error(name: str, value: Any) -> None:
    """Of whatever type: an option is what files, variables and the command line all become."""
    try:
        loaded = load({name: value}, environment={})
    except SettingsError:
        return
    taken = operator.attrgetter(name)(loaded.settings)
    assert not isinstance(taken, float) or math.isfinite(taken), "NaN slips through every comparison"


FRACTIONS = [name for name in NAMES if isinstance(operator.attrgetter(name)(Settings()), float)]


@pytest.mark.parametrize("name", [*FRACTIONS, "join.weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "-inf"])
def test_no_setting_is_infinite_or_not_a_number(name: str, value: Any) -> None:
    """NaN slips through every comparison, and TOML can write it."""
    if name == "join.weights":
        value = {"click": float(value)}
    with pytest.raises(SettingsError):
        load({name: value}, environment={})


@settings(max_examples=200)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_settings_file_is_read_or_a_settings_error(content: str | bytes) -> None:
    """TOML or not, text or not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "headwater.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(SettingsError):
            load(file=path, environment={})


@given(st.sampled_from(("impressions", "clicks", "items", "users")), JSON | st.binary(max_size=60))
def test_any_payload_is_a_record_or_a_decode_error(source: records.Source, content: Any) -> None:
    """What passes can be written again."""
    value = content if isinstance(content, bytes) else msgspec.json.encode(content)
    try:
        record = records.decode(source, value)
    except DecodeError:
        return
    assert records.decode(source, records.encode(record)) == record

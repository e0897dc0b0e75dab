"""All settings, from `headwater.toml`, then `HEADWATER_…` environment variables, then options; each knows its source.

This is the one module that reads the environment. A setting is named by its group and its key: `[join]
attribution_window_ms` in the file, `HEADWATER_JOIN_ATTRIBUTION_WINDOW_MS` in the environment,
`join.attribution_window_ms` as an option. `HEADWATER_BROKER` is short for `HEADWATER_STREAMS_BROKERS`.
"""

import dataclasses
import hashlib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from model_core.config import (
    EncoderSettings,
    EvaluationSettings,
    HeadSettings,
    JoinSettings,
    LearnerSettings,
    PolicySettings,
    PretrainingSettings,
    StrategySettings,
)
from model_core.engine import EngineSettings
from model_core.errors import SettingsError
from streams.settings import SecuritySettings, StreamSettings
from streams.training.settings import TrainerSettings

__all__ = ["Loaded", "Settings", "load"]

_FILE: Final = "headwater.toml"
_PREFIX: Final = "HEADWATER_"
_SECRETS: Final = ("security.password", "security.key_password", "security.erasure_secret")
_SHORT: Final = {
    "HEADWATER_BROKER": "streams.brokers",
    "HEADWATER_SEED": "general.seed",
    "HEADWATER_LOG_LEVEL": "general.log_level",
}
_OTHER_VARIABLES: Final = ("HEADWATER_CONFIG",)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralSettings:
    """What is nobody's in particular.

    Attributes:
        seed: of all randomness in serving.
        log_level: debug, info, warning or error.
        broker_wait_s: how long a command that needs the broker at once waits for it.
    """

    seed: int = 0
    log_level: str = "info"
    broker_wait_s: float = 5.0

    def check(self) -> None:
        """Raise `SettingsError` where a value is out of range."""
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"general.log_level = {self.log_level!r}: expected debug, info, warning or error")
        if not 0 <= self.seed < 1 << 63:
            raise SettingsError(f"general.seed = {self.seed!r}: expected 0 or more, in 63 bits")
        if self.broker_wait_s <= 0:
            raise SettingsError(f"general.broker_wait_s = {self.broker_wait_s!r}: expected more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, by group."""

    general: GeneralSettings = field(default_factory=GeneralSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    join: JoinSettings = field(default_factory=JoinSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    strategies: StrategySettings = field(default_factory=StrategySettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)

    @property
    def engine(self) -> EngineSettings:
        """What shapes the engine's results."""
        return EngineSettings(
            join=self.join, head=self.head, policy=self.policy, encoder=self.encoder, strategies=self.strategies
        )

    def configuration(self) -> str:
        """Hash of all settings that shape the engine's results, for `steps` records."""
        shaped = msgspec.json.encode(msgspec.to_builtins(self.engine), order="sorted")
        return hashlib.sha256(shaped).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each came from.

    Attributes:
        settings: the values.
        sources: by `group.key`: default, the file's path, or the variable's or option's name.
    """

    settings: Settings
    sources: Mapping[str, str]

    def described(self) -> dict[str, dict[str, Any]]:
        """Every setting by name, with its value and its source; secrets are not shown."""
        return {
            name: {"value": "***" if name in _SECRETS and value is not None else value, "source": self.sources[name]}
            for name, value in _flat(self.settings).items()
        }


def load(
    options: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Read the settings from everywhere, check them, and say where each came from.

    Args:
        options: by `group.key`, from the command line; None values are not set.
        file: of settings; else `HEADWATER_CONFIG`, else `headwater.toml` where it is there.
        environment: instead of the process's.

    Raises:
        SettingsError: a setting is unknown or wrong: names key, value and what was expected.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    sources = dict.fromkeys(_flat(Settings()), "default")
    for name, value, source in (
        *_from_file(file, environment),
        *_from_environment(environment, sources),
        *((name, value, f"option {name}") for name, value in (options or {}).items() if value is not None),
    ):
        if name not in sources:
            raise SettingsError(f"{source}: {name} is no setting; `headwater inspect config` lists them all")
        values[name], sources[name] = value, source
    _read_secrets(values, sources)
    settings = _built(values, sources)
    for group in dataclasses.fields(settings):
        if group.name != "streams":
            getattr(settings, group.name).check()
    settings.streams.check()
    settings.strategies.check_with(settings.policy)
    return Loaded(settings, sources)


def _from_file(file: Path | None, environment: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    named = file or (Path(environment["HEADWATER_CONFIG"]) if environment.get("HEADWATER_CONFIG") else None)
    path = named or Path(_FILE)
    if not path.is_file():
        if named is None:
            return []
        raise SettingsError(f"configuration file {str(path)!r}: expected a file that is there")
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected TOML: {error}") from error
    found: list[tuple[str, Any, str]] = []
    for group, keys in content.items():
        if not isinstance(keys, dict):
            raise SettingsError(f"{path}: {group} = {keys!r}: expected a table, such as [streams]")
        found += [(f"{group}.{key}", value, str(path)) for key, value in keys.items()]
    return found


def _from_environment(environment: Mapping[str, str], known: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    names = {f"{_PREFIX}{name.replace('.', '_').upper()}": name for name in known} | _SHORT
    found: list[tuple[str, Any, str]] = []
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable not in names:
            raise SettingsError(f"{variable} is no setting; `headwater inspect config` lists them all")
        found.append((names[variable], text, variable))
    return found


def _read_secrets(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Put each secret that a file holds in its place."""
    for name in _SECRETS:
        path = values.get(f"{name}_file")
        if path is None:
            continue
        if name in values:
            raise SettingsError(f"{name} ({sources[name]}) and {name}_file = {path!r}: expected one of them")
        try:
            values[name] = Path(str(path)).read_text().removesuffix("\n")
        except (OSError, ValueError) as error:
            raise SettingsError(f"{name}_file = {path!r}: expected a text file that can be read: {error}") from error
        sources[name] = f"{name}_file"


def _built(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(Settings):
        kind = type(getattr(Settings(), group.name))
        hints = {one.name: one.type for one in dataclasses.fields(kind)}
        mine = {
            key: _converted(name, value, hints[key], sources[name])
            for name, value in values.items()
            if name.split(".", 1)[0] == group.name and (key := name.split(".", 1)[1]) in hints
        }
        groups[group.name] = kind(**mine)
    groups["streams"] = dataclasses.replace(groups["streams"], security=groups["security"])
    return Settings(**groups)


def _converted(name: str, value: Any, hint: Any, source: str) -> Any:
    """The value as its setting's type; text from the environment and from options is read leniently."""
    try:
        if isinstance(value, str) and hint in (tuple[str, ...], "tuple[str, ...]"):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str) and _is_mapping(hint):
            value = json.loads(value)
        _check_tables(name, value, hint)
        return _finite(msgspec.convert(value, hint, strict=not isinstance(value, str), dec_hook=_path))
    except (msgspec.ValidationError, json.JSONDecodeError) as error:
        shown = "***" if name in _SECRETS else repr(value)
        choices = f"; expected one of {', '.join(map(str, get_args(hint)))}" if get_origin(hint) is Literal else ""
        raise SettingsError(f"{name} = {shown} ({source}): {error}{choices}") from error


def _check_tables(name: str, value: Any, hint: Any) -> None:
    """Refuse keys that no table of a mapping has, which the conversion passes over."""
    kind = get_args(hint)[-1] if _is_mapping(hint) else None
    if not dataclasses.is_dataclass(kind) or not isinstance(value, Mapping):
        return
    known = {one.name for one in dataclasses.fields(kind)}
    for table, keys in value.items():
        unknown = sorted(set(keys) - known) if isinstance(keys, Mapping) else []
        if unknown:
            raise SettingsError(f"{name}.{table}.{unknown[0]} is no setting; expected {', '.join(sorted(known))}")


def _finite(value: Any) -> Any:
    """Refuse NaN, which slips through every comparison, and infinities."""
    numbers = value.values() if isinstance(value, dict) else (value,)
    if all(math.isfinite(number) for number in numbers if isinstance(number, float)):
        return value
    raise msgspec.ValidationError("expected a finite number")


def _is_mapping(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) in (dict, Mapping)


def _path(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str | Path):
        return Path(value)
    raise ValueError(f"expected a path, as text; got {value!r}")


def _flat(settings: Settings) -> dict[str, Any]:
    flat = {}
    for group in dataclasses.fields(settings):
        values = getattr(settings, group.name)
        for one in dataclasses.fields(values):
            if (group.name, one.name) != ("streams", "security"):
                value = getattr(values, one.name)
                flat[f"{group.name}.{one.name}"] = str(value) if isinstance(value, Path) else value
    return flat

"""Settings: which source wins, what a wrong one says, and that secrets stay secret."""

from pathlib import Path

import pytest

from headwater.settings import load
from model_core.errors import SettingsError


def file(folder: Path, text: str) -> Path:
    path = folder / "headwater.toml"
    path.write_text(text)
    return path


def test_options_overrule_the_environment_which_overrules_the_file(tmp_path: Path) -> None:
    """Each setting knows where it came from."""
    path = file(tmp_path, "[join]\nsession_gap_ms = 1000\nclock_skew_ms = 7\n[policy]\nslate_size = 3\n")
    environment = {"HEADWATER_JOIN_SESSION_GAP_MS": "2000", "HEADWATER_POLICY_SLATE_SIZE": "4"}
    loaded = load({"policy.slate_size": 5}, file=path, environment=environment)
    assert (loaded.settings.join.clock_skew_ms, loaded.sources["join.clock_skew_ms"]) == (7, str(path))
    assert loaded.settings.join.session_gap_ms == 2_000
    assert loaded.sources["join.session_gap_ms"] == "HEADWATER_JOIN_SESSION_GAP_MS"
    assert (loaded.settings.policy.slate_size, loaded.sources["policy.slate_size"]) == (5, "option policy.slate_size")
    assert loaded.sources["policy.particles"] == "default"


def test_text_becomes_the_settings_own_type() -> None:
    """Lists by commas, mappings as JSON, none and numbers as they read."""
    settings = load(
        environment={
            "HEADWATER_BROKER": "a:1, b:2",
            "HEADWATER_JOIN_WEIGHTS": '{"click": 1, "order": 5.5}',
            "HEADWATER_POLICY_LEAST_SCORE": "0.25",
            "HEADWATER_STREAMS_DATA_DIR": "elsewhere",
        }
    ).settings
    assert settings.streams.brokers == ("a:1", "b:2")
    assert settings.join.weights == {"click": 1.0, "order": 5.5}
    assert settings.policy.least_score == 0.25
    assert settings.streams.data_dir == Path("elsewhere")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEADWATER_JOIN_SESSION_GAP_MS", "soon", "join.session_gap_ms"),
        ("HEADWATER_JOIN_ALLOWED_LATENESS_MS", "99999999", "correction_horizon_ms"),
        ("HEADWATER_STREAMS_BROKERS", "nowhere", "host:port"),
        ("HEADWATER_POLICY_EXPLORATION", "guess", "thompson"),
        ("HEADWATER_POLICY_UCB_WIDTH", "-1", "policy.ucb_width = -1.0"),
        ("HEADWATER_LEARNER_TARGET_RATE", "0", "learner.target_rate = 0.0"),
        ("HEADWATER_NO_SUCH_THING", "1", "is no setting"),
        ("HEADWATER_CONFIG", "missing.toml", "expected a file"),
    ],
)
def test_a_wrong_setting_names_key_value_and_what_was_expected(variable: str, value: str, said: str) -> None:
    """Nothing starts with it."""
    with pytest.raises(SettingsError, match=said):
        load(environment={variable: value})


def test_a_file_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    """A misspelled key would otherwise do nothing, silently."""
    with pytest.raises(SettingsError, match="sesion_gap_ms"):
        load(file=file(tmp_path, "[join]\nsesion_gap_ms = 1\n"), environment={})


def test_secrets_are_not_shown() -> None:
    """Neither in the description nor in an error nor in the settings' own text."""
    environment = {
        "HEADWATER_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "HEADWATER_SECURITY_SASL_MECHANISM": "PLAIN",
        "HEADWATER_SECURITY_USERNAME": "team",
        "HEADWATER_SECURITY_PASSWORD": "opensesame",
        "HEADWATER_SECURITY_ERASURE_SECRET": "opensesame, for erasures",
    }
    loaded = load(environment=environment)
    for name in ("security.password", "security.erasure_secret"):
        assert loaded.described()[name]["value"] == "***"
    assert "opensesame" not in repr(loaded.settings)
    with pytest.raises(SettingsError, match=r"erasure_secret.*at least 16") as refused:
        load(environment={"HEADWATER_SECURITY_ERASURE_SECRET": "opensesame"})
    assert "opensesame" not in str(refused.value)


def test_what_shapes_results_is_hashed_and_nothing_else() -> None:
    """Another window is another configuration; another folder is the same one."""
    hashes = [
        load(options, environment={}).settings.configuration()
        for options in ({}, {"streams.data_dir": "elsewhere"}, {"join.session_gap_ms": 1})
    ]
    assert hashes[0] == hashes[1] != hashes[2]

"""The policy engine's settings, from the environment to what the engine starts with."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import SettingsError, load_settings
from app.wiring import audit_spool, cycle_config, engine_config

URL = {"FLYWHEEL_POLICY_ENGINE__JUDGE__URL": "http://vllm:8000/v1", "FLYWHEEL_POLICY_ENGINE__JUDGE__MODEL": "guard"}


@pytest.fixture(autouse=True)
def _no_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `flywheel.toml` in the working directory would count."""
    monkeypatch.chdir(tmp_path)


def test_there_is_no_judge_unless_one_is_named() -> None:
    assert engine_config(load_settings({})).judge is None


def test_a_judge_as_the_environment_names_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("quartz-lantern\n")
    settings = load_settings(
        URL
        | {
            "FLYWHEEL_POLICY_ENGINE__JUDGE__TOKEN_FILE": str(token),
            "FLYWHEEL_POLICY_ENGINE__JUDGE__FORMAT": "llama_guard",
            "FLYWHEEL_POLICY_ENGINE__JUDGE__CALLS_PER_DAY": "1000",
            "FLYWHEEL_POLICY_ENGINE__JUDGE__CATEGORIES": '{"S1": "harm"}',
            "FLYWHEEL_POLICY_ENGINE__EVALUATORS": '{"weapons": ["rules", "judge"]}',
            "COMPLIANCE_THRESHOLD": "0.9",
        }
    )
    config = engine_config(settings)
    assert config.judge is not None
    assert (config.judge.url, config.judge.model) == ("http://vllm:8000/v1", "guard")
    assert config.judge.token == "quartz-lantern"
    assert (config.judge.format, config.judge.role, config.judge.calls_per_day) == ("llama_guard", "lower", 1000)
    assert config.judge.categories == {"S1": "harm"}
    assert config.combine.threshold == 0.9
    assert not config.combine.speaks_for("exemplars", "weapons")
    assert config.combine.speaks_for("exemplars", "harm")
    assert "quartz-lantern" not in f"{settings!r}{config!r}"


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"FLYWHEEL_POLICY_ENGINE__JUDGE__URL": "http://vllm:8000/v1"}, "judge.model is not"),
        (URL | {"FLYWHEEL_POLICY_ENGINE__JUDGE__ROLE": "raise"}, "lower_or_raise"),
        (URL | {"FLYWHEEL_POLICY_ENGINE__JUDGE__URL": "vllm:8000"}, "base of the API"),
        ({"FLYWHEEL_POLICY_ENGINE__EVALUATORS": '{"weapons": ["guess"]}'}, "rules"),
        ({"COMPLIANCE_THRESHOLD": "0.4"}, "deny_below=0.5 and threshold=0.4"),
        ({"FLYWHEEL_POLICY_ENGINE__JUDGE__MODELL": "m"}, "did you mean policy_engine.judge.model"),
    ],
)
def test_settings_that_cannot_be_are_refused(env: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        engine_config(load_settings(env))


def test_the_training_jobs_audit_by_the_same_spool_and_key_as_the_agents(tmp_path: Path) -> None:
    settings = load_settings(
        {"FLYWHEEL_DATA_DIR": str(tmp_path), "FLYWHEEL_AUDIT_ENGINE__DIGEST_KEY": "quartz-lantern"}
    )
    config = cycle_config(settings)
    assert config.evaluation_audit.spool == audit_spool(settings)
    assert config.evaluation_audit.digest_key == "quartz-lantern"
    assert "quartz-lantern" not in repr(config)

"""Settings: where they come from, what is refused and how it is said, what a child process gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.cli.main import cli
from app.settings import Settings, SettingsError, load_settings
from app.settings.load import known_settings
from app.settings.masking import hide_password, masked

SECRETS = {
    "FLYWHEEL_WEB__TOKEN": "hunter-web",
    "FLYWHEEL_POLICY_ENGINE__TOKEN": "hunter-policy",
    "FLYWHEEL_AUDIT_ENGINE__TOKEN": "hunter-audit",
    "FLYWHEEL_AUDIT_ENGINE__DIGEST_KEY": "hunter-audit-digest",
    "FLYWHEEL_AUDIT_ENGINE__SIGNING_KEY": "hunter-audit-signing",
    "FLYWHEEL_PII__SUBJECT_KEY": "hunter-subject",
    "FLYWHEEL_CURATION__DIGEST_KEY": "hunter-curation",
    "FLYWHEEL_DATABASE__URL": "postgresql+psycopg://flywheel:hunter-db@db/flywheel",
    "FLYWHEEL_AUDIT_ENGINE__DATABASE_URL": "postgresql+psycopg://audit:hunter@x-db@db/audit?sslmode=require",
    "FLYWHEEL_REDIS__URL": "rediss://:hunter-redis@redis:6379/0",
    "FLYWHEEL_GATE__OPA_URL": "http://opa:8181?password=hunter-opa&x=1",
}


@pytest.fixture(autouse=True)
def _no_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `flywheel.toml` in the working directory would count."""
    monkeypatch.chdir(tmp_path)


def at(settings: Settings, name: str) -> Any:
    """A setting by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def refusal(env: Mapping[str, str], toml: Path | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(env, toml)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("constitution.hash", "cdd01ef066bc6cf2"),
        ("constitution.compliance_threshold", 0.95),
        ("routing.trigger_threshold", 0.8),
        ("routing.routine_threshold", 0.95),
        ("routing.policy_evaluation_sample_rate", 0.2),
        ("routing.dedup_window_s", 3600),
        ("revision.max_rounds", 3),
        ("revision.constitutional_weight", 0.8),
        ("training.lora_rank", 16),
        ("training.lora_alpha", 32),
        ("training.lora_dropout", 0.1),
        ("training.target_modules", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("training.epochs", 10),
        ("privacy.epsilon", 8.0),
        ("privacy.delta", 1e-5),
        ("privacy.max_grad_norm", 1.0),
        ("privacy.cycle_targets", (4.0, 6.0, 8.0)),
        ("audit_engine.retention_days", 2555),
        ("monitoring.interval_s", 15.0),
        ("monitoring.retry_interval_s", 60.0),
        ("generation.max_new_tokens", 512),
        ("generation.temperature", 0.7),
        ("generation.prompt_tokens", 2048),
        ("kafka.compression", "gzip"),
        ("kafka.linger_ms", 100),
        ("policy_engine.url", "http://policy-engine:8001"),
        ("audit_engine.url", "http://audit-engine:8003"),
        ("web.train_port", 8010),
        ("web.route_port", 6066),
        ("web.monitor_port", 8000),
    ],
)
def test_defaults_are_the_specifications(name: str, value: Any) -> None:
    assert at(load_settings({}), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("FLYWHEEL_KAFKA__PARTITIONS", "12", "kafka.partitions", 12),
        ("FLYWHEEL_DATA_DIR", "/srv/flywheel", "data_dir", Path("/srv/flywheel")),
        ("FLYWHEEL_KAFKA__DECLARE_TOPICS", "false", "kafka.declare_topics", False),
        ("FLYWHEEL_PRIVACY__CYCLE_TARGETS", "[2, 8]", "privacy.cycle_targets", (2.0, 8.0)),
        ("FLYWHEEL_GATE__BOUNDS", '{"adherence": 0.9}', "gate.bounds", {"adherence": 0.9}),
        ("FLYWHEEL_EVALUATION__SUITES", '["/a.jsonl"]', "evaluation.suites", (Path("/a.jsonl"),)),
        # Text stays text, whatever it looks like.
        ("FLYWHEEL_GENERATION__SYSTEM_MESSAGE", '{"be": "kind"}', "generation.system_message", '{"be": "kind"}'),
        ("FLYWHEEL_CONSTITUTION__HASH", "1234", "constitution.hash", "1234"),
        ("CONSTITUTIONAL_HASH", "abc", "constitution.hash", "abc"),
        ("POLICY_ENGINE_URL", "http://p:1", "policy_engine.url", "http://p:1"),
        ("AUDIT_ENGINE_URL", "http://a:1", "audit_engine.url", "http://a:1"),
        ("COMPLIANCE_THRESHOLD", "0.9", "constitution.compliance_threshold", 0.9),
    ],
)
def test_environment(variable: str, text: str, name: str, value: Any) -> None:
    settings = load_settings({variable: text})
    assert at(settings, name) == value
    unset = load_settings({})
    assert [other for other, _ in known_settings() if at(settings, other) != at(unset, other)] == [name]


def test_variables_that_are_no_settings_are_left_alone() -> None:
    env = {"PATH": "/bin", "FLYWHEEL_ROLE": "route", "FLYWHEEL_TEST_DATA": "/x", "FLYWHEEL_REQUIRE_ALL": "1"}
    assert load_settings(env) == load_settings({})


def test_a_secret_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("  hunter2\n", encoding="utf-8")
    settings = load_settings({"FLYWHEEL_WEB__TOKEN_FILE": str(tmp_path / "token")})
    assert settings.web.token is not None
    assert settings.web.token.get_secret_value() == "hunter2"


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert "FLYWHEEL_WEB__TOKEN_FILE" in (told := refusal({"FLYWHEEL_WEB__TOKEN_FILE": str(missing)}))
    assert str(missing) in told
    (tmp_path / "binary").write_bytes(b"\xff\xfehunter2")
    told = refusal({"FLYWHEEL_WEB__TOKEN_FILE": str(tmp_path / "binary")})
    assert "UTF-8" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("loser", ["POLICY_ENGINE_URL", "FLYWHEEL_POLICY_ENGINE__URL_FILE"])
def test_a_childs_exported_setting_wins_over_what_it_inherits(loser: str, tmp_path: Path) -> None:
    # The embedded stack starts its own engine and passes its address on beside the parent's environment.
    (tmp_path / "url").write_text("http://outside:1", encoding="utf-8")
    inherited = {loser: str(tmp_path / "url") if loser.endswith("_FILE") else "http://outside:1"}
    assert load_settings(inherited).policy_engine.url == "http://outside:1"
    own = {"FLYWHEEL_POLICY_ENGINE__URL": "http://127.0.0.1:4711"}
    assert load_settings(inherited | own).policy_engine.url == "http://127.0.0.1:4711"


def test_a_file_of_settings_and_what_stands_above_it(tmp_path: Path) -> None:
    toml = tmp_path / "some.toml"
    toml.write_text(
        'data_dir = "/srv"\n[kafka]\npartitions = 7\nlinger_ms = 5\n[gate.bounds]\nx = 1.5\n', encoding="utf-8"
    )
    settings = load_settings({"FLYWHEEL_CONFIG": str(toml), "FLYWHEEL_KAFKA__LINGER_MS": "6"})
    assert (settings.kafka.partitions, settings.kafka.linger_ms) == (7, 6)
    assert settings.data_dir == Path("/srv")
    assert settings.gate.bounds == {"x": 1.5}
    assert load_settings({}, toml).kafka.linger_ms == 5


def test_the_file_in_the_working_directory_counts(tmp_path: Path) -> None:
    (tmp_path / "flywheel.toml").write_text("[kafka]\npartitions = 9\n", encoding="utf-8")
    assert load_settings({}).kafka.partitions == 9


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    assert "nowhere.toml does not exist" in refusal({"FLYWHEEL_CONFIG": str(tmp_path / "nowhere.toml")})
    broken = tmp_path / "broken.toml"
    broken.write_text("[kafka\n", encoding="utf-8")
    assert f"{broken} is not valid TOML" in refusal({}, broken)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("FLYWHEEL_KAFKA__PARTITION", "FLYWHEEL_KAFKA__PARTITIONS"),
        ("FLYWHEEL_KAFKA_PARTITIONS", "FLYWHEEL_KAFKA__PARTITIONS"),
        ("FLYWHEEL_ROUTING__DEDUP_WINDOW", "FLYWHEEL_ROUTING__DEDUP_WINDOW_S"),
        ("FLYWHEEL_WEB__TOKENS_FILE", "FLYWHEEL_WEB__TOKEN"),
        ("FLYWHEEL_GATE__BOUNDS__ADHERENCE", "FLYWHEEL_GATE__BOUNDS"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(variable: str, nearest: str) -> None:
    told = refusal({variable: "1"})
    assert f"unknown setting {variable}" in told
    assert f"({nearest})" in told


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    toml = tmp_path / "some.toml"
    toml.write_text("[privacy]\nepsilom = 4\n", encoding="utf-8")
    assert "did you mean privacy.epsilon (FLYWHEEL_PRIVACY__EPSILON)" in refusal({}, toml)
    toml.write_text("[no_such_section]\nx = 1\n", encoding="utf-8")
    assert "unknown setting no_such_section" in refusal({}, toml)


def test_a_section_that_is_a_plain_value_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "some.toml"
    toml.write_text("kafka = 5\n", encoding="utf-8")
    assert "kafka" in refusal({}, toml)
    assert "kafka.partitions" in refusal({"FLYWHEEL_KAFKA__PARTITIONS": "2"}, toml)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"FLYWHEEL_PRIVACY__CYCLE_TARGETS": "[4, 6, 9]"}, ("privacy.cycle_targets", "9", "privacy.epsilon=8.0")),
        ({"FLYWHEEL_PRIVACY__EPSILON": "5"}, ("privacy.cycle_targets", "8.0", "privacy.epsilon=5.0")),
        ({"FLYWHEEL_PRIVACY__CYCLE_TARGETS": "[6, 4]"}, ("privacy.cycle_targets=(6.0, 4.0)", "growing")),
        ({"FLYWHEEL_PRIVACY__CYCLE_TARGETS": "[4, 4]"}, ("privacy.cycle_targets", "growing")),
        ({"FLYWHEEL_PRIVACY__CYCLE_TARGETS": "[]"}, ("privacy.cycle_targets", "growing")),
        ({"FLYWHEEL_WEB__HOST": "10.0.0.1"}, ("web.host=10.0.0.1", "web.token")),
        ({"FLYWHEEL_WEB__HOST": "::"}, ("web.host=::", "web.token")),
    ],
)
def test_contradictions_are_refused_by_name(env: dict[str, str], words: tuple[str, ...]) -> None:
    told = refusal(env)
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FLYWHEEL_PRIVACY__EPSILON", "9"),
        ("FLYWHEEL_PRIVACY__EPSILON", "0"),
        ("FLYWHEEL_PRIVACY__EPSILON", "nan"),
        ("FLYWHEEL_PRIVACY__DELTA", "1e-4"),
        ("FLYWHEEL_KAFKA__PARTITIONS", "0"),
        ("FLYWHEEL_KAFKA__COMPRESSION", "brotli"),
        ("FLYWHEEL_AUDIT_ENGINE__RETENTION_DAYS", "30"),
        ("FLYWHEEL_CONSTITUTION__COMPLIANCE_THRESHOLD", "1.01"),
        ("FLYWHEEL_ROUTING__POLICY_EVALUATION_SAMPLE_RATE", "0"),
        ("FLYWHEEL_GENERATION__MAX_NEW_TOKENS", "many"),
        ("FLYWHEEL_REVISION__MAX_ROUNDS", "4"),
        ("FLYWHEEL_WEB__ROUTE_PORT", "65536"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_its_value(variable: str, text: str) -> None:
    told = refusal({variable: text})
    assert variable.removeprefix("FLYWHEEL_").lower().replace("__", ".") in told
    assert f"'{text}'" in told


def test_every_fault_is_told_at_once() -> None:
    told = refusal({"FLYWHEEL_KAFKA__PARTITIONS": "0", "FLYWHEEL_PRIVACY__DELTA": "1"})
    assert "kafka.partitions" in told
    assert "privacy.delta" in told


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert load_settings({"FLYWHEEL_WEB__HOST": host}).web.token is None


def test_any_address_will_do_with_a_token() -> None:
    assert load_settings({"FLYWHEEL_WEB__HOST": "0.0.0.0", "FLYWHEEL_WEB__TOKEN": "x"}).web.host == "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize("variable", [name for name in SECRETS if name.endswith(("TOKEN", "KEY"))])
def test_an_empty_secret_is_refused(variable: str) -> None:
    # An empty token lets everyone in whose request has none.
    assert variable.removeprefix("FLYWHEEL_").lower().replace("__", ".") in refusal({variable: ""})


def test_no_secret_is_in_an_error(tmp_path: Path) -> None:
    told = refusal(SECRETS | {"FLYWHEEL_KAFKA__PARTITIONS": "0", "FLYWHEEL_WEB__HOST": "10.0.0.1"})
    assert "hunter" not in told
    toml = tmp_path / "some.toml"
    toml.write_text('[web]\ntoken = ["hunter2"]\n[pii]\nsubject_key = {a = "hunter2"}\n', encoding="utf-8")
    told = refusal({}, toml)
    assert "web.token" in told
    assert "pii.subject_key" in told
    assert "hunter" not in told
    toml.write_text('[database]\nurl = ["postgresql://user:hunter2@db/x"]\n', encoding="utf-8")
    assert "hunter" not in refusal({}, toml)


@pytest.mark.parametrize("arguments", [["config", "check"], ["config", "check", "--json"]])
def test_config_check_masks_secrets_and_passwords(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    result = CliRunner(env=SECRETS).invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "hunter" not in result.output
    assert "********" in result.output


def test_config_check_shows_the_rest_as_it_is() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLYWHEEL_")}
    env |= SECRETS | {"FLYWHEEL_KAFKA__PARTITIONS": "12"}
    arguments = [sys.executable, "-m", "app", "config", "check", "--json"]
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(arguments, env=env, cwd=root, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    shown = orjson.loads(result.stdout)
    assert shown["kafka"]["partitions"] == 12
    assert shown["web"]["token"] == "********"
    assert shown["database"]["url"] == "postgresql+psycopg://flywheel:********@db/flywheel"
    assert shown["redis"]["url"] == "rediss://:********@redis:6379/0"
    assert b"hunter" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("postgresql://user@db/x", "postgresql://user@db/x"),
        ("postgresql://user:p@ss@db/x", "postgresql://user:********@db/x"),
        ("http://a:b@c/d http://e:f@g", "http://a:********@c/d http://e:********@g"),
        ("postgresql://ada@example.org:p@db/x", "postgresql://ada@example.org:********@db/x"),
        ("postgresql://ada:p/q?r@db/x?mail=a@b", "postgresql://ada:********@db/x?mail=a@b"),
        ("http://ada@db:8001/x:y", "http://ada@db:8001/x:y"),
        ("http://db:8001/a@b", "http://db:8001/a@b"),
        ("sqlite:///var/a:b@c.db", "sqlite:///var/a:b@c.db"),
        ("postgresql://db/x?password=p&user=u", "postgresql://db/x?password=********&user=u"),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    assert hide_password(text) == shown


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__USERNAME": "u"}, "needs kafka.password"),
        ({"KAFKA__USERNAME": "u", "KAFKA__PASSWORD": "hunter2"}, "kafka.username and kafka.password"),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__PASSWORD": "hunter2"}, "kafka.password is set"),
        ({"KAFKA__CA_FILE": "ca.pem"}, "kafka.ca_file is set"),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__CERT_FILE": "c.pem"}, "kafka.cert_file and kafka.key_file"),
        (
            {
                "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA__SASL_MECHANISM": "PLAIN",
                "KAFKA__USERNAME": "u",
                "KAFKA__PASSWORD": "hunter2",
            },
            "in clear",
        ),
        ({"REDIS__USERNAME": "u"}, "redis.password is not"),
        ({"REDIS__URL": "redis://u:hunter3@redis:6379/0", "REDIS__PASSWORD": "hunter2"}, "leave one out"),
        ({"REDIS__CA_FILE": "ca.pem"}, "rediss://"),
        ({"REDIS__URL": "rediss://redis:6379/0", "REDIS__KEY_FILE": "k.pem"}, "redis.cert_file and redis.key_file"),
    ],
)
def test_security_settings_that_do_not_fit_are_refused(env: dict[str, str], named: str) -> None:
    told = refusal({f"FLYWHEEL_{name}": value for name, value in env.items()})
    assert named in told
    assert "hunter" not in told


def test_a_certificate_file_is_named_and_a_password_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n", encoding="utf-8")
    settings = load_settings(
        {
            "FLYWHEEL_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "FLYWHEEL_KAFKA__USERNAME": "u",
            "FLYWHEEL_KAFKA__PASSWORD_FILE": str(tmp_path / "password"),
            "FLYWHEEL_KAFKA__CA_FILE": str(tmp_path / "ca.pem"),
        }
    )
    assert settings.kafka.ca_file == tmp_path / "ca.pem"
    assert settings.kafka.password is not None
    assert settings.kafka.password.get_secret_value() == "hunter2"


@pytest.mark.parametrize("variable", ["FLYWHEEL_WEB__CURATE_PORT_FILE", "FLYWHEEL_ROUTING__DELIVERY_FILE"])
def test_what_a_file_holds_is_not_told(tmp_path: Path, variable: str) -> None:
    (tmp_path / "secret").write_text("hunter2")
    told = refusal({variable: str(tmp_path / "secret")})
    assert variable.removeprefix("FLYWHEEL_").removesuffix("_FILE").lower().replace("__", ".") in told
    assert "hunter2" not in told


def test_a_contradiction_does_not_tell_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    told = refusal({"FLYWHEEL_WEB__PROXY_HEADER_FILE": str(tmp_path / "secret")})
    assert told.startswith("web: web.proxy_header and the rest of web do not go together")
    assert "hunter2" not in told


def test_a_secrets_file_hides_no_contradiction(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    env = {"FLYWHEEL_WEB__TOKEN_FILE": str(tmp_path / "secret"), "FLYWHEEL_WEB__PROXY_HEADER": "X-User"}
    told = refusal(env)
    assert "web.proxy_header=X-User is set, and web.proxy_addresses is empty" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "env",
    [
        {"FLYWHEEL_POLICY_ENGINE__JUDGE__URL": "redis://u:hunter2@host:6379/0"},
        {"FLYWHEEL_TEACHER__URL": "ftp://u:hunter2@host", "FLYWHEEL_TEACHER__SEND_EVENT_TEXT": "true"},
    ],
)
def test_a_contradiction_does_not_quote_a_password(env: Mapping[str, str]) -> None:
    told = refusal(env)
    assert "url" in told
    assert "hunter2" not in told


def test_a_url_given_for_a_folder_is_shown_without_its_password() -> None:
    settings = load_settings({"FLYWHEEL_DATA_DIR": "https://u:hunter2@host/x"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(masked(settings))


def test_settings_are_shown_without_the_passwords_of_urls() -> None:
    settings = load_settings({"FLYWHEEL_REDIS__URL": "redis://u:hunter2@host:6379/0"})
    assert "hunter2" not in repr(settings)
    assert settings.redis.url == "redis://u:hunter2@host:6379/0"


def test_a_value_in_a_sections_place_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "flywheel.toml"
    file.write_text('web = "hunter2"\n')
    assert "hunter2" not in refusal({}, file)


def test_a_file_nested_too_deep_is_named(tmp_path: Path) -> None:
    file = tmp_path / "flywheel.toml"
    file.write_text("deep = " + "[" * 5000 + "]" * 5000)
    assert "flywheel.toml is nested too deep" in refusal({}, file)


def test_a_value_that_is_no_text_is_named() -> None:
    assert "FLYWHEEL_WEB__HOST holds bytes that are no UTF-8" in refusal({"FLYWHEEL_WEB__HOST": "host\udcff"})


def test_a_refusal_stays_short(tmp_path: Path) -> None:
    file = tmp_path / "flywheel.toml"
    file.write_text("[kafka]\n" + "".join(f"k{number} = 1\n" for number in range(1000)))
    told = refusal({"FLYWHEEL_GATE__BOUNDS": "x" * 100_000}, file)
    assert len(told) < 10_000
    assert "more" in told

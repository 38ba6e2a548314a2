"""compose.yaml: read by Compose's own code, and held to what the workers, the images and the scripts say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from deployment import (
    COMPOSE,
    DOCKER,
    SECRETS_AT,
    Container,
    compose_containers,
    compose_file,
    draw_secrets,
    find_program,
    settings_of,
)
from services import REPOSITORY, unavailable

from app.embedded.kafka import KAFKA_VERSION
from app.roles import Role, web_port

SERVICES = {container.name: container for container in compose_containers()}
OURS = [container for container in SERVICES.values() if container.is_ours]
ROLES = {container.arguments[1]: container for container in OURS if container.arguments[0] == "worker"}
WRITABLE = {"elasticsearch", "mlflow"}
"""Optional, and their images write where they please."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_secrets(tmp_path_factory.mktemp("installation") / "secrets")


def test_compose_itself_takes_the_file() -> None:
    program = find_program("compose", "compose.sh")
    command = [program, COMPOSE.name]
    environment = {**os.environ, "COMPOSE_PROFILES": "*"}
    read = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=DOCKER)
    assert read.returncode == 0, read.stderr + read.stdout
    for name in SERVICES:
        assert re.search(rf"^    {name}:$", read.stdout, re.MULTILINE), name


def test_every_role_and_both_engines_are_there_once() -> None:
    assert sorted(ROLES) == sorted(role.value for role in Role)
    assert len(ROLES) == len([c for c in OURS if c.arguments[0] == "worker"])
    engines = [c.arguments for c in OURS if c.arguments[0] in {"policy-engine", "audit-engine"}]
    assert sorted(engines) == [("audit-engine",), ("policy-engine",)]
    assert ("db", "migrate") in {c.arguments for c in OURS}
    assert ("topics", "create") in {c.arguments for c in OURS}


@pytest.mark.parametrize("container", OURS, ids=lambda container: container.name)
def test_each_part_starts_with_settings_that_load_and_agree(container: Container, secrets: Path) -> None:
    """Every variable is a known setting, every secret is there, and addresses name services at the ports they have."""
    settings = settings_of(container, secrets)
    assert settings.web.host == "0.0.0.0"  # noqa: S104 - what a container's neighbours reach
    assert urlsplit(settings.policy_engine.url).hostname == "policy-engine"
    assert urlsplit(settings.policy_engine.url).port == settings.policy_engine.port
    assert urlsplit(settings.audit_engine.url).hostname == "audit-engine"
    assert urlsplit(settings.audit_engine.url).port == settings.audit_engine.port
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    for name, value in container.environment.items():
        if value.startswith(SECRETS_AT):
            assert Path(value).name in container.raw["secrets"], f"{name} names a secret that is not mounted"
    health = urlsplit(container.environment.get("HEALTH_URL", ""))
    if container.arguments[0] == "worker":
        assert health.port == web_port(settings, Role(container.arguments[1]))
    if container.arguments == ("policy-engine",):
        assert (settings.policy_engine.host, settings.policy_engine.port) == ("0.0.0.0", health.port)  # noqa: S104
    if container.arguments == ("audit-engine",):
        assert (settings.audit_engine.host, settings.audit_engine.port) == ("0.0.0.0", health.port)  # noqa: S104


def test_each_secret_is_mounted_only_where_it_is_named(secrets: Path) -> None:
    declared = compose_file()["secrets"]
    assert {Path(secret["file"]).name for secret in declared.values()} <= {path.name for path in secrets.iterdir()}
    for container in SERVICES.values():
        text = json.dumps(container.raw, default=str)
        # These read it by the file that configures them.
        extra = {"prometheus": {"flywheel-token"}, "opa": {"web_token"}}.get(container.name, set())
        for name in secrets_of(container) - extra:
            assert f"{SECRETS_AT}/{name}" in text, f"{container.name} is given {name} and never reads it"
    assert "audit_signing_key" in SERVICES["audit-engine"].raw["secrets"]
    assert not [
        n for n, c in SERVICES.items() if "audit_signing_key" in c.raw.get("secrets", ()) and n != "audit-engine"
    ]
    assert f"{SECRETS_AT}/web_token" in (DOCKER / "opa" / "config.yaml").read_text()


def secrets_of(container: Container) -> set[str]:
    """The files below /run/secrets that a service is given."""
    given = container.raw.get("secrets", ())
    return {secret["target"] if isinstance(secret, dict) else secret for secret in given}


def test_prometheus_scrapes_every_worker_where_it_listens() -> None:
    path = DOCKER / "prometheus" / "prometheus.yaml"
    if not path.exists():
        unavailable(f"there is no {path}", "git checkout docker/prometheus", may_be_missing=True)
    names = {c.name: c for c in OURS}
    for container in OURS:
        networks = container.raw["networks"]
        aliases = networks["flywheel"]["aliases"] if isinstance(networks, dict) else ()
        names |= dict.fromkeys(aliases, container)
    scraped = set()
    for job in yaml.safe_load(path.read_text())["scrape_configs"]:
        assert Path(job["authorization"]["credentials_file"]).name in secrets_of(SERVICES["prometheus"])
        for target in job["dns_sd_configs"]:
            (name,) = target["names"]
            assert f":{target['port']}/" in names[name].environment["HEALTH_URL"]
            scraped.add(names[name].name)
    assert scraped == {container.name for container in ROLES.values()}


def test_no_secret_stands_in_the_file() -> None:
    text = COMPOSE.read_text()
    assert not re.search(r"(?i)(password|token|secret|key):\s*[\"']?[0-9a-z]{8,}", text)
    assert "/docker/secrets/" in (REPOSITORY / ".gitignore").read_text()


def test_every_image_is_pinned_and_those_that_tests_run_have_the_tests_versions() -> None:
    for container in SERVICES.values():
        assert re.search(r":v?\d+\.\d+\.\d+(-[\w.]+)?$|:v?\d+\.\d+(-[\w.]+)?$", container.image), container.image
    assert SERVICES["kafka"].image == f"apache/kafka:{KAFKA_VERSION}"
    for name, script in (("opa", "opa.sh"), ("otel-collector", "collector.sh")):
        (version,) = re.findall(r"^version=(\S+)$", (DOCKER / "install" / script).read_text(), re.MULTILINE)
        assert f":{version}" in SERVICES[name].image


@pytest.mark.parametrize("container", SERVICES.values(), ids=lambda container: container.name)
def test_nothing_runs_as_root_or_writes_to_its_root(container: Container) -> None:
    service = container.raw
    account = int(service["user"].partition(":")[0])
    assert account > 0
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("read_only", False) is (container.name not in WRITABLE)
    assert not service.get("privileged")
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "published beyond this machine"


def test_what_waits_for_health_waits_for_something_that_tells_it() -> None:
    for container in SERVICES.values():
        for name, condition in (container.raw.get("depends_on") or {}).items():
            target = SERVICES[name]
            if condition["condition"] == "service_healthy":
                own = target.raw.get("healthcheck", {})
                assert own.get("test") or (target.is_ours and not own.get("disable")), (
                    f"{name} never says it is healthy"
                )
            else:
                assert target.raw["restart"] == "no", f"{name} is waited for to end, and is started again"
            assert not set(target.raw.get("profiles", ())) - set(container.raw.get("profiles", ()))


def test_every_bound_file_is_there() -> None:
    # Folders that others fill; an empty one is made by whoever starts it.
    later = {"./prometheus", "./grafana/provisioning", "./grafana/dashboards", "./backups"}
    for container in SERVICES.values():
        for volume in container.raw.get("volumes", ()):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert source in later or (DOCKER / source).exists(), source
            else:
                assert source in compose_file()["volumes"]
            assert target.startswith("/")


def test_the_healths_script_tells_an_answer_from_none(tmp_path: Path) -> None:
    """As the images run it."""
    script = DOCKER / "install" / "healthy.sh"
    environment = {**os.environ, "PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}"}
    served = tmp_path / "health"
    served.write_text("ok")
    for url, expected in ((served.as_uri(), 0), ((tmp_path / "none").as_uri(), 1)):
        # A file's URL stands for a server that answers: what differs is only the scheme.
        checked = subprocess.run([script], env={**environment, "HEALTH_URL": url}, timeout=30, check=False)
        assert checked.returncode == expected, url


def test_drawing_secrets_again_changes_none_and_draws_what_is_missing(tmp_path: Path) -> None:
    folder = draw_secrets(tmp_path / "secrets", POSTGRES_HOST="db.example.org", REDIS_PORT="7000")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "@db.example.org:5432/flywheel" in before["database_url"]
    assert before["redis_url"] == f"redis://:{before['redis_password']}@redis:7000/0"
    keys = {name: text for name, text in before.items() if re.fullmatch("[0-9a-f]{64}", text)}
    assert len(set(keys.values())) == len(keys) >= 14
    (folder / "web_token").unlink()
    draw_secrets(folder)
    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"web_token"}

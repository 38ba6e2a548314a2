"""Secrets planted in every setting that is one, by type, are found nowhere that a running system speaks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import httpx
import pytest
from otlp_receiver import Receiver
from pydantic import SecretStr
from systems import cli, running, stored_bytes, wait_until

from app.embedded.system import System
from app.roles import Role
from app.settings import Settings
from app.settings.load import known_settings

pytestmark = pytest.mark.timeout(300)

ROLES = (Role.ROUTE, Role.MONITOR)
PATHS = ("/", "/stats", "/metrics", "/health/live", "/health/ready", "/openapi.json", "/routing", "/audit", "/nowhere")
OWN_SERVERS = ("kafka.password", "redis.password")
"""The embedded servers do not ask for these; workers are turned away with them."""


def holds_secret(kind: Any) -> bool:
    return kind is SecretStr or any(holds_secret(inner) for inner in get_args(kind))


PLANTED = {name: secrets.token_hex(32) for name, kind in known_settings(Settings) if holds_secret(kind)}


class Recorder(Receiver):
    """Keeps all that it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def take(self, path: str, body: bytes) -> int:
        self.bodies.append(body)
        return super().take(path, body)


@dataclass
class Said:
    """All that was said, by where."""

    by_place: dict[str, bytes] = field(default_factory=dict)

    def check(self, values: dict[str, str]) -> None:
        """Hold every place to all secrets."""
        assert self.by_place
        found = [(name, place) for name, value in values.items() for place, said in self.by_place.items()
                 if value.encode() in said]  # fmt: skip
        assert not found


@pytest.fixture(scope="module")
def traces() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def system(traces: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    changes: dict[str, dict[str, Any]] = {
        "telemetry": {"otlp_endpoint": traces.url, "trace_sample_rate": 1.0},
        "log": {"level": "DEBUG"},
    }
    with running(tmp_path_factory.mktemp("system"), "mock", None, changes) as made:
        plant(made, {name: value for name, value in PLANTED.items() if name not in OWN_SERVERS})
        made.start_engines(["audit-engine"])
        made.start_workers(ROLES)
        yield made


def plant(system: System, values: dict[str, str]) -> None:
    for name, value in values.items():
        section, *path = name.split(".")
        part = getattr(system.settings, section)
        if len(path) == 2:
            inner = getattr(part, path[0]).model_copy(update={path[1]: SecretStr(value)})
            system.change({section: {path[0]: inner}})
        else:
            system.change({section: {path[0]: SecretStr(value)}})


def all_secrets(system: System) -> dict[str, str]:
    drawn = urlsplit(system.settings.redis.url).password
    assert drawn
    return PLANTED | {"redis.url": drawn}


def test_every_kind_of_secret_is_planted() -> None:
    assert {"web.token", "kafka.password", "redis.password", "policy_engine.judge.token", "webhook.secret"} <= set(
        PLANTED
    )


def test_no_secret_is_found_in_what_a_running_system_says(system: System, traces: Recorder, tmp_path: Path) -> None:
    said = Said()
    known = {"Authorization": f"Bearer {PLANTED['web.token']}"}
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps({"event_id": f"e{n}", "status": "failed"}) for n in range(20)))
    sent = cli(system, "emit", str(file), "--via", "otlp")
    assert sent.returncode == 0, sent.stderr
    route = system.url(Role.ROUTE)
    with httpx.Client(trust_env=False, timeout=30.0) as client:

        def routed() -> bool:
            told = client.get(f"{route}/stats", headers=known)
            return bool(told.is_success and told.json()["routing"]["in"] == 20)

        wait_until(routed, "the events are routed")
        for role in ROLES:
            for path in PATHS:
                for which, headers in (("known", known), ("nobody", {}), ("wrong", {"Authorization": "Bearer wrong"})):
                    answer = client.get(f"{system.url(role)}{path}", headers=headers)
                    said.by_place[f"{role.value} {path} {which}"] = answer.content + str(answer.headers).encode()
        for path in ("/v1/logs", "/api/v1/feedback"):
            answer = client.post(f"{route}{path}", headers=known, content=b"\xff{")
            assert answer.status_code >= 400
            said.by_place[f"POST {path}"] = answer.content
        engine = system.settings.audit_engine.url
        for headers in ({}, {"Authorization": f"Bearer {PLANTED['audit_engine.token']}"}):
            for body in (b"{", b'{"event_type": 5}'):
                answer = client.post(f"{engine}/api/v1/log", headers=headers, content=body)
                assert answer.status_code >= 400
                said.by_place[f"audit {headers} {body!r}"[:40]] = answer.content
    for words in (
        ["config", "check"],
        ["config", "check", "--json"],
        ["routing", "set", "trigger_threshold", "0.7", "--by", "tester"],
        ["routing", "history"],
        ["dlq", "ls"],
        ["audit", "verify"],
        ["cycles", "ls"],
    ):
        ran = cli(system, *words)
        said.by_place[" ".join(words)] = (ran.stdout + ran.stderr).encode()
    wait_until(lambda: traces.bodies, "spans come")
    said.by_place |= {"traces": b"".join(traces.bodies)}
    said.by_place |= {"sql": stored_bytes(system.settings.database.url)}
    said.by_place |= {"audit log": stored_bytes(system.settings.audit_engine.database_url)}
    said.by_place |= {log.name: log.read_bytes() for log in system.run.logs.glob("*.log")}
    said.check(all_secrets(system))


@pytest.mark.parametrize(
    "changes",
    [
        {"kafka": {"security_protocol": "SASL_PLAINTEXT", "username": "u"}},
        {"kafka": {"security_protocol": "SASL_SSL", "username": "u"}},
        {"redis": {"url": ""}},
        {"kafka": {"security_protocol": "SASL_SSL"}},  # contradictory: no user name
    ],
)
def test_no_secret_is_found_in_what_a_worker_says_that_is_turned_away(
    system: System, changes: dict[str, dict[str, Any]]
) -> None:
    before = system.settings
    (section,) = changes
    try:
        if section == "redis":
            parts = urlsplit(before.redis.url)
            changes = {"redis": {"url": f"redis://127.0.0.1:{parts.port}/0"}}
        system.change(changes)
        plant(system, {f"{section}.password": PLANTED[f"{section}.password"]})
        ended = cli(system, "worker", "route")
    finally:
        system.settings = before
    assert ended.returncode != 0
    Said({"output": (ended.stdout + ended.stderr).encode()}).check(all_secrets(system))

"""A training worker's gate from outside: an OPA server polls it for the bundle, callers ask it about inference."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from services import unavailable
from systems import cli, entries, running, wait_until

from app.embedded.errors import ProgramMissing
from app.embedded.opa import BundleService, OpaServer
from app.embedded.system import System
from app.roles import Role
from models.decision import GateDecision
from policies.gate import OpaConfig, OpaEngine

HASH = "cdd01ef066bc6cf2"
TOKEN = "a token of this test"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """The audit engine and a training worker whose gate's data come from SQL."""
    changes: dict[str, dict[str, Any]] = {"gate": {"data": "sql"}}
    with running(tmp_path, "mock", None, changes) as made:
        made.change({"web": {"token": _secret(TOKEN)}})
        made.start_engines(["audit-engine"])
        made.start_workers([Role.TRAIN])
        yield made


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)


def ask(system: System, facts: dict[str, Any], token: str = TOKEN) -> httpx.Response:
    return httpx.post(
        f"{system.url(Role.TRAIN)}/api/v1/decisions",
        json={"action": "model_inference", "facts": facts},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30.0,
        trust_env=False,
    )


def decision(system: System, facts: dict[str, Any]) -> GateDecision:
    return GateDecision.model_validate(ask(system, facts).raise_for_status().json())


def facts(user: str, hours: float = 1.0) -> dict[str, Any]:
    return {
        "model": {"constitutional_hash": HASH, "compliance_score": 0.97, "risk_level": "low"},
        "request": {"safety_validated": True},
        "content": {"violations": []},
        "user": {"id": user, "groups": ["constitutional-ai-users"]},
        "resources": {"gpu_hours": hours, "requested_gpus": 0, "memory_gb": 1},
        "audit": {"enabled": True, "trail_enabled": True, "constitutional_hash": HASH, "retention_period": 2555},
    }


def test_a_grant_is_in_force_within_seconds_in_the_worker_and_in_an_opa_that_polls_it(system: System) -> None:
    wait_until(lambda: ask(system, facts("analyst-1")).is_success, "the worker has opened its gate")
    wait_until(lambda: _codes(decision(system, facts("analyst-1"))) == NOBODY, "the machine is reported")
    opa = OpaServer(system.run, BundleService(system.url(Role.TRAIN), TOKEN))
    try:
        opa.start()
    except ProgramMissing as missing:
        unavailable(missing.what, missing.command)
    try:
        wait_until(lambda: _asked(opa, facts("analyst-1")) == NOBODY, "OPA has the bundle")
        done = cli(system, "users", "grant", "analyst-1", "--gpu-hours", "5", "--max-risk", "medium", "--by", "op")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: decision(system, facts("analyst-1")).allow, "the worker permits it", within_s=15)
        wait_until(lambda: _asked(opa, facts("analyst-1")) == set(), "OPA permits it", within_s=15)
        assert _asked(opa, facts("analyst-1", hours=5.5)) == {"gpu_quota"}
        assert _codes(decision(system, facts("analyst-1", hours=5.5))) == {"gpu_quota"}
        done = cli(system, "users", "revoke", "analyst-1", "--by", "op")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: _codes(decision(system, facts("analyst-1"))) == NOBODY, "nobody again", within_s=15)
        wait_until(lambda: _asked(opa, facts("analyst-1")) == NOBODY, "for OPA too", within_s=15)
    finally:
        opa.stop()
    changes = [entry["body"]["context"]["value"] for entry in entries(system, "user_permission")]
    assert changes == [{"gpu_hours_monthly": 5.0, "max_risk_level": "medium"}, None]
    told = {entry["id"] for entry in entries(system, "gate_decision")}
    assert f"decision-{decision(system, facts('analyst-1')).decision_id}" in told


def test_the_doors_are_shut(system: System) -> None:
    wait_until(lambda: ask(system, facts("analyst-1")).is_success, "the worker has opened its gate")
    assert ask(system, facts("analyst-1"), token="another").status_code == 401
    url = f"{system.url(Role.TRAIN)}/policies/bundle.tar.gz"
    assert httpx.get(url, trust_env=False).status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    first = httpx.get(url, headers=headers, trust_env=False)
    assert first.status_code == 200
    same = httpx.get(url, headers=headers | {"If-None-Match": first.headers["etag"]}, trust_env=False)
    assert (same.status_code, same.content) == (304, b"")
    other = httpx.post(
        f"{system.url(Role.TRAIN)}/api/v1/decisions",
        json={"action": "model_fine_tuning", "facts": {}},
        headers=headers,
        trust_env=False,
    )
    assert other.status_code == 422
    system.processes["audit-engine"].stop()
    away = decision(system, facts("analyst-2"))
    assert (away.allow, away.conclusive) == (False, False)


NOBODY = {"user_permitted", "gpu_quota", "risk_permitted"}


def _codes(found: GateDecision) -> set[str]:
    return {reason.code for reason in found.reasons}


def _asked(opa: OpaServer, asked: dict[str, Any]) -> set[str]:
    async def decide() -> GateDecision:
        engine = OpaEngine(OpaConfig(opa.url, timeout_seconds=5.0))
        try:
            return await engine.decide("model_inference", asked)
        finally:
            await engine.aclose()

    return _codes(asyncio.run(decide()))

"""The worker's gate over files and over SQL: changes of either are in force at the next question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app import wiring
from app.compute import gpu_count, memory_gb
from app.deciding import KeptPolicies
from app.gate import Gate, GateBundle, open_gate
from app.settings import Settings
from app.store import Database, outbox, permissions, usage
from models.audit import AuditEntry
from policies.clients.audit_client import AuditUnavailable
from policies.constitution import load_constitution
from policies.gate import BundleError, load_bundle
from policies.gate.interface import POLICY_UNAVAILABLE
from policies.gate.live import BundleUnavailable

HASH = "cdd01ef066bc6cf2"


class Log:
    """The audit log of a test."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.away = False

    async def log(self, entry: AuditEntry) -> None:
        if self.away:
            raise AuditUnavailable("the audit engine did not answer")
        self.entries.append(entry)


@asynccontextmanager
async def opened(settings: Settings, database: Database, log: Log | None = None) -> AsyncIterator[Gate]:
    async with open_gate(settings, database, load_constitution(None), log or Log()) as gate:
        yield gate


def configured(tmp_path: Path, redis_url: str, **gate: Any) -> Settings:
    settings = Settings()
    return settings.model_copy(
        update={
            "data_dir": tmp_path,
            "gate": settings.gate.model_copy(update=gate),
            "redis": settings.redis.model_copy(update={"url": redis_url}),
        }
    )


def facts(user: str, hours: float = 2.0, gpus: int = 1) -> dict[str, Any]:
    return {
        "model": {"constitutional_hash": HASH, "compliance_score": 0.97, "risk_level": "low"},
        "request": {"safety_validated": True},
        "content": {"violations": []},
        "user": {"id": user, "groups": ["constitutional-ai-users"]},
        "resources": {"gpu_hours": hours, "requested_gpus": gpus, "memory_gb": 1},
        "audit": {"enabled": True, "trail_enabled": True, "constitutional_hash": HASH, "retention_period": 2555},
    }


async def codes(gate: Gate, asked: dict[str, Any]) -> set[str]:
    # A decision about inference may rest on data a second old: the test asks for what is in force now.
    await gate.present(fresh=True)
    decision = await gate.decide("model_inference", asked)
    assert decision.conclusive, decision.reasons
    return {reason.code for reason in decision.reasons}


def permit(database: Database, user: str, hours: float) -> None:
    with database.write() as connection:
        permissions.grant(
            connection, user, gpu_hours_monthly=hours, max_risk_level="medium", risk_levels=["medium"], changed_by="op"
        )
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])


async def test_a_live_gate_decides_by_what_the_store_says_now(
    database: Database, tmp_path: Path, redis_url: str
) -> None:
    settings = configured(tmp_path, redis_url, data="sql")
    async with opened(settings, database) as gate:
        nobody = {"user_permitted", "gpu_quota", "risk_permitted", "gpus_available", "memory_available"}
        assert await codes(gate, facts("analyst-1")) == nobody
        permit(database, "analyst-1", 5.0)
        assert await codes(gate, facts("analyst-1")) == {"gpus_available", "memory_available"}
        with database.write() as connection:
            usage.report(connection, "here", gpus=2, memory_gb=16.0)
        assert await codes(gate, facts("analyst-1")) == set()
        assert await codes(gate, facts("analyst-1", gpus=3)) == {"gpus_available"}
        assert await codes(gate, facts("analyst-1", hours=5.5)) == {"gpu_quota"}
        with database.write() as connection:
            permissions.revoke(connection, "analyst-1", changed_by="op")
            outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])
        assert await codes(gate, facts("analyst-1")) == {"user_permitted", "gpu_quota", "risk_permitted"}


async def test_the_files_users_are_nobody_where_data_comes_from_the_store(
    database: Database, tmp_path: Path, redis_url: str
) -> None:
    (user,) = load_bundle().data["user_permissions"]
    async with opened(configured(tmp_path, redis_url), database) as gate:
        assert await codes(gate, facts(user)) == set()
    async with opened(configured(tmp_path, redis_url, data="sql"), database) as gate:
        assert "user_permitted" in await codes(gate, facts(user))


async def test_a_store_that_is_away_decides_nothing(tmp_path: Path, redis_url: str) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    database = Database(f"sqlite:///{folder / 'test.db'}")
    database.migrate()
    async with opened(configured(tmp_path, redis_url, data="sql"), database) as gate:
        database.close()
        (folder / "test.db").unlink()
        for action in ("model_inference", "model_fine_tuning", "model_promotion"):
            with pytest.raises(BundleUnavailable, match="cannot be read"):
                await gate.present(fresh=True)
            decision = await gate.decide(action, {}) if action != "model_inference" else None
            if decision is not None:
                assert (decision.allow, decision.conclusive) == (False, False)
                assert decision.reasons[0].code == POLICY_UNAVAILABLE


async def test_a_decision_about_inference_has_no_effect_until_the_audit_log_has_it(
    database: Database, tmp_path: Path, redis_url: str
) -> None:
    (user,) = load_bundle().data["user_permissions"]
    log = Log()
    log.away = True
    # A quota that no other test asks about: the session's Redis is shared.
    asked = facts(user, hours=17.25)
    async with opened(configured(tmp_path, redis_url), database, log) as gate:
        decision = await gate.decide("model_inference", asked)
        assert (decision.allow, decision.conclusive) == (False, False)
        log.away = False
        allowed = await gate.decide("model_inference", asked)
        assert allowed.allow
        assert await gate.decide("model_inference", asked) == allowed
        assert gate.snapshot()["hit"] == 1
    (entry,) = log.entries
    assert (entry.entry_id, entry.event_type) == (f"decision-{allowed.decision_id}", "gate_decision")
    assert entry.context["facts"] == asked
    assert entry.context["decision"]["allow"] is True


async def test_equal_data_are_the_same_bundle() -> None:
    base = load_bundle()
    tables = {"user_permissions": {}, "gpu_hours_used": {}, "resources": {}}
    bundle = GateBundle(lambda: base, lambda: dict(tables))
    first = await bundle(fresh=True)
    assert await bundle(fresh=True) is first, "a bundle that did not change is not compiled again"
    tables["gpu_hours_used"] = {"analyst-1": 1.0}
    second = await bundle(fresh=True)
    assert second is not first
    assert second.bundle_revision == first.bundle_revision
    assert second.data_revision != first.data_revision


def test_gpus_are_device_files_that_may_be_seen(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpu_count(tmp_path, {}) == 3
    assert gpu_count(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"}) == 1
    assert gpu_count(tmp_path, {"CUDA_VISIBLE_DEVICES": "0,1,-1,2"}) == 2
    assert gpu_count(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert gpu_count(tmp_path, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}) == 3
    assert gpu_count(tmp_path / "absent", {}) == 0


def test_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole = memory_gb(limit)
    assert whole >= 1
    limit.write_text("max\n")
    assert memory_gb(limit) == whole
    limit.write_text("1999999999\n")
    assert memory_gb(limit) == 1.0


def test_kept_policies_are_tested_once_and_asked_for_again_where_they_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def source(settings: Settings, constitution: object) -> object:
        made.append(constitution)
        if len(made) == 1:
            raise BundleError("a case fails")
        return object()

    monkeypatch.setattr(wiring, "bundle_source", source)
    policies = KeptPolicies(Settings())
    with pytest.raises(BundleError):
        policies()
    assert policies() is policies()
    assert len(made) == 2

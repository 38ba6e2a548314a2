"""An installation where nobody has set a key: its audit engine and its clients find each other all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from audit_logs import HASH, read_rows

from app.embedded.ports import free_port
from app.settings import Settings
from app.wiring import AuditOutlet, audit_client, audit_config, cycle_config, evaluation_audit
from models.audit import CONSTITUTIONAL_VALIDATION, AuditEntry
from policies.audit.engine import make_engine
from policies.audit.service import create_audit_app
from policies.clients import AuditUnavailable


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    port = free_port()
    engine = {"url": f"http://127.0.0.1:{port}", "port": port, "database_url": f"sqlite:///{tmp_path}/audit.db"}
    return Settings.model_validate({"data_dir": tmp_path / "data", "audit_engine": engine})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    app = create_audit_app(audit_config(settings))
    server = uvicorn.Server(uvicorn.Config(app, port=settings.audit_engine.port, log_config=None))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task


def stored(settings: Settings) -> list[str]:
    engine = make_engine(settings.audit_engine.database_url)
    try:
        return [row["entry_id"] for row in read_rows(engine)]
    finally:
        engine.dispose()


def entry(entry_id: str, event_type: str) -> AuditEntry:
    fields: dict[str, Any] = {"event_type": event_type, "constitutional_hash": HASH, "context": {"prompt": "a secret"}}
    return AuditEntry(entry_id=entry_id, **fields)


async def test_clients_write_with_the_installations_own_token(settings: Settings) -> None:
    async with serving(settings), audit_client(settings) as client:
        await client.log(entry("one", "anything"))
        await AuditOutlet(client, HASH).log_body({"entry_id": "two", "event_type": "cycle_transition"})
    assert stored(settings) == ["one", "two"]
    assert cycle_config(settings).audit_engine.token == audit_config(settings).token


async def test_a_client_of_another_installation_may_not_write(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with serving(settings), audit_client(other) as client:
        with pytest.raises(AuditUnavailable, match="check the token"):
            await client.log(entry("one", "anything"))
    assert stored(settings) == []


async def test_evaluations_wait_for_the_engine_and_decisions_do_not(settings: Settings) -> None:
    async with evaluation_audit(settings) as audit:
        await audit.log(entry("one", CONSTITUTIONAL_VALIDATION))
        with pytest.raises(AuditUnavailable):
            await audit.log(entry("decision", "gate_decision"))
        async with serving(settings), asyncio.timeout(30):
            while not audit.delivered:  # noqa: ASYNC110  it has no event for it
                await asyncio.sleep(0.02)
    assert stored(settings) == ["one"]

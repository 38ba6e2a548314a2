"""A worker's web: statistics, metrics, health and the operations page, and who may see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from app import __version__
from app.roles import Role
from app.settings import Settings, load_settings
from app.store import Database, cycles
from app.store.database import DatabaseUnavailable
from app.telemetry.metrics import CurationCollector, StoreCollector
from app.web.api import create_web
from app.workers import WorkerState
from models.cycle import CycleState, TriggerType

PAGES = ("/", "/stats", "/metrics")
OPEN_METRICS: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families
OPEN = ("/health/live", "/health/ready")


@pytest.fixture
def worker(tmp_path: Path) -> tuple[Settings, WorkerState]:
    """A curation worker without its agents: nothing here needs Kafka."""
    settings = load_settings({"FLYWHEEL_DATABASE__URL": f"sqlite:///{tmp_path / 'test.db'}"})
    state = WorkerState(settings, Role.CURATE)
    counts = Counter(examples=3, no_prompt=1)
    state.snapshots["curation"] = lambda: dict(counts)
    state.registry.register(CurationCollector(state.snapshots["curation"]))
    state.registry.register(StoreCollector(state.standing))
    return settings, state


@asynccontextmanager
async def client(settings: Settings, state: WorkerState, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    changed = load_settings(
        {"FLYWHEEL_DATABASE__URL": settings.database.url} | ({} if token is None else {"FLYWHEEL_WEB__TOKEN": token})
    )
    transport = httpx.ASGITransport(app=create_web(changed, Role.CURATE, state))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


def opened(database: Database, model_id: str) -> None:
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id=model_id, domain="d", trigger_type=TriggerType.MANUAL, requested_by="a", facts={}
        )
        assert cycle is not None
        reasons = ({"code": "c", "message": "because"},)
        cycles.transition(connection, cycle, CycleState.FAILED, reasons=reasons)


async def test_statistics(worker: tuple[Settings, WorkerState]) -> None:
    opened(worker[1].database, "m")
    async with client(*worker) as http:
        shown = (await http.get("/stats")).json()
    assert shown["role"] == "curate"
    assert shown["version"] == __version__
    assert shown["curation"] == {"examples": 3, "no_prompt": 1}
    assert shown["store"] == {
        "cycles": {"failed": 1},
        "examples": {},
        "champions": [],
        "rollbacks": [],
        "alerts": {},
        "outbox": 4,
        "outbox_refused": 0,
    }


async def test_metrics_in_both_formats(worker: tuple[Settings, WorkerState]) -> None:
    opened(worker[1].database, "m")
    async with client(*worker) as http:
        plain = await http.get("/metrics")
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        open_metrics = await http.get("/metrics", headers=accept)
    assert plain.headers["content-type"].startswith("text/plain")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
    for families in (parse_prometheus(plain.text), OPEN_METRICS(open_metrics.text)):
        samples = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}
        assert samples["flywheel_curation_records_total", "examples"] == 3
        assert samples["flywheel_cycles", "failed"] == 1
        assert samples["flywheel_outbox_pending",] == 4
        assert samples["flywheel_outbox_refused",] == 0


async def test_health_tells_no_more_than_that(worker: tuple[Settings, WorkerState]) -> None:
    async with client(*worker) as http:
        assert (await http.get("/health/live")).json() == {"status": "live"}
        assert (await http.get("/health/ready")).json() == {"status": "ready"}


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer wrong", 401),
        ("Bearer hunter2x", 401),
        ("Bearer hunter", 401),
        ("hunter2", 401),
        ("Basic hunter2", 401),
        ("Bearer \xe9", 401),
        ("Bearer hunter2", 200),
        ("bearer hunter2", 200),
    ],
)
async def test_the_token(worker: tuple[Settings, WorkerState], path: str, header: str | None, status: int) -> None:
    headers = httpx.Headers([] if header is None else [(b"authorization", header.encode("latin-1"))])
    async with client(*worker, token="hunter2") as http:
        response = await http.get(path, headers=headers)
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert "hunter2" not in response.text


@pytest.mark.parametrize("path", PAGES)
async def test_without_a_token_set_none_is_asked_for(worker: tuple[Settings, WorkerState], path: str) -> None:
    async with client(*worker) as http:
        assert (await http.get(path)).status_code == 200


async def test_health_needs_no_token(worker: tuple[Settings, WorkerState]) -> None:
    async with client(*worker, token="hunter2") as http:
        assert [(await http.get(path)).status_code for path in OPEN] == [200, 200]


@pytest.mark.parametrize("path", [*PAGES, *OPEN, "/nowhere"])
async def test_security_headers_are_on_every_answer(worker: tuple[Settings, WorkerState], path: str) -> None:
    async with client(*worker, token="hunter2") as http:
        for headers in ({}, {"authorization": "Bearer hunter2"}):
            answer = (await http.get(path, headers=headers)).headers
            assert answer["x-content-type-options"] == "nosniff"
            assert answer["x-frame-options"] == "DENY"
            assert answer["referrer-policy"] == "same-origin"
            assert "default-src 'none'" in answer["content-security-policy"]


async def test_a_store_that_is_away_is_said(worker: tuple[Settings, WorkerState]) -> None:
    class Away(WorkerState):
        @property
        def database(self) -> Database:
            raise DatabaseUnavailable("postgresql://db did not answer in 60 s")

    settings, ready = worker
    state = Away(settings, Role.CURATE)
    state.snapshots.update(ready.snapshots)
    async with client(settings, state) as http:
        stats = await http.get("/stats")
        page = await http.get("/")
    assert stats.json()["store"] == {"unavailable": "DatabaseUnavailable"}
    assert stats.json()["curation"]["examples"] == 3
    assert page.status_code == 200
    assert "does not answer" in page.text


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ROUTE])
def test_only_the_router_takes_logs(worker: tuple[Settings, WorkerState], role: Role) -> None:
    paths: dict[str, Any] = create_web(worker[0], role, worker[1]).openapi()["paths"]
    assert "/v1/logs" not in paths
    assert {"/stats", "/metrics", "/", "/review", "/health/live", "/health/ready"} <= set(paths)

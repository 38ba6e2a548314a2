"""Monitoring: every item counted once, over pages, failures and restarts, against services on real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from loopback import serving
from prometheus_client import CollectorRegistry, generate_latest

from agents.monitoring.agent import register, run_monitor
from agents.monitoring.metrics import FlywheelMetrics, PrivacyReading
from agents.monitoring.monitor import Monitor, MonitoringConfig, open_monitor
from agents.monitoring.poll import Position
from models.audit import AuditEntry, RecentViolation
from policies.audit.config import AuditConfig
from policies.audit.engine import make_engine
from policies.audit.service import create_audit_app
from policies.audit.store import AuditStore

KEY = b"a key of the tests, 32 bytes long"
HASH = "cdd01ef066bc6cf2"
TOKEN = "a token"


class Store:
    """Cursors in memory, as a worker's database would keep them over its restarts."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.broken = False

    async def load(self, name: str) -> str | None:
        self._check()
        return self.kept.get(name)

    async def save(self, name: str, cursor: str) -> None:
        self._check()
        self.kept[name] = cursor

    def _check(self) -> None:
        if self.broken:
            raise ConnectionError("the store is away")


def evaluation(number: int, **fields: object) -> dict[str, Any]:
    return {
        "id": f"d-{number}",
        "model_id": "m",
        "type": "response",
        "model_type": "causal-lm",
        "risk_level": "low",
        "compliance_score": 0.97,
        "allow": True,
        **fields,
    }


class PolicyEngine:
    """Lists recent evaluations: by cursor, or (as an engine without cursors does) always the last hundred."""

    def __init__(self, *, cursors: bool) -> None:
        self.cursors = cursors
        self.items: list[Any] = []
        self.answer: Response | None = None
        self.delay_s = 0.0
        self.asked: list[float] = []
        self.app = FastAPI()
        self.app.get("/api/v1/metrics")(self.recent)

    async def recent(self, request: Request) -> Response:
        self.asked.append(time.monotonic())
        await asyncio.sleep(self.delay_s)
        if self.answer is not None:
            return self.answer
        if not self.cursors:
            return self._page(self.items[-100:], {})
        after = int(request.query_params.get("after", "0"))
        page = self.items[after : after + 3]
        return self._page(page, {"X-Next-Cursor": str(after + len(page))})

    def _page(self, items: list[Any], headers: dict[str, str]) -> Response:
        content = json.dumps({"recent_evaluations": items})
        return Response(content, media_type="application/json", headers=headers)


@pytest.fixture(params=[True, False], ids=["cursors", "no cursors"])
def policy(request: pytest.FixtureRequest) -> PolicyEngine:
    return PolicyEngine(cursors=request.param)


@pytest.fixture
def policy_url(policy: PolicyEngine) -> Iterator[str]:
    with serving(policy.app) as url:
        yield url


@pytest.fixture
def audit_url(tmp_path: Path) -> Iterator[str]:
    config = AuditConfig(f"sqlite:///{tmp_path}/audit.db", KEY, token=TOKEN, read_token="readers")
    with serving(create_audit_app(config)) as url:
        yield url


@pytest.fixture
def store() -> Store:
    return Store()


class Worker:
    """What a restart brings anew: the registry, the metrics, the connections. The store is handed over."""

    def __init__(self, monitor: Monitor, registry: CollectorRegistry) -> None:
        self.monitor = monitor
        self._registry = registry

    async def poll(self, *names: str) -> bool:
        return all([await self.monitor.poll_once(name) for name in names or ("evaluations",)])

    def total(self, metric: str) -> float:
        """The sum over a metric's series."""
        return sum(
            sample.value for family in self._registry.collect() for sample in family.samples if sample.name == metric
        )

    def value(self, metric: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(metric, labels)


NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@asynccontextmanager
async def worker(
    store: Store,
    policy_url: str = NOBODY,
    audit_url: str = NOBODY,
    **options: Any,
) -> AsyncIterator[Worker]:
    registry = CollectorRegistry()
    reader = options.pop("privacy_reader", None)
    config = MonitoringConfig(policy_url, audit_url, audit_token="readers", **options)
    async with open_monitor(config, store, FlywheelMetrics(registry), reader) as monitor:
        yield Worker(monitor, registry)


EVALUATIONS = "constitutional_evaluations_total"


async def test_an_item_is_counted_once_over_polls_and_restarts(
    policy: PolicyEngine,
    policy_url: str,
    store: Store,
) -> None:
    policy.items = [evaluation(number) for number in range(10)]
    async with worker(store, policy_url) as first:
        assert await first.poll()
        assert first.total(EVALUATIONS) == 10
        policy.items += [evaluation(10), evaluation(11)]
        for _ in range(3):
            assert await first.poll()
        assert first.total(EVALUATIONS) == 12
    policy.items.append(evaluation(12))
    async with worker(store, policy_url) as second:
        for _ in range(2):
            assert await second.poll()
        assert second.total(EVALUATIONS) == 1
    async with worker(store, policy_url) as third:
        assert await third.poll()
        assert third.total(EVALUATIONS) == 0


async def test_evaluations_carry_the_specifications_labels(
    policy: PolicyEngine,
    policy_url: str,
    store: Store,
) -> None:
    policy.items = [
        evaluation(1),
        evaluation(2, allow=False, compliance_score=0.85, risk_level="high", model_id="n"),
        {"id": "bare", "compliance_score": 1, "allow": True},
    ]
    async with worker(store, policy_url) as running:
        await running.poll()
        allowed = {"result": "allow", "model_type": "causal-lm", "risk_level": "low"}
        denied = {"result": "deny", "model_type": "causal-lm", "risk_level": "high"}
        unknown = {"result": "allow", "model_type": "unknown", "risk_level": "unknown"}
        for labels in (allowed, denied, unknown):
            assert running.value(EVALUATIONS, **labels) == 1
        series = {"model_id": "n", "evaluation_type": "response"}
        assert running.value("constitutional_compliance_score_bucket", **series, le="0.84") == 0
        assert running.value("constitutional_compliance_score_bucket", **series, le="0.86") == 1
        assert running.value("constitutional_compliance_score_sum", **series) == 0.85


async def test_what_is_malformed_is_counted_as_such_and_holds_nothing_up(
    policy: PolicyEngine,
    policy_url: str,
    store: Store,
) -> None:
    policy.items = [
        evaluation(1, compliance_score="0.9"),
        evaluation(2, compliance_score=float("nan")),
        evaluation(3, allow="yes"),
        {"compliance_score": 1.0, "allow": True},
        "text",
        evaluation(4),
    ]
    async with worker(store, policy_url) as running:
        assert await running.poll()
        assert running.total(EVALUATIONS) == 1
        assert running.value("flywheel_monitoring_malformed_items_total", source="evaluations") == 5


@pytest.mark.parametrize(
    "answer",
    [
        Response("{}", 200),
        Response("[]", 200),
        Response("null", 200),
        Response("no JSON", 200),
        Response(b"\xff", 200),
        Response("[" * 100_000, 200),
        Response('{"recent_evaluations": {"id": 1}}', 200),
        Response('{"recent_evaluations": []}', 500),
        Response('{"recent_evaluations": []}', 401),
        Response("", 302, {"location": "/elsewhere"}),
    ],
)
async def test_nonsense_is_a_failed_poll_and_nothing_is_lost(
    policy: PolicyEngine,
    policy_url: str,
    store: Store,
    answer: Response,
) -> None:
    policy.items = [evaluation(1)]
    async with worker(store, policy_url) as running:
        policy.answer = answer
        assert not await running.poll()
        policy.answer = None
        assert await running.poll()
        assert running.total(EVALUATIONS) == 1
        assert running.value("flywheel_monitoring_polls_total", source="evaluations", outcome="failed") == 1
        assert running.value("flywheel_monitoring_polls_total", source="evaluations", outcome="ok") == 1


async def test_an_empty_list_from_something_else_does_not_have_all_counted_again(store: Store) -> None:
    """A proxy that answers in the engine's place tells no cursor: the position was forgotten, and all came twice."""
    policy = PolicyEngine(cursors=True)
    policy.items = [evaluation(1), evaluation(2)]
    with serving(policy.app) as url:
        async with worker(store, url) as running:
            assert await running.poll()
            policy.answer = Response('{"recent_evaluations": []}', 200)
            assert not await running.poll()
            policy.answer = None
            assert await running.poll()
            assert running.total(EVALUATIONS) == 2
        async with worker(store, url) as second:
            assert await second.poll()
            assert second.total(EVALUATIONS) == 0


async def test_a_slow_or_absent_engine_is_a_failed_poll(policy: PolicyEngine, policy_url: str, store: Store) -> None:
    policy.delay_s = 2
    async with worker(store, policy_url, timeout_s=0.2) as running:
        started = time.monotonic()
        assert not await running.poll()
        assert time.monotonic() - started < 1.5
    async with worker(store) as alone:
        assert not await alone.poll("evaluations", "violations", "optimizations")


async def test_without_its_store_nothing_is_counted_twice(policy: PolicyEngine, policy_url: str, store: Store) -> None:
    policy.items = [evaluation(1)]
    async with worker(store, policy_url) as running:
        store.broken = True
        assert not await running.poll(), "where to go on from is not known"
        assert running.total(EVALUATIONS) == 0
        store.broken = False
        assert await running.poll()
        policy.items.append(evaluation(2))
        store.broken = True
        assert not await running.poll()
        assert not await running.poll()
        assert running.total(EVALUATIONS) == 2
        store.broken = False
        assert await running.poll()
        assert running.total(EVALUATIONS) == 2
    async with worker(store, policy_url) as second:
        assert await second.poll()
        assert second.total(EVALUATIONS) == 0


@pytest.mark.parametrize(
    "text", ["12", "{}", "no JSON", '{"cursor": 3, "listed": []}', '{"cursor": null, "listed": [1]}']
)
async def test_an_unreadable_position_counts_nothing(store: Store, text: str) -> None:
    store.kept["evaluations"] = text
    policy = PolicyEngine(cursors=True)
    policy.items = [evaluation(1)]
    with serving(policy.app) as url:
        async with worker(store, url) as running:
            assert not await running.poll()
            assert running.total(EVALUATIONS) == 0


def test_a_position_survives_its_text() -> None:
    for position in (Position(), Position("17"), Position(None, ("a", "b"))):
        assert Position.parse(position.dump()) == position


async def log(audit_url: str, *entries: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=audit_url, trust_env=False) as client:
        for item in entries:
            body = {"constitutional_hash": HASH, **item}
            answer = await client.post("/api/v1/log", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 200


def validation(entry_id: str, *violations: object) -> dict[str, Any]:
    return {
        "entry_id": entry_id,
        "event_type": "constitutional_validation",
        "constitutional_hash": HASH,
        "violations": list(violations),
        "model_id": "m",
    }


async def test_the_audit_log_is_counted_from_its_beginning(audit_url: str, store: Store, tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/audit.db")
    history = AuditStore(engine, KEY)
    violations: list[Any] = ["harmful_content", {"type": "bias_detected", "severity": "high"}]
    items = [AuditEntry.model_validate(validation(f"e{number}", *violations)) for number in range(1200)]
    history.append_many([history.prepare(item) for item in items])
    engine.dispose()
    cycle = {"event_type": "optimization_cycle", "trigger_type": "count", "model_type": "causal-lm"}
    await log(audit_url, {**cycle, "success": True}, {**cycle, "success": False}, cycle)
    sources = ("violations", "optimizations")
    async with worker(store, audit_url=audit_url) as first:
        for _ in range(2):
            assert await first.poll(*sources)
        found = {"violation_type": "bias_detected", "severity": "high", "model_id": "m"}
        assert first.value("constitutional_violations_total", **found) == 1200
        assert first.total("constitutional_violations_total") == 2400
        for success in ("true", "false"):
            labels = {"trigger_type": "count", "model_type": "causal-lm", "success": success}
            assert first.value("model_optimization_cycles_total", **labels) == 1
    await log(audit_url, validation("last", "harmful_content"), {**cycle, "success": True})
    async with worker(store, audit_url=audit_url) as second:
        assert await second.poll(*sources)
        assert second.total("constitutional_violations_total") == 1
        assert second.total("model_optimization_cycles_total") == 1


async def test_privacy_is_shown_as_read_and_old_sessions_end(store: Store) -> None:
    readings = [PrivacyReading("m", "cycle-1", 6.0)]

    async def read() -> list[PrivacyReading]:
        if not readings:
            raise ConnectionError("the ledger is away")
        return list(readings)

    async with worker(store, privacy_reader=read) as running:
        assert await running.poll("privacy")
        assert running.value("privacy_budget_remaining", model_id="m", training_session="cycle-1") == 6.0
        readings[:] = [PrivacyReading("m", "cycle-2", 4.5), PrivacyReading("n", "cycle-3", 8.0)]
        assert await running.poll("privacy")
        assert running.value("privacy_budget_remaining", model_id="m", training_session="cycle-1") is None
        assert running.value("privacy_budget_remaining", model_id="m", training_session="cycle-2") == 4.5
        readings.clear()
        assert not await running.poll("privacy")
        assert running.value("privacy_budget_remaining", model_id="n", training_session="cycle-3") == 8.0


def test_label_values_from_outside_are_bounded() -> None:
    registry = CollectorRegistry()
    metrics = FlywheelMetrics(registry, max_label_values=3)
    for number in range(50):
        metrics.count_violation(RecentViolation(id="x", type=f"t{number}", severity="high", model_id="m" * 10_000))
    metrics.show_privacy(PrivacyReading("m", f"cycle-{number}", float(number)) for number in range(50))
    lines = generate_latest(registry).decode().splitlines()
    violations = [line for line in lines if line.startswith("constitutional_violations_total{")]
    assert len(violations) == 4
    assert any('violation_type="other"' in line and line.endswith(" 47.0") for line in violations)
    assert all(len(line) < 300 for line in violations)
    assert sum(line.startswith("privacy_budget_remaining{") for line in lines) == 3


async def test_a_failed_source_is_left_alone_for_longer_and_alone(store: Store) -> None:
    """The pace itself, at a thousandth of its scale."""
    calls: dict[str, list[float]] = {"good": [], "bad": []}

    async def good() -> None:
        calls["good"].append(time.monotonic())

    async def bad() -> None:
        calls["bad"].append(time.monotonic())
        raise ConnectionError

    metrics = FlywheelMetrics(CollectorRegistry())
    monitor = Monitor({"good": good, "bad": bad}, metrics, interval_s=0.02, retry_interval_s=0.2)
    task = asyncio.create_task(monitor.run())
    async with asyncio.timeout(30):
        while len(calls["bad"]) < 3:  # noqa: ASYNC110  a condition with a deadline
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pauses = {name: [later - before for before, later in pairwise(times)] for name, times in calls.items()}
    assert min(pauses["bad"]) >= 0.19
    assert min(pauses["good"]) >= 0.015
    assert len(calls["good"]) > len(calls["bad"])


async def test_a_monitor_that_cannot_be_opened_is_tried_again() -> None:
    opened = asyncio.Event()
    attempts = 0

    @asynccontextmanager
    async def deps() -> AsyncIterator[Monitor]:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("the database is away")
        opened.set()
        yield Monitor({}, FlywheelMetrics(CollectorRegistry()), interval_s=1, retry_interval_s=1)

    task = asyncio.create_task(run_monitor(deps, open_retry_s=0.01))
    async with asyncio.timeout(10):
        await opened.wait()
    assert attempts == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_faust_worker_runs_the_monitor(mock_broker: Any, store: Store, tmp_path: Path) -> None:
    import faust

    policy = PolicyEngine(cursors=True)
    policy.items = [evaluation(1), evaluation(2)]
    registry = CollectorRegistry()
    closed = asyncio.Event()
    with serving(policy.app) as url:

        @asynccontextmanager
        async def deps() -> AsyncIterator[Monitor]:
            config = MonitoringConfig(url, NOBODY, interval_s=0.05)
            try:
                async with open_monitor(config, store, FlywheelMetrics(registry)) as monitor:
                    yield monitor
            finally:
                closed.set()

        app = faust.App(
            "monitoring-test",
            broker=f"kafka://{mock_broker.bootstrap}",
            datadir=str(tmp_path),
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
        )
        register(app, deps)
        await app.start()
        try:
            async with asyncio.timeout(60):
                while len(policy.asked) < 3:  # noqa: ASYNC110  a condition with a deadline
                    await asyncio.sleep(0.02)
        finally:
            await app.stop()
    assert closed.is_set()
    labels = {"result": "allow", "model_type": "causal-lm", "risk_level": "low"}
    assert registry.get_sample_value(EVALUATIONS, labels) == 2


@pytest.mark.parametrize("name", ["interval_s", "retry_interval_s", "timeout_s"])
def test_a_pace_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        MonitoringConfig(NOBODY, NOBODY, **{name: 0})  # type: ignore[arg-type]

"""What each role's worker is made of: its agents, with everything they need opened in the worker's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import faust
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from agents.consume import ConsumeConfig, Handler
from agents.curation.agent import CurationHandler
from agents.curation.agent import register as register_curation
from agents.curation.curator import Curator
from agents.flow import Flow
from agents.monitoring.agent import register as register_monitoring
from agents.monitoring.metrics import FlywheelMetrics, PrivacyReading
from agents.monitoring.monitor import MonitoringConfig, open_monitor
from agents.routing.agent import register as register_routing
from agents.routing.pipeline import Pipeline
from agents.training.agent import register as register_training
from agents.training.at_work import AtWork
from agents.training.context import StageContext
from agents.training.mirror import RegistryMirror
from app import wiring
from app.cluster import check_cluster, cluster_jobs
from app.compute import gpu_count, memory_gb
from app.gate import Gate, open_gate
from app.kafka import make_relay_producer
from app.lanes import Lanes
from app.live import LiveCopier
from app.redis import make_redis
from app.relay import OutboxRelay
from app.roles import Role
from app.routing import Routing, batch_maker, open_pipeline
from app.settings import Settings
from app.store import Database, budget, cohorts, cursors, overview, usage
from app.store.database import DatabaseUnavailable
from app.telemetry.groups import read_groups
from app.telemetry.latency import ClientLatency
from app.telemetry.metrics import (
    ClientCollector,
    ConsumerCollector,
    CurationCollector,
    EventLoopCollector,
    MirrorCollector,
    RoutingCollector,
    StoreCollector,
    TraceCollector,
    TrainingCollector,
    new_registry,
)
from app.telemetry.sensor import FaustSensor
from app.telemetry.tracing import SpanCounts, open_curation_tracing, open_cycle_tracing, open_tracing
from app.webhook import WebhookRelay
from policies.constitution import load_constitution

logger = logging.getLogger(__name__)


class WorkerState:
    """What a worker's web server may show: its counters and its registry."""

    def __init__(self, settings: Settings, role: Role) -> None:
        self.settings = settings
        self.role = role
        self.registry: CollectorRegistry = new_registry()
        self.latency = ClientLatency()
        self.registry.register(ClientCollector(self.latency.snapshot))
        self.tasks = 0
        """Asyncio tasks of the worker's event loop at the last request for figures."""
        self.registry.register(EventLoopCollector(lambda: self.tasks))
        self.snapshots: dict[str, Callable[[], Mapping[str, Any]]] = {"event_loop": lambda: {"tasks": self.tasks}}
        self.routing: Routing | None = None
        """Set on the role that routes."""
        self.flow: Flow | None = None
        """Set on the roles that read Kafka through an agent."""
        self.gate: Gate | None = None
        """Set on the role that trains, while it is at work."""
        self._database: Database | None = None
        self._opening = threading.Lock()

    @contextlib.contextmanager
    def showing(self, gate: Gate) -> Iterator[None]:
        """Show the worker's gate for as long as it is open."""
        self.gate, self.snapshots["gate"] = gate, gate.snapshot
        try:
            yield
        finally:
            self.gate = None

    def count_tasks(self) -> None:
        """Count the tasks of the running event loop."""
        self.tasks = len(asyncio.all_tasks())

    def add_flow(self) -> Flow:
        """Return what an agent tells of its reading; it is shown as `consumer`."""
        flow = self.flow = Flow()
        self.snapshots["consumer"] = flow.snapshot
        self.registry.register(ConsumerCollector(flow.snapshot))
        return flow

    def add_spans(self) -> SpanCounts:
        """Return what counts the worker's spans; shown as `traces`."""
        spans = SpanCounts()
        self.snapshots["traces"] = spans.snapshot
        self.registry.register(TraceCollector(spans.snapshot))
        return spans

    def watch(self, app: faust.App) -> None:
        """Show what Faust's sensors tell."""
        sensor = FaustSensor()
        app.sensors.add(sensor)
        self.registry.register(sensor.figures)

    @property
    def database(self) -> Database:
        """The store, opened and migrated when first asked for."""
        return self.open_database(60.0)

    def open_database(self, timeout_s: float) -> Database:
        """The store; raises `DatabaseUnavailable` where it does not answer within `timeout_s` when first asked for."""
        # Once: Alembic, which migrates it, keeps its state in the module, and MLflow's store has migrations too.
        with self._opening:
            if self._database is None:
                database = wiring.open_database(self.settings, timeout_s)
                self.latency.watch_database(database.engine)
                self._database = database
            return self._database

    def store_counts(self) -> Mapping[str, Any]:
        """Counts over the store."""
        with self.database.read() as connection:
            return overview.counts(connection)

    def standing(self) -> Mapping[str, Any]:
        """How cycles, adherence and outbox stand."""
        with self.database.read() as connection:
            return overview.standing(connection)

    def service(self) -> str:
        """The worker's `service.name`, which is also its consumer group."""
        return f"{self.settings.kafka.group_prefix}-{self.role.value}"


def add_routing(app: faust.App, settings: Settings, state: WorkerState) -> None:
    """`route`: the routing agent over Redis and an idempotent producer."""
    routing = state.routing = Routing()
    state.snapshots["routing"] = routing.snapshot
    state.registry.register(RoutingCollector(routing.snapshot))
    spans = state.add_spans()

    limits = settings.routing
    lanes = None
    if limits.delivery == "exactly_once":
        lanes = Lanes(settings, state.service(), batch_maker(settings, transactional=True))

    @asynccontextmanager
    async def open_router() -> AsyncIterator[Pipeline]:
        if lanes is not None:
            await lanes.check()
        async with (
            open_tracing(settings.telemetry, state.service(), spans) as trace,
            open_pipeline(settings, routing, trace, state.latency) as pipeline,
        ):
            yield pipeline

    config = ConsumeConfig(batch_messages=limits.batch_messages, linger_s=limits.batch_wait_s)
    open_lane = None if lanes is None else lanes.open
    register_routing(app, open_router, config, flow=state.add_flow(), open_lane=open_lane)
    state.watch(app)


def add_curation(app: faust.App, settings: Settings, state: WorkerState) -> None:
    """`curate`: the curation agent and the outbox relay."""
    curators: list[Curator] = []

    def curator() -> Curator:
        if not curators:
            has_pii = wiring.residual_pii(settings)
            curators.append(Curator(state.database, wiring.curation_rules(settings), has_pii))
        return curators[0]

    state.snapshots["curation"] = lambda: dict(curators[0].counts) if curators else {}
    state.registry.register(CurationCollector(state.snapshots["curation"]))
    state.registry.register(StoreCollector(state.standing))
    spans = state.add_spans()

    @asynccontextmanager
    async def open_handler() -> AsyncIterator[Handler]:
        async with open_curation_tracing(settings.telemetry, state.service(), spans) as trace:
            yield CurationHandler(await asyncio.to_thread(curator), trace)

    register_curation(app, open_handler, curator, state.add_flow())
    state.watch(app)
    _add_relay(app, settings, state)
    _add_webhook(app, settings, state)


def add_training(app: faust.App, settings: Settings, state: WorkerState) -> None:
    """`train`: the cycle runner and the outbox relay. Raises SettingsError without the guard or the cluster
    that is asked for.
    """
    wiring.check_training_guard(settings)
    check_cluster(settings)
    state.registry.register(StoreCollector(state.standing))
    at_work = AtWork()
    state.registry.register(TrainingCollector(at_work.snapshot))
    spans = state.add_spans()

    @asynccontextmanager
    async def open_context() -> AsyncIterator[StageContext]:
        database = await asyncio.to_thread(lambda: state.database)
        async with (
            open_cycle_tracing(settings.telemetry, state.service(), spans, database) as trace,
            stage_context(settings, database, state) as context,
        ):
            context.at_work, context.trace = at_work, trace
            yield context

    register_training(app, open_context, state.add_flow())
    state.watch(app)
    _add_mirror(app, settings, state)
    _add_compute_report(app, state)
    _add_relay(app, settings, state)
    _add_webhook(app, settings, state)


@asynccontextmanager
async def stage_context(
    settings: Settings, database: Database, state: WorkerState | None = None
) -> AsyncIterator[StageContext]:
    """What the cycle runner works with, opened in the running loop; the worker's `state` is shown its gate."""
    constitution = load_constitution(settings.constitution.path)
    probe = wiring.Probe(settings)
    audit = wiring.audit_client(settings)
    has_pii = await asyncio.to_thread(wiring.training_guard, settings)
    async with contextlib.AsyncExitStack() as stack:
        for closing in (probe, audit):
            stack.push_async_callback(closing.aclose)
        # The jobs' verdicts are audited in their own processes; what had to wait is delivered from here.
        await stack.enter_async_context(wiring.evaluation_audit(settings))
        latency = None if state is None else state.latency
        gate = await stack.enter_async_context(open_gate(settings, database, constitution, audit, latency))
        if state is not None:
            stack.enter_context(state.showing(gate))
        config = wiring.cycle_config(settings)
        yield StageContext(
            config=config,
            database=database,
            gate=gate,
            audit=audit,
            probe=probe,
            bounds=gate.bounds,
            approved_models=lambda: approved_models(gate),
            has_pii=has_pii,
            public_training=wiring.public_training(settings, constitution),
            constitution_digest=constitution.digest,
            holder=wiring.holder_name("train"),
            machine=wiring.machine_name(),
            cluster=cluster_jobs(settings, config, database),
        )


async def approved_models(gate: Gate) -> frozenset[str]:
    """The base models that may be fine-tuned, as the bundle in force lists them."""
    return frozenset((await gate.present()).data["model_registry"])


def add_monitoring(app: faust.App, settings: Settings, state: WorkerState) -> None:
    """`monitor`: follows the engines and the privacy budget, and copies live settings to Redis."""
    metrics = FlywheelMetrics(state.registry)
    metrics.show_budget(settings.privacy.epsilon)
    config = MonitoringConfig(
        policy_url=settings.policy_engine.url,
        audit_url=settings.audit_engine.url,
        policy_token=wiring.secret(settings.policy_engine.token),
        audit_token=wiring.secret(settings.audit_engine.token),
        interval_s=settings.monitoring.interval_s,
        retry_interval_s=settings.monitoring.retry_interval_s,
    )

    async def read_privacy() -> list[PrivacyReading]:
        def read() -> list[PrivacyReading]:
            with state.database.read() as connection:
                spent = budget.spent(connection)
                # An earlier cohort's budget is nobody's concern any more: its series end.
                now = {entry.domain: cohorts.current(connection, entry.domain) for entry in spent}
                return [
                    PrivacyReading(entry.model_id, entry.cycle_id, settings.privacy.epsilon - entry.epsilon)
                    for entry in spent
                    if entry.cohort == now[entry.domain]
                ]

        return await asyncio.to_thread(read)

    groups = partial(read_groups, settings)
    register_monitoring(app, lambda: open_monitor(config, SqlCursors(state), metrics, read_privacy, groups))

    @app.task
    async def copy_live_settings() -> None:
        client = make_redis(settings, latency=state.latency)
        try:
            await LiveCopier(lambda: state.database, client, settings.routing.live_poll_s).run()
        finally:
            await client.aclose()


class SqlCursors:
    """The monitor's positions, in the store."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state

    async def load(self, name: str) -> str | None:
        """The position of a source."""

        def load() -> str | None:
            with self._state.database.read() as connection:
                return cursors.load(connection, name)

        return await asyncio.to_thread(load)

    async def save(self, name: str, cursor: str) -> None:
        """Keep the position of a source."""

        def save() -> None:
            with self._state.database.write() as connection:
                cursors.save(connection, name, cursor)

        await asyncio.to_thread(save)


def _add_mirror(app: faust.App, settings: Settings, state: WorkerState) -> None:
    if not settings.mlflow.enabled:
        return
    if importlib.util.find_spec("mlflow") is None:
        logger.warning("mlflow is not installed (train extra), so the registry is not mirrored; mlflow.enabled=false")
        return
    mirror = RegistryMirror(
        lambda: state.database,
        lambda: wiring.mlflow_mirror(settings),
        wiring.mlflow_uri(settings),
        wiring.holder_name("mirror"),
        settings.training.artifacts,
        interval_s=settings.mlflow.interval_s,
        retry_s=settings.mlflow.retry_s,
    )
    state.snapshots["mlflow"] = lambda: dict(mirror.counts)
    state.registry.register(MirrorCollector(state.snapshots["mlflow"]))

    @app.task
    async def mirror_registry() -> None:
        await mirror.run()


def _add_compute_report(app: faust.App, state: WorkerState) -> None:
    @app.task
    async def report_compute() -> None:
        """Tell the store what this machine has, for as long as the worker lives: the gate counts on it."""

        def report() -> None:
            with state.database.write() as connection:
                usage.report(connection, wiring.machine_name(), gpus=gpu_count(), memory_gb=memory_gb())

        while True:
            try:
                await asyncio.to_thread(report)
            except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
                logger.warning("what this machine has was not reported: %s", type(error).__name__)
            await asyncio.sleep(usage.REPORT_VALID_S / 3)


def _add_relay(app: faust.App, settings: Settings, state: WorkerState) -> None:
    @app.task
    async def relay() -> None:
        database = await asyncio.to_thread(lambda: state.database)
        producer = make_relay_producer(settings, state.latency)
        audit = wiring.audit_client(settings)
        outlet = wiring.AuditOutlet(audit, settings.constitution.hash)
        await producer.start()
        running = OutboxRelay(database, outlet, producer, wiring.holder_name(f"relay-{state.role}"))
        try:
            await running.run()
        finally:
            await running.close()
            await producer.stop()
            await audit.aclose()


def _add_webhook(app: faust.App, settings: Settings, state: WorkerState) -> None:
    relay = WebhookRelay(lambda: state.database, wiring.webhook(settings), wiring.holder_name(f"webhook-{state.role}"))
    state.snapshots["webhook"] = relay.snapshot

    @app.task
    async def notify() -> None:
        try:
            await relay.run()
        finally:
            await relay.close()


AddAgents = Callable[[faust.App, Settings, WorkerState], None]

WORKERS: dict[Role, AddAgents] = {
    Role.ROUTE: add_routing,
    Role.CURATE: add_curation,
    Role.TRAIN: add_training,
    Role.MONITOR: add_monitoring,
}

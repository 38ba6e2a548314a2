"""What the faults fall on: workers of all roles, both engines, the collector, and the servers they stand on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis
import sqlalchemy as sa
from fault_stream import Seen, Stream, Watch
from fault_traffic import Event, Traffic
from faults import Fleet, Worker
from pipelines import Pipeline
from systems import running, wait_until

from app.embedded.collector import CONFIG_PATH, CollectorServer, find_collector
from app.embedded.errors import ProgramMissing
from app.embedded.postgres import PostgresServer
from app.embedded.process import ManagedProcess
from app.embedded.system import System
from app.roles import Role
from app.store.tables import examples
from chaos import cycles, monitored
from chaos.at_start import Change
from chaos.brokers import Brokers
from chaos.checks import WITHIN_S
from chaos.clocks import Clocks
from chaos.collected import Collected
from chaos.disk import Disk, small_disk
from chaos.link import Link

ROUTERS = TRAINERS = 2
MODELS = 8
START_WITHIN_S = 180.0
"""A busy machine takes its time."""
COLLECTOR_CONFIG = "FLYWHEEL_TEST_COLLECTOR_CONFIG"
"""Names another configuration of the collector."""
EXAMPLES_OF = ("constitutional_violation", "model_optimization_trigger")
NO_MODEL: Change = (
    "policies.engine.decisions",
    "await anyio.to_thread.run_sync(PolicyEvaluator.load, self.constitution, self.config)",
    "__import__('types').SimpleNamespace(evaluate=lambda texts: [], report='no model')",
)
"""The policy engine's model takes up to minutes to load, and no text is judged here."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "pii": {"router": "off"},
    "curation": {"min_examples": 50, "settle_s": 2.0, "cooldown_s": 3600.0, "held_out_share": 0.0},
}


@dataclass(frozen=True)
class Topology:
    """Which servers a site stands on."""

    brokers: Literal[1, 3] = 1
    database: Literal["sqlite", "postgresql"] = "sqlite"


@dataclass(frozen=True)
class Reviewed(Traffic):
    """The fault tests' traffic, whose reviews name a target, or curation would make dead letters of them.

    One model after another has its turn, so that cycles open all along.
    """

    def event(self, telling: int) -> Event:
        """The event as this telling tells it."""
        event = super().event(telling)
        event["model_id"] = f"model-{self.numbers[telling] * MODELS // self.tellings}"
        return event | {"target_event_id": "elsewhere"} if event.get("source") == "human_review" else event

    @property
    def examples(self) -> set[str]:
        """The ids of events that must each have one example."""
        return {f"event-{number}" for number in set(self.numbers) if self.kinds[number] in EXAMPLES_OF}


@dataclass(frozen=True)
class Window:
    """What was in flight at a fault: offsets committed when it began, and log ends when all were back."""

    seen: Seen
    repeats: bool
    forgets: bool

    def holds(self, partition: int, offset: int) -> bool:
        """Whether a message had arrived and was not committed."""
        return self.seen.committed[partition] <= offset < self.seen.ends[partition]


@dataclass
class Links:
    """The networks between workers and servers; those to Kafka are the brokers' own. `sql` is None on SQLite."""

    redis: Link
    policy: Link
    audit: Link
    sql: Link | None

    def close(self) -> None:
        """End them."""
        for link in (self.redis, self.policy, self.audit, self.sql):
            if link is not None:
                link.close()


@dataclass
class Site:
    """A running system under a stream; `windows` are the faults so far."""

    system: System
    brokers: Brokers
    postgres: PostgresServer | None
    collector: CollectorServer | None
    links: Links
    disk: Disk
    clock: Clocks | None
    pipeline: Pipeline
    traffic: Reviewed
    fleet: Fleet
    trainers: list[Worker]
    watch: Watch
    stream: Stream
    reviewer: cycles.Reviewer
    monitored: monitored.Monitored
    collected: Collected | None
    windows: list[Window] = field(default_factory=list)

    def process(self, name: str) -> ManagedProcess:
        """A worker or an engine by its name."""
        return self.system.processes[name]

    def redis(self) -> redis.Redis:
        """A client of Redis that does not go through the link."""
        return redis.Redis.from_url(self.system.stack.redis.url, socket_timeout=5)

    def wait_back(self, within_s: float = WITHIN_S) -> tuple[float, str]:
        """Wait until every worker is seen at work again; how long that took, in seconds, and what took longest."""
        began = time.monotonic()
        took: dict[str, float] = {}
        since = began
        for what, wait in (
            ("routers", self._wait_routers),
            ("curation", self._wait_curation),
            ("cycles", lambda: self.reviewer.wait_settled(WITHIN_S)),
            ("monitoring", lambda: self.monitored.wait_progress(WITHIN_S)),
            ("collector", self.collected.wait_progress if self.collected else lambda: None),
        ):
            wait()
            took[what], since = round(time.monotonic() - since, 1), time.monotonic()
        self.system.check()
        assert self.stream.sent < self.stream.total, "the stream ended during the fault: nothing was tested"
        all_s = round(time.monotonic() - began, 1)
        assert all_s <= within_s, f"not at work within {within_s:.0f} s: {took}"
        return all_s, max(took, key=lambda what: took[what])

    def _wait_routers(self) -> None:
        self.fleet.wait_shared(ROUTERS)
        self.fleet.wait_progress()

    def _wait_curation(self) -> None:
        before = self.pipeline.count(sa.select(examples))
        wait_until(lambda: self.pipeline.count(sa.select(examples)) > before, "curation stores examples again")


@contextmanager
def opened(
    folder: Path, traffic: Reviewed, rounds: int, topology: Topology, environment: Mapping[str, str], *, clocks: bool
) -> Iterator[Site]:
    """A site with everything at work and the stream under way, which outlasts so many faults.

    `environment` is added to that of workers and engines. With `clocks` they go by one that can be set, where there is
    such. All of it ends with the block.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk"))
        brokers: list[Brokers] = []
        servers = stack.enter_context(ExitStack())  # ends after the workers, which would not stop in order without

        def make(run: Any) -> Brokers:
            brokers.append(Brokers(run, topology.brokers))
            servers.callback(brokers[0].close)
            return brokers[0]

        settings = {**_SETTINGS, **monitored.SETTINGS, **cycles.settings(folder)}
        settings["kafka"] = {"replication_factor": topology.brokers}
        system = stack.enter_context(running(folder, make, None, settings))
        clock = Clocks(folder / "clock") if clocks else None
        if clock is not None and clock.own:
            system.environment.update(clock.environment())
        system.environment.update(environment)
        _put_on(system, disk.folder)
        postgres = system.stack.add(PostgresServer(system.run)) if topology.database == "postgresql" else None
        if postgres is not None:
            system.change({"database": {"url": _durable(postgres)}})
        pipeline = Pipeline(system, folder)  # before the links: what looks on must not go through them
        stack.callback(pipeline.database.close)
        links = _linked(system, brokers[0])
        servers.callback(links.close)
        system.start_engines()
        collector = _collector(system)
        trainers = [Worker(system, f"trainer-{number + 1}", Role.TRAIN) for number in range(TRAINERS)]
        system.start_workers([Role.CURATE, Role.MONITOR])
        fleet = Fleet(system)
        fleet.start(ROUTERS)
        for trainer in trainers:
            trainer.wait_ready()
        watch = Watch(fleet.bootstrap)
        stack.callback(watch.close)
        stream = Stream(fleet.bootstrap, traffic.messages, rounds)
        reviewer = cycles.Reviewer(pipeline.database)
        seen = monitored.Monitored(system, pipeline.database)
        collected = None if collector is None else Collected(collector)
        stream.start()
        if collected:
            collected.start()
        yield Site(
            system, brokers[0], postgres, collector, links, disk, clock, pipeline,
            traffic, fleet, trainers, watch, stream, reviewer, seen, collected,
        )  # fmt: skip


def _put_on(system: System, folder: Path) -> None:
    """Keep on that disk all that workers and the audit engine write."""
    system.settings = system.settings.model_copy(update={"data_dir": folder})
    system.change(
        {
            "database": {"url": f"sqlite:///{folder}/flywheel.db"},
            "audit_engine": {"database_url": f"sqlite:///{folder}/audit.db"},
        }
    )


def _durable(postgres: PostgresServer) -> str:
    """The cluster's URL, once its sessions wait for what they commit: a kill would else lose the last of it."""
    engine = sa.create_engine(postgres.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("ALTER DATABASE postgres SET synchronous_commit = on"))
    engine.dispose()
    return postgres.url()


def _linked(system: System, brokers: Brokers) -> Links:
    """Put links before all that workers connect to."""
    settings = system.settings
    store, database = sa.make_url(system.stack.redis.url), sa.make_url(settings.database.url)
    assert store.port is not None
    policy, audit = Link(settings.policy_engine.port), Link(settings.audit_engine.port)
    links = Links(Link(store.port), policy, audit, None if database.port is None else Link(database.port))
    system.change(
        {
            "kafka": {"bootstrap_servers": brokers.linked},
            "redis": {"url": _through(store, links.redis)},
            "policy_engine": {"url": f"http://127.0.0.1:{links.policy.port}"},
            "audit_engine": {"url": f"http://127.0.0.1:{links.audit.port}"},
        }
    )
    if links.sql is not None:
        system.change({"database": {"url": _through(database, links.sql)}})
    return links


def _through(url: sa.URL, link: Link) -> str:
    return url.set(port=link.port).render_as_string(hide_password=False)


def _collector(system: System) -> CollectorServer | None:
    """A collector, where the machine has one."""
    try:
        program = find_collector()
    except ProgramMissing:
        return None
    brokers = system.settings.kafka.bootstrap_servers
    configs = (Path(system.environment.get(COLLECTOR_CONFIG, CONFIG_PATH)),)
    server = CollectorServer(system.run, brokers, "real", program, configs)
    server.ready_within_s = START_WITHIN_S
    return system.stack.add(server)

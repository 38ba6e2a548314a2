"""What the faults fall on: two routers, curation, the audit engine; and the checks of what came out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
import sqlalchemy as sa
from fault_stream import INPUT, Seen, Stream, Watch, read_all
from fault_traffic import DEAD_LETTERS, TOPICS, Event, Judge, Traffic
from faults import Fleet
from pipelines import CURATED, Pipeline
from systems import entries, lag, running, wait_until

from app.embedded.process import ManagedProcess
from app.embedded.system import System
from app.roles import Role
from app.store.tables import cycles, examples
from chaos.link import Link

ROUTERS = 2
BACK_WITHIN_S = 60.0
EXAMPLES_OF = ("constitutional_violation", "model_optimization_trigger")
_SETTINGS: dict[str, dict[str, Any]] = {
    "pii": {"router": "off"},
    "curation": {"min_examples": 50, "settle_s": 2.0, "cooldown_s": 3600.0},
}


@dataclass(frozen=True)
class Reviewed(Traffic):
    """The fault tests' traffic, whose reviews name a target, or curation would make dead letters of them."""

    def event(self, telling: int) -> Event:
        """The event as this telling tells it."""
        event = super().event(telling)
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
class Site:
    """A running system under a stream; `windows` are the faults so far."""

    system: System
    pipeline: Pipeline
    link: Link
    traffic: Reviewed
    fleet: Fleet
    watch: Watch
    stream: Stream
    windows: list[Window] = field(default_factory=list)

    @property
    def curator(self) -> ManagedProcess:
        """The curation worker."""
        return self.system.processes["worker-curate"]

    @property
    def audit_engine(self) -> ManagedProcess:
        """The audit engine."""
        return self.system.processes["audit-engine"]

    def redis(self) -> redis.Redis:
        """A client of Redis that does not go through the link."""
        return redis.Redis.from_url(self.system.stack.redis.url, socket_timeout=5)

    def wait_back(self) -> float:
        """Wait until every worker is seen at work again; how long that took, in seconds."""
        began = time.monotonic()
        self.fleet.wait_shared(ROUTERS)
        self.fleet.wait_progress()
        before = self.pipeline.count(sa.select(examples))
        wait_until(lambda: self.pipeline.count(sa.select(examples)) > before, "curation stores examples again")
        took = time.monotonic() - began
        assert self.stream.sent < self.stream.total, "the stream ended during the fault: nothing was tested"
        assert took <= BACK_WITHIN_S, f"the workers were back after {took:.0f} s"
        return took

    def finish(self) -> dict[str, int]:
        """Let the rest flow, and check every invariant; the figures of what came out more than once."""
        self.stream.finish()
        self.watch.wait_done()
        bootstrap = self.fleet.bootstrap
        wait_until(lambda: lag(bootstrap, "flywheel-curate", CURATED) == 0, "curation has taken everything")
        self._check_store()
        self.fleet.stop()
        self.watch.check()
        topics = read_all(bootstrap, [INPUT, *TOPICS.values(), DEAD_LETTERS])
        judge = Judge(self.traffic, topics[INPUT])
        outcome = judge.outcome(topics)
        for telling, times in outcome.redelivered.items():
            self._check_repeats(judge, telling, len(times))
        for telling in outcome.dead_again:
            self._check_repeats(judge, telling, 2)
        losses = [window for window in self.windows if window.forgets]
        for event_id, tellings in outcome.doubles.items():
            assert len(tellings) <= 1 + len(losses), f"{event_id}: {len(tellings)} tellings, {len(losses)} losses"
            places = [judge.place(telling) for telling in tellings]
            split = any(
                any(offset < window.seen.ends[number] for number, offset in places)
                and any(offset >= window.seen.committed[number] for number, offset in places)
                for window in losses
            )
            assert split, f"{event_id} was routed twice on one side of every loss of claims"
        return {
            "records": outcome.records,
            "redelivered": len(outcome.redelivered),
            "dead_again": len(outcome.dead_again),
            "doubles": len(outcome.doubles),
        }

    def _check_repeats(self, judge: Judge, telling: int, copies: int) -> None:
        place = judge.place(telling)
        allowed = sum(window.repeats and window.holds(*place) for window in self.windows)
        assert copies <= 1 + allowed, f"telling {telling} at {place} came {copies} times; {allowed} faults excuse it"

    def _check_store(self) -> None:
        found = Counter(event_id for event_id, _ in self.pipeline.stored())
        assert found == Counter(self.traffic.examples), f"examples differ: {found - Counter(self.traffic.examples)}"
        with self.pipeline.database.read() as connection:
            rows = connection.execute(sa.select(cycles.c.cycle_id, cycles.c.model_id)).all()
        models = Counter(row.model_id for row in rows)
        assert models, "no cycle opened: nothing was tested"
        assert max(models.values()) == 1, f"a model has two cycles: {models}"
        wait_until(lambda: not self.pipeline.unsent(), "audit entries and records are delivered", BACK_WITHIN_S)
        told = [entry["id"] for entry in entries(self.system, "cycle_transition")]
        assert Counter(told) == Counter(f"cycle-{row.cycle_id}-1" for row in rows), "entries of cycles differ"
        url = f"{self.system.settings.audit_engine.url}/api/v1/verify"
        verified = httpx.get(url, timeout=30.0, trust_env=False).json()
        assert verified["ok"], verified


@contextmanager
def opened(folder: Path, seed: int, tellings: int, rounds: int) -> Iterator[Site]:
    """A site with everything at work and the stream under way. All of it ends with the block."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with running(folder, "real", None, _SETTINGS) as system:
        url = sa.make_url(system.stack.redis.url)
        assert url.port is not None
        link = Link(url.port)
        system.change({"redis": {"url": url.set(port=link.port).render_as_string(hide_password=False)}})
        system.start_engines(["audit-engine"])
        system.start_workers([Role.CURATE])
        fleet = Fleet(system)
        fleet.start(ROUTERS)
        traffic = Reviewed(tellings, seed)
        watch = Watch(fleet.bootstrap)
        stream = Stream(fleet.bootstrap, traffic.messages, rounds)
        pipeline = Pipeline(system, folder)
        try:
            stream.start()
            yield Site(system, pipeline, link, traffic, fleet, watch, stream)
        finally:
            watch.close()
            pipeline.database.close()
            link.close()

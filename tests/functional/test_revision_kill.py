"""kill -9 at random moments of critique and revision: no example is lost, revised twice, or comes out otherwise."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from benches import MODEL, TINY, Bench, bench_of
from services import REPOSITORY, unavailable
from systems import running

from agents.curation import manifest as snapshots
from app.embedded.system import System
from app.store import cycles, examples, revisions
from app.store.tables import revisions as revisions_table
from models.cycle import CycleState

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("FLYWHEEL_TEST_REVISION_KILLS", "3"))
EXAMPLES = 24
# Slices of two batches, so that kills fall between finished examples too.
SMALL: dict[str, dict[str, Any]] = {"generation": TINY["generation"] | {"batch_size": 4}}


def prepared(bench: Bench) -> str:
    """A cycle with its snapshot, ready for revision."""
    opened = bench.open(answered=False, count=EXAMPLES)
    rules = snapshots.ManifestRules(bench.config.digest_key.encode(), 0.0, 0)
    with bench.database.write() as connection:
        waiting = examples.waiting(connection, opened.model_id, opened.domain)
        manifest = snapshots.build(opened.cycle_id, opened.domain, waiting, rules, lambda _: False, "d")
        digest = snapshots.manifest_digest(manifest)
        cycles.save_manifest(connection, manifest, digest)
        cycle = cycles.transition(connection, opened, CycleState.PREPARING)
        cycles.transition(connection, cycle, CycleState.REVISING, manifest_digest=digest)
    return opened.cycle_id


class Job:
    """One run of the revising job, as the worker starts it."""

    def __init__(self, bench: Bench, cycle_id: str, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agents.training.jobs.revise"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=REPOSITORY,
            )
        assert self.process.stdin is not None
        specification = {"config": bench.config.model_dump(mode="json"), "cycle_id": cycle_id}
        self.process.stdin.write(json.dumps(specification).encode() + b"\n")
        self.process.stdin.flush()

    def kill_after(self, seconds: float) -> bool:
        """Kill it so many seconds after it began to generate; whether it was still at work."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "generated" in json.loads(line).get("progress", {}):
                break
        time.sleep(seconds)
        at_work = self.process.poll() is None
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)
        return at_work

    def result(self) -> dict[str, Any]:
        """Let it run to its end; its result."""
        assert self.process.stdout is not None
        messages = [json.loads(line) for line in self.process.stdout]
        assert self.process.wait(60) == 0, messages[-1:]
        found: dict[str, Any] = messages[-1]["result"]
        return found


def finished(bench: Bench, cycle_id: str) -> dict[str, tuple[Any, ...]]:
    """Everything that revision wrote, by example, times included: a row that was written twice would differ."""
    with bench.database.read() as connection:
        rows = connection.execute(sa.select(revisions_table).where(revisions_table.c.cycle_id == cycle_id)).all()
    return {row.example_id: (row.rounds, row.origin, row.target, row.created_at) for row in rows}


@pytest.fixture
def system(tmp_path: Path) -> Any:
    from agents.training.ml.base_model import ModelUnavailableError, locate_model

    try:
        locate_model(MODEL, REPOSITORY / "var" / "cache" / "models")
    except ModelUnavailableError as missing:
        unavailable(str(missing), "make test")
    with running(tmp_path, "mock", None, TINY | SMALL) as system:
        system.start_engines()
        yield system


def test_killed_at_random_moments_it_goes_on(system: System, tmp_path: Path) -> None:
    rng = random.Random()
    seed = rng.randrange(2**32)
    rng.seed(seed)
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as bench:
        cycle_id = prepared(bench)
        before: dict[str, tuple[Any, ...]] = {}
        kills = 0
        while kills < KILLS and len(before) < EXAMPLES:
            job = Job(bench, cycle_id, tmp_path / "job.log")
            kills += job.kill_after(rng.uniform(0.0, 2.5))
            now = finished(bench, cycle_id)
            assert {name: now[name] for name in before} == before, f"a finished example was revised again (seed {seed})"
            before = now
        result = Job(bench, cycle_id, tmp_path / "job.log").result()
        after = finished(bench, cycle_id)
        assert {name: after[name] for name in before} == before
        assert len(after) == result["examples"] == EXAMPLES
        assert kills == KILLS
        # The same cycle without a kill, in a store of its own: the same answers, whatever shared their batches.
        straight = _straight(bench, cycle_id, tmp_path)
        assert {name: row[:3] for name, row in after.items()} == {name: row[:3] for name, row in straight.items()}


def _straight(bench: Bench, cycle_id: str, folder: Path) -> dict[str, tuple[Any, ...]]:
    """What an uninterrupted run of the same cycle writes."""
    with bench.database.write() as connection:
        connection.execute(sa.delete(revisions_table))
    Job(bench, cycle_id, folder / "straight.log").result()
    with bench.database.read() as connection:
        assert len(revisions.finished(connection, cycle_id)) == EXAMPLES
    return finished(bench, cycle_id)

"""Training is gated by a real OPA server that goes away before, during and after its decision."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import TINY, Bench, at_work, bench_of, slow, until
from services import unavailable
from systems import entries, running

from app.embedded.errors import ProgramMissing
from app.embedded.opa import OpaServer
from app.embedded.system import System
from app.settings import Settings
from app.store import leases, ledger
from app.wiring import policy_bundle
from models.cycle import CycleState
from policies.constitution import load_constitution
from policies.gate import write_bundle

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]
ANOTHER = "another worker"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A policy engine and an audit engine that the tests of this file share."""
    folder = tmp_path_factory.mktemp("gate")
    suite = folder / "suite.jsonl"
    suite.write_text(json.dumps({"prompt": "Why is the sky blue?", "expected": "comply"}) + "\n")
    evaluation = {"suites": (suite,), "max_new_tokens": 8, "public_prompts": 0}
    with running(folder, "mock", None, TINY | {"evaluation": evaluation}) as system:
        system.start_engines()
        yield system


@pytest.fixture
def bench(engines: System, tmp_path: Path) -> Iterator[Bench]:
    """An empty store; the engines' settings are put back after."""
    settings = engines.settings
    with bench_of(engines, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as made:
        yield made
    engines.settings = settings


class Gatekeeper:
    """An OPA server over the policies of some settings, and the settings that ask it."""

    def __init__(self, engines: System, settings: Settings, folder: Path) -> None:
        write_bundle(policy_bundle(settings, load_constitution(settings.constitution.path)), folder / "bundle")
        self.server = OpaServer(engines.run, folder / "bundle")
        try:
            self.server.start()
        except ProgramMissing as missing:
            unavailable(missing.what, missing.command)
        gate = settings.gate.model_copy(update={"opa_url": self.server.url, "timeout_s": 1.0})
        self.settings = settings.model_copy(update={"gate": gate})

    @property
    def pid(self) -> int:
        process = self.server.process
        assert process is not None
        assert process.pid is not None
        return process.pid

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)


def decisions(engines: System, cycle_id: str) -> list[tuple[str, bool]]:
    """Engine and outcome of every gate decision that the audit log holds of a cycle."""
    told = [
        entry["body"]["context"]["decision"]
        for entry in entries(engines, "gate_decision")
        if entry["cycle_id"] == cycle_id
    ]
    return [(decision["engine"], decision["allow"]) for decision in told]


async def stays(bench: Bench, cycle_id: str, state: CycleState, caplog: pytest.LogCaptureFixture) -> None:
    """The gate is asked at least twice more without an answer, and the cycle is where it was, its budget unspent."""
    before = caplog.text.count(UNAVAILABLE)
    await until(lambda: caplog.text.count(UNAVAILABLE) >= before + 2, "the gate is asked again and again")
    assert bench.cycle(cycle_id).state is state
    assert bench.reserved(cycle_id) == 0


UNAVAILABLE = "gate: model_fine_tuning unavailable"


async def test_opa_away_before_and_during_its_decision(
    engines: System, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not running, running without policies, dying with the question in hand: the cycle waits, nothing is spent."""
    caplog.set_level("INFO")
    keeper = Gatekeeper(engines, bench.settings, tmp_path)
    await keeper.kill()
    policies = {path: path.read_bytes() for path in (tmp_path / "bundle").rglob("*.rego")}
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(keeper.settings, bench.database):
        await stays(bench, cycle_id, CycleState.REVISING, caplog)
        for path in policies:
            path.unlink()
        await keeper.start()
        await stays(bench, cycle_id, CycleState.REVISING, caplog)
        # Stopped, it takes connections and never answers: the question is on its way when it dies.
        os.kill(keeper.pid, signal.SIGSTOP)
        for path, content in policies.items():
            path.write_bytes(content)
        await stays(bench, cycle_id, CycleState.REVISING, caplog)
        await keeper.kill()
        await stays(bench, cycle_id, CycleState.REVISING, caplog)
        assert decisions(engines, cycle_id) == [], "what is no verdict is not told as one"
        await keeper.start()
        await until(lambda: bench.reserved(cycle_id) > 0, "training has begun")
    keeper.server.stop()
    assert decisions(engines, cycle_id)[:2] == [("opa", True), ("opa", True)]


async def test_opa_away_after_its_decision(
    engines: System, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was decided once is asked again before each step that follows from it: a reviewer's word, the first step."""
    caplog.set_level("INFO")
    keeper = Gatekeeper(engines, slow(bench), tmp_path)
    with bench.database.write() as connection:
        held = leases.acquire(connection, ledger.domain_lease("default"), ANOTHER, 600.0)
    assert held is not None
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(keeper.settings, bench.database):
        await until(lambda: bench.cycle(cycle_id).state is CycleState.AWAITING_APPROVAL, "a human is asked")
        await keeper.kill()
        bench.decide(cycle_id, "reviewer", approved=True)
        await stays(bench, cycle_id, CycleState.AWAITING_APPROVAL, caplog)
        await keeper.start()
        # The domain belongs to another worker: the cycle is approved and cannot begin.
        await until(lambda: bench.cycle(cycle_id).state is CycleState.APPROVED, "the approval has taken effect")
        await keeper.kill()
        with bench.database.write() as connection:
            leases.release(connection, held)
        await stays(bench, cycle_id, CycleState.APPROVED, caplog)
        await keeper.start()
        await until(lambda: bench.reserved(cycle_id) > 0, "training has begun")
    keeper.server.stop()
    assert decisions(engines, cycle_id)[:3] == [("opa", False), ("opa", True), ("opa", True)]

"""The jobs of a cancelled cycle end, and what a cycle was approved for is what it trains on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from benches import TINY, Bench, at_work, bench_of, children, slow, until
from systems import cli, running

from agents.curation.manifest import manifest_digest
from app.embedded.system import System
from app.store import cycles, forgetting
from models.cycle import TERMINAL_STATES, CycleState

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("cancel")
    suite = folder / "suite.jsonl"
    lines = [json.dumps({"prompt": f"Why is the sky blue, in {n} words?", "expected": "comply"}) for n in range(64)]
    suite.write_text("\n".join(lines))
    with running(folder, "mock", None, TINY | {"evaluation": {"suites": (suite,), "max_new_tokens": 64}}) as system:
        system.start_engines()
        yield system


@pytest.fixture
def bench(engines: System, tmp_path: Path) -> Iterator[Bench]:
    settings = engines.settings
    with bench_of(engines, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as made:
        yield made
    engines.settings = settings


async def test_the_jobs_of_a_cancelled_cycle_end(engines: System, bench: Bench) -> None:
    """Revision and evaluation; of training see `test_cycle_runner.py`."""
    revised = bench.open(answered=False, count=64).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.stage(revised) == "revise", "answers are being revised")
        await _cancelled(engines, bench, revised)
    bench.model_id = "another"
    evaluated = bench.open(answered=True, number_from=100).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.stage(evaluated) == "evaluate", "the adapter is being evaluated")
        await _cancelled(engines, bench, evaluated)
    assert bench.states(evaluated)[-2:] == ["evaluating", "cancelled"]
    assert bench.reserved(evaluated) > 0, "what was spent stays spent"


async def _cancelled(engines: System, bench: Bench, cycle_id: str) -> None:
    assert children(os.getpid())
    done = await asyncio.to_thread(cli, engines, "cycles", "cancel", cycle_id, "--by", "operator")
    assert done.returncode == 0, done.stderr
    await until(lambda: not children(os.getpid()), "its job has ended")
    assert bench.cycle(cycle_id).state is CycleState.CANCELLED


async def _waiting_for_a_person(bench: Bench, number_from: int = 0) -> str:
    """A cycle in the slow lane, everything standing still."""
    cycle_id = bench.open(answered=True, number_from=number_from).cycle_id
    async with at_work(slow(bench), bench.database):
        await until(lambda: bench.cycle(cycle_id).state is CycleState.AWAITING_APPROVAL, "a human is asked")
    bench.decide(cycle_id, "reviewer", approved=True)
    return cycle_id


async def _refused(bench: Bench, cycle_id: str) -> set[str]:
    async with at_work(slow(bench), bench.database):
        await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle is decided")
    cycle = bench.cycle(cycle_id)
    assert cycle.state is CycleState.REJECTED
    assert bench.reserved(cycle_id) == 0
    return {reason["code"] for reason in cycle.reasons}


async def test_an_approval_does_not_hold_for_another_plan(bench: Bench) -> None:
    """A person is forgotten after the approval: fewer examples, another plan, and nobody has approved that."""
    cycle_id = await _waiting_for_a_person(bench)
    with bench.database.write() as connection:
        forgotten = forgetting.forget(
            connection, forgetting.of_subject(connection, "subject-1"), requested_by="operator", reason="asked"
        )
    assert forgotten.open_cycles == (cycle_id,)
    assert await _refused(bench, cycle_id) == {"approval_current"}


async def test_an_approval_does_not_hold_for_another_manifest(bench: Bench) -> None:
    """Somebody who can write to the database takes an example out of the manifest, with and without its digest."""
    for also_digest in (False, True):
        cycle_id = await _waiting_for_a_person(bench, 100 * also_digest)
        with bench.database.write() as connection:
            manifest = cycles.get_manifest(connection, cycle_id)
            changed = manifest.model_copy(update={"members": manifest.members[1:]})
            document = {"document": json.dumps(changed.model_dump(mode="json")), "id": cycle_id}
            connection.execute(sa.text("UPDATE manifests SET document = :document WHERE cycle_id = :id"), document)
            if also_digest:
                told = {"digest": manifest_digest(changed), "id": cycle_id}
                connection.execute(sa.text("UPDATE cycles SET manifest_digest = :digest WHERE cycle_id = :id"), told)
        expected = {"approval_current"} if also_digest else {"ManifestChanged"}
        assert await _refused(bench, cycle_id) == expected
        bench.model_id = "another"

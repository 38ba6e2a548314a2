"""kill -9 at random moments of private training: it goes on, and the ledger never holds less than what ran."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from benches import TINY, WITHIN_S, Bench, at_work, bench_of, children, need_model, until
from systems import running

from app.embedded.system import System
from app.store import ledger, registry
from models.cycle import TERMINAL_STATES, CycleState

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("FLYWHEEL_TEST_TRAINING_KILLS", "3"))
STEP_S = 1.5
LOADING_S = 6.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The engines, and a suite of one prompt: what is tested here ends before the evaluation."""
    need_model()
    folder = tmp_path_factory.mktemp("kills")
    suite = folder / "suite.jsonl"
    suite.write_text('{"prompt": "Why is the sky blue?", "expected": "comply"}\n')
    with running(folder, "mock", None, TINY | {"evaluation": {"suites": (suite,), "max_new_tokens": 8}}) as system:
        system.start_engines()
        yield system


def trained(bench: Bench, cycle_id: str) -> int:
    """Steps that the newest checkpoint holds."""
    found = (bench.config.directory(cycle_id) / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def with_training(bench: Bench, system: System, **changes: Any) -> None:
    tuning = bench.settings.training.model_copy(update=changes)
    bench.settings = system.settings = bench.settings.model_copy(update={"training": tuning})


def check_ledger(bench: Bench, cycle_id: str, kills: int) -> None:
    """Every step was paid for, a kill cost at most one more, and all of it ends within the target."""
    from agents.training.ml.accounting import Phase, epsilon_of

    cycle = bench.cycle(cycle_id)
    assert cycle.plan is not None
    with bench.database.read() as connection:
        phases = ledger.phases(connection, "default")
        version = registry.version_of_cycle(connection, cycle_id)
        fences = connection.execute(sa.text("SELECT DISTINCT fence FROM privacy_ledger")).all()
    assert version is not None
    steps = sum(phase[2] for phase in phases)
    assert trained(bench, cycle_id) <= steps
    assert cycle.plan.steps <= steps <= cycle.plan.steps + kills
    epsilon = epsilon_of([Phase(*phase) for phase in phases], cycle.plan.delta)
    assert 0.9 * cycle.plan.epsilon_target < epsilon <= cycle.plan.epsilon_target
    assert version.statement["epsilon"] == pytest.approx(epsilon)
    assert version.statement["steps"] == steps
    # Steps lost to kills are paid for by more noise in the later ones, never by less.
    noises = [phase[0] for phase in phases]
    assert noises == sorted(noises)
    assert len(fences) >= 1


async def test_training_killed_at_random_moments_goes_on_within_its_budget(system: System, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as bench:
        # Each kill leaves at least one more step behind it.
        with_training(bench, system, epochs=max(4, KILLS // 2 + 4))
        cycle_id = bench.open(answered=True).cycle_id
        async with at_work(bench.settings, bench.database):
            while_loading = True
            for number in range(KILLS):
                begun = trained(bench, cycle_id)
                await until(lambda: children(os.getpid()), "a job is at work")
                # Not twice in a row: three deaths at one place end a cycle, and rightly so.
                while_loading = KILLS > 5 and not while_loading and rng.random() < 0.2
                if not while_loading:
                    await until(lambda begun=begun: trained(bench, cycle_id) > begun, f"it goes on (seed {seed})")
                await asyncio.sleep(rng.uniform(0.0, LOADING_S if while_loading else STEP_S))
                jobs = children(os.getpid())
                assert bench.cycle(cycle_id).state is CycleState.TRAINING, f"over after {number} kills (seed {seed})"
                assert len(jobs) == 1
                os.kill(jobs[0], signal.SIGKILL)
                await until(lambda jobs=jobs: jobs[0] not in children(os.getpid()), "it is dead")
                assert bench.reserved(cycle_id) >= trained(bench, cycle_id), f"a step ran unpaid for (seed {seed})"
            # Each kill leaves noise of another kind in the ledger, and accounting for twenty kinds takes a minute.
            over = f"the cycle ends (seed {seed})"
            await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, over, WITHIN_S + 15.0 * KILLS)
        cycle = bench.cycle(cycle_id)
        assert "evaluating" in bench.states(cycle_id), (cycle.reasons, seed)
        check_ledger(bench, cycle_id, KILLS)


async def test_two_processes_train_as_one_and_outlive_the_death_of_either(system: System, tmp_path: Path) -> None:
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as bench:
        with_training(bench, system, processes=2, epochs=4)
        cycle_id = bench.open(answered=True).cycle_id
        async with at_work(bench.settings, bench.database):
            await until(lambda: trained(bench, cycle_id) > 0, "training has begun")
            (launcher,) = children(os.getpid())
            ranks = children(launcher)
            assert len(ranks) == 2
            # Whichever it is, the other one cannot go on alone.
            os.kill(random.choice(ranks), signal.SIGKILL)
            await until(lambda: not set(ranks) & set(children(launcher)), "both have ended")
            await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle ends")
        cycle = bench.cycle(cycle_id)
        assert "evaluating" in bench.states(cycle_id), cycle.reasons
        assert cycle.facts["training"]["processes"] == 2
        check_ledger(bench, cycle_id, 1)

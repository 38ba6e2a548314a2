"""The privacy statement against what the code did: every draw and every noise of a training job, watched as it ran."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import TINY, Bench, at_work, bench_of, need_model, until
from systems import running

from app.embedded.system import System
from app.store import cycles, registry
from models.cycle import TERMINAL_STATES

pytest.importorskip("torch")
pytest.importorskip("opacus")

from agents.training import context as stage_context
from agents.training.child import SilentChannel, run_job
from agents.training.jobs import train
from agents.training.ml import dp
from agents.training.ml.accounting import Phase, privacy_spent
from agents.training.ml.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    need_model()
    folder = tmp_path_factory.mktemp("statement")
    suite = folder / "suite.jsonl"
    suite.write_text('{"prompt": "Why is the sky blue?", "expected": "comply"}\n')
    with running(folder, "mock", None, TINY | {"evaluation": {"suites": (suite,), "max_new_tokens": 8}}) as system:
        system.start_engines()
        yield system


class Witness:
    """Sees each Poisson draw, each noise and each micro-batch of a job that runs in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws: list[tuple[int, float]] = []
        self.noises: list[tuple[float, float, float]] = []
        self.largest = 0.0
        draw, add_noise, backward = dp.poisson_draw, dp.SecureDPOptimizer._add_noise, dp.PrivateTrainer._backward

        def watched_draw(stream: Any, population: int, sample_rate: float) -> list[int]:
            self.draws.append((population, sample_rate))
            return draw(stream, population, sample_rate)

        def watched_noise(optimizer: dp.SecureDPOptimizer) -> None:
            before = [parameter.summed_grad.clone() for parameter in optimizer.params]
            add_noise(optimizer)
            added = [(p.grad - old).flatten() for p, old in zip(optimizer.params, before, strict=True)]
            deviation = float(dp.torch.cat(added).double().std())
            self.noises.append((deviation, optimizer.max_grad_norm, optimizer.expected_batch_size))

        def watched_backward(trainer: dp.PrivateTrainer, part: list[int]) -> float:
            loss = backward(trainer, part)
            self.largest = max(self.largest, trainer._largest_clipped())
            return loss

        monkeypatch.setattr(dp, "poisson_draw", watched_draw)
        monkeypatch.setattr(dp.SecureDPOptimizer, "_add_noise", watched_noise)
        monkeypatch.setattr(dp.PrivateTrainer, "_backward", watched_backward)

        async def here(module: str, specification: dict[str, Any], *others: Any, **options: Any) -> dict[str, Any]:
            if module.endswith(".train"):
                return await asyncio.to_thread(train.main, specification, SilentChannel())
            return await run_job(module, specification, *others, **options)

        monkeypatch.setattr(stage_context, "run_job", here)


async def test_the_statement_says_what_the_job_did(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness(monkeypatch)
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as bench:
        tuning = bench.settings.training.model_copy(update={"epochs": 3})
        bench.settings = system.settings = bench.settings.model_copy(update={"training": tuning})
        cycle_id = bench.open(answered=True, count=10).cycle_id
        async with at_work(bench.settings, bench.database):
            await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle ends")
        statement = _statement(bench, cycle_id)
        with bench.database.read() as connection:
            members = cycles.get_manifest(connection, cycle_id).members
    assert statement["steps"] == len(witness.draws) == len(witness.noises) > 5
    assert {population for population, _ in witness.draws} == {statement["n_units"] + statement["n_public"]}
    assert {rate for _, rate in witness.draws} == {statement["sample_rate"]}
    assert statement["sampling"] == "Poisson"
    # A person has one example, and whoever is unknown is a unit of its own.
    assert statement["n_units"] == len({member.unit for member in members}) == len(members) == 10
    assert statement["unit"].startswith("subject, with one example each")
    for deviation, bound, expected_batch in witness.noises:
        # Measured on some hundred thousand weights.
        assert deviation == pytest.approx(statement["noise_multiplier"] * statement["max_grad_norm"], rel=0.01)
        assert bound == statement["max_grad_norm"] == 1.0
        assert expected_batch == pytest.approx(statement["sample_rate"] * sum(_population(statement)))
    assert 0 < witness.largest <= statement["max_grad_norm"]
    ran = [Phase(statement["noise_multiplier"], rate, 1) for _, rate in witness.draws]
    spent = privacy_spent(ran, statement["delta"])
    assert statement["epsilon"] == pytest.approx(spent.epsilon)
    assert statement["accountant"] == spent.mechanism.upper() == "PRV"
    assert statement["epsilon"] <= statement["budget"]
    assert not statement["non_private"]


async def test_steps_under_a_fixed_seed_are_told_although_the_seed_is_gone(system: System, tmp_path: Path) -> None:
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as bench:
        tuning = bench.settings.training.model_copy(update={"epochs": 3})
        settings = bench.settings.model_copy(update={"training": tuning})
        seeded = settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"fixed_seed": 7})})
        # The gate lets no cycle begin under a seed, so it is set once the cycle trains.
        cycle_id = bench.open(answered=True, count=10).cycle_id
        checkpoints = bench.config.directory(cycle_id) / "checkpoints"
        done = 0
        for during in (settings, seeded):
            async with at_work(during, bench.database):
                await until(lambda done=done: _steps(checkpoints) > done, "a step is done")
            done = _steps(checkpoints)
        async with at_work(settings, bench.database):
            await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle ends")
        statement = _statement(bench, cycle_id)
    assert statement["steps"] > done
    assert statement["non_private"]


def _steps(checkpoints: Path) -> int:
    last = latest_checkpoint(checkpoints)
    return 0 if last is None else int(last.name.removeprefix("step-"))


def _population(statement: dict[str, Any]) -> tuple[int, int]:
    return statement["n_units"], statement["n_public"]


def _statement(bench: Bench, cycle_id: str) -> dict[str, Any]:
    with bench.database.read() as connection:
        version = registry.version_of_cycle(connection, cycle_id)
    assert version is not None, bench.cycle(cycle_id).reasons
    found: dict[str, Any] = version.statement
    return found

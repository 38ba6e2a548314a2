"""`flywheel privacy` as an operator types it: what is spent, what the next cycle would cost, a new cohort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_parts import example
from ledger_parts import spend as reserve
from typer.testing import CliRunner

from app.cli.main import cli
from app.store import Database, cycles, examples, ledger
from models.cycle import CycleState, TriggerType

pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", url)
    monkeypatch.setenv("FLYWHEEL_DATA_DIR", str(tmp_path))
    made = Database(url)
    made.migrate()
    return made


def run(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["privacy", *arguments])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if status == 0 else result.stderr


def spend(database: Database, model: str, noise: float, steps: int = 10) -> None:
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id=model, domain="default", trigger_type=TriggerType.MANUAL, requested_by="r", facts={}
        )
        assert cycle is not None
        reserve(connection, cycle, noise_multiplier=noise, sample_rate=0.3, steps=steps)
        cycles.transition(connection, cycle, CycleState.CANCELLED)


def test_an_untouched_domain_has_its_whole_budget(database: Database) -> None:
    shown = run("show", "--json")
    assert (shown["epsilon"], shown["remaining_budget"], shown["delta"]) == (0.0, 8.0, 1e-5)
    assert (shown["cohort"], shown["cycles_left"], shown["warning"]) == (0, 3, None)


def test_what_is_spent_is_warned_of(database: Database) -> None:
    spend(database, "m", 1.6)
    low = run("show", "--json")
    assert 0 < low["epsilon"] < 6.4
    assert low["warning"] is None
    from agents.training.ml.accounting import Phase, solve_noise_multiplier

    spend(database, "n", solve_noise_multiplier([Phase(1.6, 0.3, 10)], 0.3, 10, 7.0, 1e-5))
    high = run("show", "--json")
    assert low["epsilon"] < high["epsilon"] < 8
    assert high["remaining_budget"] == pytest.approx(8 - high["epsilon"])
    assert "more than 80%" in high["warning"]


def test_the_plan_is_what_the_next_cycle_would_do(database: Database) -> None:
    assert "--examples N" in run("plan", "m", status=1)
    first = run("plan", "m", "--examples", "200", "--json")
    assert first["epsilon_target"] == 4.0
    assert 3.9 < first["epsilon_after"] <= 4.0
    spend(database, "m", first["noise_multiplier"])
    with database.write() as connection:
        people = [example(number, subject_token=f"sub_{number % 2}") for number in range(4)]
        examples.insert(connection, [*people, example(5)])
    second = run("plan", "m", "--json")
    assert (second["waiting_units"], second["examples"], second["epsilon_target"]) == (3, 3, 6.0)
    assert second["epsilon_before"] > 0
    assert second["epsilon_after"] <= 6.0
    with database.read() as connection:
        assert len(ledger.phases(connection, "default")) == 1, "planning spends nothing"


def test_a_used_up_budget_needs_a_new_cohort(database: Database) -> None:
    assert "has spent nothing" in run("cohort", "--domain", "default", "--by", "ann", "--comment", "early", status=1)
    for model in ("a", "b", "c"):
        spend(database, model, 3.0)
    assert "flywheel privacy cohort" in run("plan", "m", "--examples", "200", status=1)
    opened = run("cohort", "--domain", "default", "--by", "ann", "--comment", "three cycles are done", "--json")
    assert opened == {"domain": "default", "cohort": 1, "subjects_kept_out": 0}
    assert run("plan", "m", "--examples", "200", "--json")["epsilon_target"] == 4.0
    shown = run("show", "--json")
    assert (shown["cohort"], shown["epsilon"], shown["cohorts_opened"][0]["opened_by"]) == (1, 0.0, "ann")

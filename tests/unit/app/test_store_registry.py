"""The registry: one champion a model, a chain of deployments, and rollbacks that never go to what was rolled back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from registry_parts import GOOD, trained
from sqlalchemy.engine import Connection

from app.store import Database, adherence, outbox, registry
from app.store.adherence import Observation
from app.store.registry import Authority, Kind, StaleDeployment, Target
from app.store.tables import deployments
from models.cycle import CycleState

ANN = Authority("ann", "because", "decision-1")


def promoted(connection: Connection, folder: Path) -> str:
    return trained(connection, folder, state=CycleState.PROMOTED)


def back(connection: Connection, reason: str = "it was bad") -> Target:
    now, target = registry.current(connection, "m"), registry.rollback_target(connection, "m")
    assert now is not None
    assert target is not None
    registry.roll_back(connection, "m", target, reason, ANN, kind=Kind.ROLLBACK, expected=now.seq)
    return target


def champion(connection: Connection) -> str | None:
    found = registry.champion(connection, "m")
    return None if found is None else str(found.version_id)


def statuses(connection: Connection) -> dict[str, str]:
    return {row["version_id"]: row["status"] for row in registry.list_versions(connection)}


def told(connection: Connection) -> list[dict[str, Any]]:
    return [item.payload for item in outbox.pending(connection, 1000) if item.destination == "deployment"]


def test_a_rollback_returns_to_the_champion_before_and_in_the_end_to_the_base(
    database: Database, tmp_path: Path
) -> None:
    with database.write() as connection:
        assert registry.rollback_target(connection, "m") is None
        first, second, third = (promoted(connection, tmp_path) for _ in range(3))
        assert back(connection) == Target(second, second)
        assert champion(connection) == second
        assert statuses(connection) == {first: "former", second: "champion", third: "rolled_back"}
        fourth = promoted(connection, tmp_path)
        assert back(connection) == Target(second, second)
        assert back(connection) == Target(first, first)
        assert back(connection) == Target(None, "base:small")
        assert champion(connection) is None
        assert registry.rollback_target(connection, "m") is None
        assert set(statuses(connection).values()) == {"rolled_back"}
        assert fourth in statuses(connection)


def test_what_was_rolled_back_is_a_target_again_only_once_it_was_promoted_anew(
    database: Database, tmp_path: Path
) -> None:
    with database.write() as connection:
        first, second = promoted(connection, tmp_path), promoted(connection, tmp_path)
        back(connection)
        third = promoted(connection, tmp_path)
        assert registry.rollback_target(connection, "m") == Target(first, first)
        registry.deploy(connection, "m", second, "once more", ANN)
        marked = registry.get(connection, second)
        assert marked is not None
        assert marked.rolled_back_at is None
        assert registry.rollback_target(connection, "m") == Target(third, third)
        fourth = promoted(connection, tmp_path)
        assert back(connection) == Target(second, second)
        assert statuses(connection) == {
            first: "former",
            second: "champion",
            third: "former",
            fourth: "rolled_back",
        }


def test_deployments_say_who_why_and_by_which_decision(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        first, second = promoted(connection, tmp_path), promoted(connection, tmp_path)
        back(connection, "too many refusals")
        newest, middle, oldest = registry.history(connection, "m")
        entries = told(connection)
        marked = registry.get(connection, second)
    assert (newest["version_id"], newest["kind"], newest["deployed_by"]) == (first, "rollback", "ann")
    assert (newest["comment"], newest["decision_id"], newest["previous"]) == ("because", "decision-1", middle["seq"])
    assert (middle["previous"], oldest["previous"], oldest["kind"]) == (oldest["seq"], 0, "promotion")
    assert marked is not None
    assert marked.rolled_back_reason == "too many refusals"
    assert [entry["version_id"] for entry in entries] == [first, second, first]
    assert entries[-1]["context"] == {
        "reason": "too many refusals",
        "kind": "rollback",
        "deployed_by": "ann",
        "decision_id": "decision-1",
        "rolled_back": second,
        "returned_to": first,
        "why": "because",
    }
    assert len({entry["entry_id"] for entry in entries}) == 3


def test_a_deployment_replaces_just_the_one_that_was_looked_at(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        first, second = promoted(connection, tmp_path), promoted(connection, tmp_path)
        now = registry.current(connection, "m")
        assert now is not None
    with database.write() as connection, pytest.raises(StaleDeployment, match="look again"):
        registry.deploy(connection, "m", first, "late", expected=int(now.previous))
    with database.write() as connection, pytest.raises(StaleDeployment, match="look again"):
        registry.roll_back(
            connection, "m", Target(first, first), "late", ANN, kind=Kind.WATCH, expected=int(now.previous)
        )
    with database.read() as connection:
        assert champion(connection) == second
        marked = registry.get(connection, first)
        assert marked is not None
        assert marked.rolled_back_at is None


def test_of_many_who_roll_back_at_once_one_does(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        first, second = promoted(connection, tmp_path), promoted(connection, tmp_path)
        now = registry.current(connection, "m")
    assert now is not None
    workers = 4
    start = threading.Barrier(workers)

    def roll_back(_: int) -> bool:
        start.wait(10)
        try:
            with database.write() as connection:
                registry.roll_back(
                    connection, "m", Target(first, first), "bad", ANN, kind=Kind.WATCH, expected=int(now.seq)
                )
        except StaleDeployment:
            return False
        return True

    with ThreadPoolExecutor(workers) as pool:
        assert sum(pool.map(roll_back, range(workers), timeout=60)) == 1
    with database.read() as connection:
        assert champion(connection) == first
        assert connection.execute(sa.select(sa.func.count()).select_from(deployments)).scalar_one() == 3
        assert len(told(connection)) == 3
        assert statuses(connection)[second] == "rolled_back"


def test_a_candidate_is_what_has_yet_to_be_decided_on(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        rejected = trained(connection, tmp_path, state=CycleState.REJECTED)
        assert registry.candidate(connection, "m") is None
        waiting = trained(connection, tmp_path, state=CycleState.EVALUATING, evaluation=None)
        other = trained(connection, tmp_path, model="n", state=CycleState.EVALUATING)
        found = registry.candidate(connection, "m")
        assert found is not None
        assert found.version_id == waiting
        rows = {row["version_id"]: row for row in registry.list_versions(connection)}
        assert {name: row["status"] for name, row in rows.items()} == {
            rejected: "rejected",
            waiting: "candidate",
            other: "candidate",
        }
        assert {name: bool(row["evaluated"]) for name, row in rows.items()} == {
            rejected: True,
            waiting: False,
            other: True,
        }
        assert [row["version_id"] for row in registry.list_versions(connection, "n")] == [other]


def test_drift_is_measured_anew_under_another_champion(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        promoted(connection, tmp_path)
        adherence.observe(connection, [Observation("t", 0, 0, "m", "d", False, 1.0)], 10.0)
        adherence.observe(connection, [Observation("t", 0, 1, "n", "d", False, 1.0)], 10.0)
        promoted(connection, tmp_path)
        assert list(adherence.read(connection)) == [("n", "d")]


def test_where_the_base_served_in_between_a_rollback_goes_to_the_base(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        promoted(connection, tmp_path)
        registry.deploy(connection, "m", None, "by hand", ANN)
        promoted(connection, tmp_path)
        assert registry.rollback_target(connection, "m") == Target(None, "base:small")


def test_what_is_not_in_the_registry_is_not_deployed(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        version = promoted(connection, tmp_path)
    with database.write() as connection, pytest.raises(sa.exc.IntegrityError):
        registry.deploy(connection, "m", "nothing", "a slip")
    with database.read() as connection:
        assert champion(connection) == version


def test_figures_that_were_set_are_those_that_are_shown(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        version = registry.get(connection, trained(connection, tmp_path))
        assert registry.get(connection, "nothing") is None
    assert version is not None
    assert version.evaluation["adherence"] == GOOD["adherence"]

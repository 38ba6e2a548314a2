"""What counts for a champion: its own evaluations, each once, of answers given since it was deployed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from registry_parts import trained

from app.store import Database, adherence, registry, watch
from app.store.adherence import Observation
from app.store.database import utc_now
from app.store.registry import Authority, Kind
from models.cycle import CycleState

BEFORE, AFTER = "2020-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"
HALF_LIFE = 20.0


@pytest.fixture
def version_id(database: Database, tmp_path: Path) -> str:
    """The champion of `m`."""
    with database.write() as connection:
        return trained(connection, tmp_path, state=CycleState.PROMOTED)


def seen(offset: int, adherent: bool = True, **changes: object) -> Observation:
    one = Observation("t", 0, offset, "m", "d", adherent, 1.0, arrived_at=AFTER)
    return replace(one, **changes)  # type: ignore[arg-type]


def take(database: Database, *observations: Observation) -> int:
    with database.write() as connection:
        return watch.take(connection, adherence.advance(connection, observations), HALF_LIFE)


def champion(database: Database) -> watch.Watched:
    with database.read() as connection:
        (found,) = watch.champions(connection)
    return found


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"model_version": "the champion"}, True),
        ({"model_version": "another"}, False),
        ({"model_version": "the champion", "arrived_at": BEFORE}, False),
        ({"model_version": "the champion", "told_at": BEFORE}, True),  # it says itself whose answer it is
        ({"arrived_at": BEFORE}, False),
        ({"arrived_at": ""}, False),
        ({"told_at": AFTER}, True),
        ({"told_at": BEFORE}, False),  # history that is routed anew
        ({"model_id": "n"}, False),
    ],
)
def test_what_counts(database: Database, version_id: str, changes: dict[str, str], counts: bool) -> None:
    if changes.get("model_version") == "the champion":
        changes = changes | {"model_version": version_id}
    assert take(database, seen(0, **changes)) == int(counts)


def test_each_position_counts_once_and_the_mean_is_that_of_adherence(database: Database, version_id: str) -> None:
    told = [seen(n, n % 3 > 0, stands_for=1.0 if n % 3 == 0 else 5.0) for n in range(30)]
    assert take(database, *told[:20]) == 20
    assert take(database, *told[10:]) == 10
    assert take(database, *told) == 0
    found = champion(database)
    adherent, weight = adherence.fade_in(0.0, 0.0, told, HALF_LIFE)
    assert (found.version_id, found.evaluations) == (version_id, 30)
    assert (found.mean, found.weight) == (pytest.approx(adherent / weight), pytest.approx(weight))
    assert 0.8 < found.mean < 0.95  # two of three, but each standing for five


def test_nothing_is_watched_without_a_champion_and_a_new_one_begins_anew(
    database: Database, tmp_path: Path, version_id: str
) -> None:
    take(database, seen(0, False))
    with database.write() as connection:
        second = trained(connection, tmp_path, state=CycleState.PROMOTED)
        assert watch.champions(connection) == []
    take(database, seen(1), seen(2))
    assert (champion(database).version_id, champion(database).mean) == (second, 1.0)
    with database.write() as connection:
        for _ in range(2):
            now, target = registry.current(connection, "m"), registry.rollback_target(connection, "m")
            assert now is not None
            assert target is not None
            registry.roll_back(connection, "m", target, "bad", Authority("a"), kind=Kind.WATCH, expected=now.seq)
    assert take(database, seen(3)) == 0
    with database.read() as connection:
        assert watch.champions(connection) == []
        _, of_first, of_second, first = (row["seq"] for row in registry.history(connection, "m"))
        assert watch.of_deployment(connection, first) == {
            "adherence": 0.0,
            "weight": pytest.approx(1.0),
            "evaluations": 1,
        }
        found = watch.of_deployment(connection, of_second)
        assert found is not None
        assert found["evaluations"] == 2
        assert watch.of_deployment(connection, of_first) is None


def test_times_compare_as_the_store_writes_them(database: Database, version_id: str) -> None:
    assert take(database, seen(0, arrived_at=utc_now())) == 1

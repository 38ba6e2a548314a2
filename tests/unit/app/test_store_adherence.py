"""Adherence: each position counts once, whatever is told again, and the mean is that of the definition."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from app.store import Database, adherence
from app.store.adherence import Observation
from app.store.tables import adherence as adherence_table
from app.store.tables import adherence_positions

HALF_LIFE = 20.0


def seen(
    offset: int, adherent: bool = True, stands_for: float = 1.0, partition: int = 0, model: str = "m"
) -> Observation:
    return Observation("t", partition, offset, model, "d", adherent, stands_for)


def estimate(database: Database, model: str = "m") -> adherence.Adherence:
    with database.read() as connection:
        return adherence.read(connection)[model, "d"]


def observe(database: Database, observations: list[Observation]) -> int:
    with database.write() as connection:
        return adherence.observe(connection, observations, HALF_LIFE)


def empty(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.delete(adherence_table))
        connection.execute(sa.delete(adherence_positions))


def by_definition(outcomes: list[bool]) -> float:
    """Every evaluation by itself, the newest weighing 1."""
    weights = [0.5 ** ((len(outcomes) - 1 - n) / HALF_LIFE) for n in range(len(outcomes))]
    return sum(w for w, adherent in zip(weights, outcomes, strict=True) if adherent) / sum(weights)


@limits(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=30), data=st.data())
def test_redeliveries_count_once_and_the_mean_is_the_definitions(
    database: Database, outcomes: list[bool], data: st.DataObject
) -> None:
    empty(database)
    told = counted = 0
    while told < len(outcomes):
        start = data.draw(st.integers(0, told))  # a batch may begin before what was told already
        end = data.draw(st.integers(told + 1, len(outcomes)))
        counted += observe(database, [seen(n, outcomes[n]) for n in range(start, end)])
        told = end
    assert counted == len(outcomes)
    found = estimate(database)
    assert found.mean == pytest.approx(by_definition(outcomes))
    assert found.evaluations == len(outcomes)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.2])
def test_a_sampled_event_stands_for_those_that_were_not_kept(database: Database, rate: float) -> None:
    times = round(1 / rate)
    observe(database, [seen(n, n % 3 == 0, 1 / rate) for n in range(12)])
    whole = [n % 3 == 0 for n in range(12) for _ in range(times)]
    assert estimate(database).mean == pytest.approx(by_definition(whole))


def test_old_evaluations_fade(database: Database) -> None:
    observe(database, [seen(n, True) for n in range(200)])
    observe(database, [seen(200 + n, False) for n in range(20)])
    assert estimate(database).mean == pytest.approx(0.5, abs=0.01)


def test_models_and_partitions_do_not_mix(database: Database) -> None:
    observe(database, [seen(5, True), seen(6, False, model="other"), seen(0, True, partition=1)])
    assert observe(database, [seen(4, False), seen(0, False, partition=1)]) == 0
    assert (estimate(database).mean, estimate(database, "other").mean) == (1.0, 0.0)
    with database.write() as connection:
        adherence.restart(connection, "m")
    with database.read() as connection:
        assert list(adherence.read(connection)) == [("other", "d")]
    assert observe(database, [seen(5, False)]) == 0  # what was told before stays told


def test_workers_at_once_lose_nothing(database: Database) -> None:
    workers, each = 4, 25
    start = threading.Barrier(workers)

    def tell(partition: int) -> int:
        start.wait(10)
        return sum(observe(database, [seen(n, True, partition=partition)]) for n in range(each))

    with ThreadPoolExecutor(workers) as pool:
        assert sum(pool.map(tell, range(workers), timeout=60)) == workers * each
    assert estimate(database).evaluations == workers * each

"""Leases with fencing tokens, and the privacy ledger that only the holder of the newest may write."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from ledger_parts import entry
from sqlalchemy.engine import Connection

from app.store import Database, budget, cycles, leases, ledger, outbox, progress
from app.store.database import server_time
from app.store.leases import FenceLost, Lease
from app.store.tables import cohorts as cohorts_table
from app.store.tables import leases as table
from app.store.tables import ledger as ledger_table
from models.cycle import Cycle, CycleState, TriggerType


def taken(connection: Connection, holder: str, name: str = "domain:d", ttl_s: float = 60.0) -> Lease:
    lease = leases.acquire(connection, name, holder, ttl_s)
    assert lease is not None
    return lease


def expire(connection: Connection, name: str = "domain:d") -> None:
    """Let a lease run out now, as if its time had passed by the database's clock."""
    connection.execute(sa.update(table).where(table.c.name == name).values(expires_at=server_time(connection)))


def test_a_lease_is_exclusive_until_it_is_given_back(database: Database) -> None:
    with database.write() as connection:
        first = taken(connection, "a")
        assert taken(connection, "a") == first  # one's own is renewed, under the same fence
        assert leases.acquire(connection, "domain:d", "b", 60.0) is None
        assert taken(connection, "b", "other").fence == 1
        leases.require(connection, first)
        leases.release(connection, Lease("domain:d", "b", first.fence))  # not b's to give
        leases.require(connection, first)
        leases.release(connection, first)
        with pytest.raises(FenceLost):
            leases.require(connection, first)
        second = taken(connection, "b")
        leases.release(connection, first)  # no longer a's
        leases.require(connection, second)
    assert second.fence > first.fence


def test_each_takeover_has_a_larger_fence_and_stops_the_last(database: Database) -> None:
    held: list[Lease] = []
    for holder in ("a", "b", "a"):
        with database.write() as connection:
            held.append(taken(connection, holder))
            expire(connection)
    assert [lease.fence for lease in held] == sorted({lease.fence for lease in held})
    with database.write() as connection:
        newest = taken(connection, "c")
    for zombie in held:
        with pytest.raises(FenceLost, match=f"fence {zombie.fence}"), database.write() as connection:
            leases.require(connection, zombie)
        with pytest.raises(FenceLost, match=f"fence {zombie.fence}"), database.write() as connection:
            leases.renew(connection, zombie, 60.0)
    with database.write() as connection:
        leases.renew(connection, newest, 60.0)


def test_a_lease_runs_out_by_the_databases_clock(database: Database) -> None:
    with database.write() as connection:
        lease = taken(connection, "a", ttl_s=0.2)
    deadline = time.monotonic() + 10
    while True:
        with database.write() as connection:
            successor = leases.acquire(connection, "domain:d", "b", 60.0)
        if successor is not None:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert successor.fence == lease.fence + 1


def test_one_that_ran_out_is_lost_even_if_nobody_took_it(database: Database) -> None:
    with database.write() as connection:
        lease = taken(connection, "a")
        expire(connection)
        with pytest.raises(FenceLost, match="run out"):
            leases.renew(connection, lease, 60.0)
        assert taken(connection, "a").fence > lease.fence
        with pytest.raises(FenceLost, match="taken over"):
            leases.require(connection, Lease("never", "a", 1))


def test_extending_what_is_held(database: Database) -> None:
    def left(connection: Connection) -> float:
        expires = connection.execute(sa.select(table.c.expires_at)).scalar_one()
        return float(expires) - server_time(connection)

    with database.write() as connection:
        lease = taken(connection, "a", ttl_s=30.0)
        leases.extend_if_held(connection, "domain:d", "b", 600.0)
        assert left(connection) <= 30.0
        leases.extend_if_held(connection, "domain:d", "a", 600.0)
        assert left(connection) > 500.0
        leases.require(connection, lease)
        expire(connection)
        leases.extend_if_held(connection, "domain:d", "a", 600.0)
        assert left(connection) <= 0.0
        leases.extend_if_held(connection, "never", "a", 600.0)


def test_of_many_that_take_a_lease_at_once_one_has_it(database: Database) -> None:
    workers = 8
    start = threading.Barrier(workers)

    def take(number: int) -> Lease | None:
        start.wait(10)
        with database.write() as connection:
            return leases.acquire(connection, "domain:d", f"w{number}", 60.0)

    with ThreadPoolExecutor(workers) as pool:
        got = [done.result(60) for done in [pool.submit(take, number) for number in range(workers)]]
    [winner] = [lease for lease in got if lease is not None]
    with database.write() as connection:
        leases.require(connection, winner)


def opened(connection: Connection, model_id: str = "m", domain: str = "d") -> Cycle:
    cycle = cycles.open_cycle(
        connection, model_id=model_id, domain=domain, trigger_type=TriggerType.COUNT, requested_by="c", facts={}
    )
    assert cycle is not None
    return cycle


def next_cohort(connection: Connection) -> None:
    """As an operator opens one, but with cycles at work."""
    row = {"domain": "d", "cohort": 1, "opened_by": "o", "comment": "c", "opened_at": "2026-01-01T00:00:00.000000Z"}
    connection.execute(sa.insert(cohorts_table).values(**row))


def test_a_reservation_is_told_in_its_transaction(database: Database) -> None:
    with database.write() as connection:
        cycle, lease = opened(connection), taken(connection, "a")
        before = len(outbox.pending(connection))
        reserved = entry(cycle, lease, steps=3)
        ledger.reserve(connection, reserved, lease)
        told = outbox.pending(connection)[before:]
        assert ledger.steps_of(connection, cycle.cycle_id) == 3
        assert ledger.steps_of(connection, "unknown") == 0
    assert [item.destination for item in told] == ["privacy_ledger"]
    assert reserved.model_dump().items() <= told[0].payload.items()


def test_a_zombie_cannot_spend(database: Database) -> None:
    with database.write() as connection:
        cycle, zombie = opened(connection), taken(connection, "a")
        ledger.reserve(connection, entry(cycle, zombie), zombie)
        expire(connection)
    with database.write() as connection:
        told = outbox.pending(connection)
        with pytest.raises(FenceLost):
            ledger.reserve(connection, entry(cycle, zombie), zombie)
    with database.write() as connection:
        successor = taken(connection, "b")
    for forged in (zombie, Lease("domain:d", "b", zombie.fence), Lease("domain:d", "a", successor.fence)):
        with pytest.raises(FenceLost), database.write() as connection:
            ledger.reserve(connection, entry(cycle, forged), forged)
    with database.write() as connection:
        assert ledger.steps_of(connection, cycle.cycle_id) == 1
        assert outbox.pending(connection) == told
        ledger.reserve(connection, entry(cycle, successor), successor)
        assert ledger.steps_of(connection, cycle.cycle_id) == 2


def test_a_takeover_waits_for_a_reservation_under_way(database: Database) -> None:
    """The fence is checked in the writing transaction, and the lease's row is held to its end."""
    with database.write() as connection:
        cycle, lease = opened(connection), taken(connection, "a", ttl_s=0.3)
    reserved, order = threading.Event(), list[str]()

    def take_over() -> None:
        reserved.wait(10)
        while True:
            with database.write() as connection:
                successor = leases.acquire(connection, "domain:d", "b", 60.0)
            if successor is not None:
                order.append("taken over")
                return
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(take_over)
        with database.write() as connection:
            ledger.reserve(connection, entry(cycle, lease), lease)
            reserved.set()
            deadline = time.monotonic() + 0.8  # the lease runs out meanwhile
            while time.monotonic() < deadline:
                time.sleep(0.05)
            order.append("reserved")
        other.result(30)
    assert order == ["reserved", "taken over"]


def test_phases_join_equal_neighbours_in_the_order_spent(database: Database) -> None:
    with database.write() as connection:
        cycle, lease = opened(connection), taken(connection, "a")
        other = opened(connection, "other")
        for noise, rate, steps in [(1.0, 0.1, 1), (1.0, 0.1, 2), (1.5, 0.1, 1), (1.0, 0.1, 1), (1.0, 0.2, 4)]:
            ledger.reserve(
                connection, entry(cycle, lease, noise_multiplier=noise, sample_rate=rate, steps=steps), lease
            )
        ledger.reserve(connection, entry(other, lease, sample_rate=0.2, steps=5), lease)
        next_cohort(connection)
        ledger.reserve(connection, entry(cycle, lease, cohort=1), lease)
        assert ledger.phases(connection, "d") == [
            (1.0, 0.1, 3),
            (1.5, 0.1, 1),
            (1.0, 0.1, 1),
            (1.0, 0.2, 9),  # both cycles': the budget is the domain's
        ]
        assert ledger.phases(connection, "d", cohort=1) == [(1.0, 0.1, 1)]
        assert ledger.phases(connection, "elsewhere") == []


def test_cycles_stand_in_the_order_of_their_first_step(database: Database) -> None:
    with database.write() as connection:
        lease = taken(connection, "a")
        one, two, three = (opened(connection, model) for model in ("m1", "m2", "m3"))
        for cycle in (three, one, three, two, one):
            ledger.reserve(connection, entry(cycle, lease), lease)
        assert ledger.trained_cycles(connection, "d") == [three.cycle_id, one.cycle_id, two.cycle_id]
        assert ledger.trained_cycles(connection, "d", cohort=1) == []
        assert sorted(ledger.spenders(connection)) == sorted(
            ("d", cycle.model_id, cycle.cycle_id) for cycle in (one, two, three)
        )
        assert connection.execute(sa.select(sa.func.count()).select_from(ledger_table)).scalar_one() == 5


def test_a_lease_pays_for_its_own_domain_and_fence_only(database: Database) -> None:
    with database.write() as connection:
        cycle, lease = opened(connection), taken(connection, "a")
        foreign = taken(connection, "a", "domain:other")
        for wrong, held in ((entry(cycle, foreign), foreign), (entry(cycle, lease, fence=lease.fence + 1), lease)):
            with pytest.raises(FenceLost, match="does not pay"):
                ledger.reserve(connection, wrong, held)
        assert ledger.steps_of(connection, cycle.cycle_id) == 0


def test_what_each_domain_has_spent(database: Database) -> None:
    with database.write() as connection:
        assert budget.spent(connection) == []
        first, second, elsewhere = opened(connection, "m1"), opened(connection, "m2"), opened(connection, "m3", "e")
        opened(connection, "idle")
        for cycle in (first, second, elsewhere):
            lease = taken(connection, "a", ledger.domain_lease(cycle.domain))
            ledger.reserve(connection, entry(cycle, lease), lease)
        for state in (CycleState.PREPARING, CycleState.REVISING):
            first = cycles.transition(connection, first, state)
        cycles.transition(connection, first, CycleState.REJECTED, facts={"privacy": {"epsilon": 3.5}})
        progress.save(connection, second.cycle_id, "train", 1, 6, {"epsilon": 4.25})
        progress.save(connection, elsewhere.cycle_id, "revise", 1, 6, {"round": 1})
        shown = [(one.domain, one.model_id, one.cycle_id, one.epsilon) for one in budget.spent(connection)]
    # A domain's newest figure covers all that was ever trained on it, so each of its cycles shows it.
    assert shown == [
        ("d", "m1", first.cycle_id, 4.25),
        ("d", "m2", second.cycle_id, 4.25),
        ("e", "m3", elsewhere.cycle_id, 0.0),
    ]

"""A new cohort: a whole budget, for people whom nothing was trained on; and nothing more for the old one."""

from __future__ import annotations

import pytest
from example_parts import example
from ledger_parts import spend
from sqlalchemy.engine import Connection

from agents.curation import manifest as snapshots
from app.store import Database, budget, cohorts, cycles, ledger, outbox
from app.store.cohorts import CohortClosed, CohortRefused
from models.cycle import Cycle, CycleState, TriggerType
from models.example import Example

RULES = snapshots.ManifestRules(b"key", 0.0, 0)


def one(number: int, subject: str | None = None) -> Example:
    return example(number).model_copy(update={"subject_token": subject, "domain": "d"})


def opened(connection: Connection, model: str = "m") -> Cycle:
    cycle = cycles.open_cycle(
        connection, model_id=model, domain="d", trigger_type=TriggerType.MANUAL, requested_by="r", facts={}
    )
    assert cycle is not None
    return cycle


def trained(connection: Connection, members: list[Example], model: str = "m") -> Cycle:
    """A cycle that has spent on these examples and ended."""
    cycle = opened(connection, model)
    cohort = cohorts.current(connection, "d")
    earlier = cohorts.units_of_earlier(connection, "d")
    manifest = snapshots.build(cycle.cycle_id, "d", members, RULES, lambda _: False, "c", (), cohort, earlier)
    cycles.save_manifest(connection, manifest, snapshots.manifest_digest(manifest))
    spend(connection, cycle, cohort=cohort)
    return cycles.transition(connection, cycle, CycleState.CANCELLED)


def following(connection: Connection) -> int:
    return cohorts.open_next(connection, "d", opened_by="ann", comment="the budget is used up")


def test_the_first_cohort_is_there_by_itself(database: Database) -> None:
    with database.read() as connection:
        assert cohorts.current(connection, "d") == 0
        assert cohorts.history(connection, "d") == []
        assert cohorts.units_of_earlier(connection, "d") == frozenset()


def test_a_new_cohort_has_a_whole_budget_and_is_told(database: Database) -> None:
    with database.write() as connection:
        trained(connection, [one(1)])
        before = len(outbox.pending(connection))
        assert following(connection) == 1
        told = outbox.pending(connection)[before:]
        assert cohorts.current(connection, "d") == 1
        assert cohorts.current(connection, "elsewhere") == 0
        assert ledger.phases(connection, "d", 1) == []
        assert len(ledger.phases(connection, "d", 0)) == 1
        [shown] = cohorts.history(connection, "d")
    assert [item.destination for item in told] == ["privacy_cohort"]
    assert told[0].payload["context"]["cohort"] == 1
    assert (shown["opened_by"], shown["comment"]) == ("ann", "the budget is used up")


def test_it_admits_only_whom_nothing_was_trained_on(database: Database) -> None:
    with database.write() as connection:
        trained(connection, [one(1, "sub_a"), one(2, "sub_b"), one(3)])
        following(connection)
        trained(connection, [one(4, "sub_c")], "other")
        assert cohorts.units_of_earlier(connection, "d") == {"sub_a", "sub_b", one(3).example_id}
        following(connection)
        earlier = cohorts.units_of_earlier(connection, "d")
        cohort = cohorts.current(connection, "d")
    assert earlier == {"sub_a", "sub_b", "sub_c", one(3).example_id}
    waiting = [one(5, "sub_a"), one(6, "sub_c"), one(7, "sub_d"), one(8)]
    manifest = snapshots.build("c", "d", waiting, RULES, lambda _: False, "c", (), cohort, earlier)
    assert {member.unit for member in manifest.members} == {"sub_d", one(8).example_id}
    assert manifest.excluded == {"subject_of_earlier_cohort": 2}
    assert manifest.cohort == 2
    assert "subject_of_earlier_cohort" in snapshots.FOR_GOOD


def test_the_old_cohort_spends_nothing_any_more(database: Database) -> None:
    with database.write() as connection:
        trained(connection, [one(1)])
        following(connection)
        late = opened(connection)
    with database.write() as connection, pytest.raises(CohortClosed, match="is in cohort 1"):
        spend(connection, late)
    with database.read() as connection:
        assert ledger.steps_of(connection, late.cycle_id) == 0


@pytest.mark.parametrize(
    ("opened_by", "comment", "why"),
    [("", "full", "say who"), ("ann", " ", "say who"), ("ann", "full", "spent nothing")],
)
def test_a_cohort_needs_a_reason(database: Database, opened_by: str, comment: str, why: str) -> None:
    with database.write() as connection, pytest.raises(CohortRefused, match=why):
        cohorts.open_next(connection, "d", opened_by=opened_by, comment=comment)


def test_no_cohort_opens_while_a_cycle_is_at_work(database: Database) -> None:
    with database.write() as connection:
        trained(connection, [one(1)])
        at_work = opened(connection)
        with pytest.raises(CohortRefused, match=f"cycle {at_work.cycle_id} of domain 'd' is open"):
            following(connection)
        assert cohorts.current(connection, "d") == 0


def test_of_two_who_open_at_once_one_does(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.write() as connection:
        trained(connection, [one(1)])
        following(connection)
        # The other looked before this one wrote.
        monkeypatch.setattr(cohorts, "current", lambda *_: 0)
        with pytest.raises(CohortRefused, match="opened by somebody else"):
            following(connection)
        assert len(cohorts.history(connection, "d")) == 1


def test_each_cohorts_spending_is_its_own(database: Database) -> None:
    with database.write() as connection:
        first = opened(connection)
        manifest = snapshots.build(first.cycle_id, "d", [one(1)], RULES, lambda _: False, "c")
        cycles.save_manifest(connection, manifest, "0" * 64)
        spend(connection, first)
        first = cycles.transition(connection, first, CycleState.CANCELLED, facts={"privacy": {"epsilon": 8.0}})
        following(connection)
        second = opened(connection, "n")
        spend(connection, second, cohort=1)
        shown = {entry.cycle_id: entry.epsilon for entry in budget.spent(connection)}
    assert shown == {first.cycle_id: 8.0, second.cycle_id: 0.0}

"""The watch: a champion below the gate's bound is rolled back, once, by whoever looks, and never without the gate."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from deciding_parts import Watch, bundle, deciding
from registry_parts import GOOD, STATEMENT, trained
from systems import wait_until

from agents.training import stages
from agents.training.champion_watch import LEASE, ChampionWatch
from agents.training.context import DecisionContext
from agents.training.promotion import NotPromotable, roll_back_watched
from app.settings import Settings
from app.store import Database, adherence, alerts, cycles, leases, outbox, registry, watch
from app.store.adherence import Observation
from app.store.registry import StaleDeployment
from models.cycle import Cycle, CycleState

LEAST = int(bundle().data["bounds"]["watch_min_evaluations"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


class Reporting(DecisionContext):
    """A context whose only job is the report, which is not what is tested here."""

    async def job(self, cycle: Cycle, stage: str, specification: dict[str, Any]) -> dict[str, Any]:
        assert stage == "report"
        return {}


def watcher(settings: Settings, database: Database, who: Watch, holder: str = "worker") -> ChampionWatch:
    context: Any = deciding(settings, database, who)
    return ChampionWatch(context, holder)


def see(database: Database, adherent: list[bool], first: int = 0) -> None:
    told = [
        Observation("t", 0, first + n, "m", "d", good, 1.0, arrived_at="2099-01-01T00:00:00.000000Z")
        for n, good in enumerate(adherent)
    ]
    with database.write() as connection:
        watch.take(connection, adherence.advance(connection, told), 500.0)


def champion(database: Database) -> str | None:
    with database.read() as connection:
        found = registry.champion(connection, "m")
    return None if found is None else str(found.version_id)


@pytest.fixture
def versions(database: Database, tmp_path: Path) -> tuple[str, str]:
    """The champion before, and the champion."""
    with database.write() as connection:
        first = trained(connection, tmp_path, state=CycleState.PROMOTED)
        return first, trained(connection, tmp_path, state=CycleState.PROMOTED)


async def test_a_bad_champion_is_rolled_back_with_an_alert_and_an_entry(
    settings: Settings, database: Database, versions: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before, bad = versions
    who = Watch()
    look = watcher(settings, database, who).look
    see(database, [True, False] * (LEAST // 2 - 1))
    assert await look() == [], "too few evaluations to say"
    see(database, [True, False], LEAST)
    (done,) = await look()
    assert (done.version_id, done.replaced) == (before, bad)
    assert champion(database) == before
    assert who.decisions() == [("model_rollback", True)]
    with database.read() as connection:
        entry = outbox.pending(connection, 1000)[-1].payload
        (alert,) = alerts.after(connection, 0)
        marked = registry.get(connection, bad)
    assert entry["event_type"] == "deployment"
    assert entry["context"]["kind"] == "watch"
    assert (entry["context"]["rolled_back"], entry["context"]["n_evaluations"]) == (bad, LEAST)
    assert entry["context"]["decision_id"] == alert["detail"]["decision_id"] == done.decision_id
    assert (alert["kind"], alert["severity"], alert["model_id"]) == ("champion_rolled_back", "critical", "m")
    assert alert["detail"]["adherence"] == pytest.approx(0.5, abs=0.05)
    assert marked is not None
    assert marked.rolled_back_reason.startswith("adherence 0.")
    assert [record.levelname for record in caplog.records if "rolled back to" in record.message] == ["ERROR"]
    assert await look() == []


async def test_a_good_champion_stays(settings: Settings, database: Database, versions: tuple[str, str]) -> None:
    who = Watch()
    see(database, [True] * 97 + [False] * 3 + [True] * 20)
    assert await watcher(settings, database, who).look() == []
    assert who.asked == []
    assert champion(database) == versions[1]


async def test_the_base_model_follows_where_there_was_no_champion_before(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    with database.write() as connection:
        trained(connection, tmp_path, state=CycleState.PROMOTED)
    see(database, [False] * LEAST)
    who = Watch()
    (done,) = await watcher(settings, database, who).look()
    assert done.version_id is None
    assert who.asked[0][1]["rollback"]["target_version"] == "base:small"
    assert champion(database) is None


@pytest.mark.parametrize("trouble", ["audit_fails", "audit_engine", "policy_engine"])
async def test_nothing_is_rolled_back_unwatched(
    settings: Settings, database: Database, versions: tuple[str, str], trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    who = Watch()
    setattr(who, trouble, trouble == "audit_fails")
    see(database, [False] * LEAST)
    watching = watcher(settings, database, who)
    assert await watching.look() == []
    assert champion(database) == versions[1]
    assert "stays, for now" in caplog.text
    setattr(who, trouble, trouble != "audit_fails")
    assert len(await watching.look()) == 1
    assert champion(database) == versions[0]


async def test_a_refusal_is_asked_about_again_only_after_more_evaluations(
    settings: Settings, database: Database, versions: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    who = Watch()
    # Another hash than that of the policies: the gate refuses.
    settings = settings.model_copy(
        update={"constitution": settings.constitution.model_copy(update={"hash": "another"})}
    )
    see(database, [False] * LEAST)
    watching = watcher(settings, database, who)
    for _ in range(3):
        assert await watching.look() == []
    assert len(who.asked) == 1
    assert "must carry the hash" in caplog.text
    see(database, [False], LEAST)
    await watching.look()
    assert len(who.asked) == 2
    assert champion(database) == versions[1]


async def test_of_workers_that_look_at_once_one_rolls_back(
    settings: Settings, database: Database, versions: tuple[str, str]
) -> None:
    see(database, [False] * LEAST)
    who = Watch()
    with database.read() as connection:
        (seen,) = watch.champions(connection)
    # All have looked already: the lease keeps nobody back any more.
    asked = [roll_back_watched(deciding(settings, database, who), seen, "watch") for _ in range(4)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, StaleDeployment) for one in done) == 3, done
    assert champion(database) == versions[0]
    with database.read() as connection:
        assert len(alerts.after(connection, 0)) == 1
        assert len(registry.history(connection, "m")) == 3


async def test_one_worker_looks_at_a_time(settings: Settings, database: Database, versions: tuple[str, str]) -> None:
    see(database, [False] * LEAST)
    with database.write() as connection:
        assert leases.acquire(connection, LEASE, "another", 60.0) is not None
    assert await watcher(settings, database, Watch()).look() == []
    assert champion(database) == versions[1]
    with database.write() as connection:
        leases.release_if_held(connection, LEASE, "another")
    task = asyncio.create_task(watcher(settings, database, Watch()).run())
    try:
        await asyncio.to_thread(wait_until, lambda: champion(database) == versions[0], "it is rolled back", 20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with database.write() as connection:
        assert leases.acquire(connection, LEASE, "another", 1.0) is not None, "it gives the lease back"


async def test_what_was_seen_of_a_champion_that_is_none_any_more_rolls_nothing_back(
    settings: Settings, database: Database, versions: tuple[str, str], tmp_path: Path
) -> None:
    see(database, [False] * LEAST)
    with database.write() as connection:
        (seen,) = watch.champions(connection)
        third = trained(connection, tmp_path, state=CycleState.PROMOTED)
    with pytest.raises(StaleDeployment):
        await roll_back_watched(deciding(settings, database, Watch()), seen, "watch")
    assert champion(database) == third
    with database.write() as connection:
        registry.deploy(connection, "m", None, "by hand")
    with pytest.raises(NotPromotable, match="has no champion"):
        await roll_back_watched(deciding(settings, database, Watch()), seen, "watch")


async def test_a_cycle_that_the_gate_promotes_is_watched_from_then_on(
    settings: Settings, database: Database, versions: tuple[str, str], tmp_path: Path
) -> None:
    with database.write() as connection:
        version = trained(connection, tmp_path, state=CycleState.EVALUATING, evaluation=None)
        opened = cycles.get(connection, version)
    assert opened is not None
    cycle = opened.model_copy(update={"facts": {"privacy": STATEMENT}})
    who = Watch()
    plain = deciding(settings, database, who)
    context: Any = Reporting(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    ended = await stages._gate_promotion(context, cycle, GOOD)
    assert ended is not None
    assert ended.state is CycleState.PROMOTED
    assert champion(database) == version
    with database.read() as connection:
        deployed = registry.history(connection, "m")[0]
    assert deployed["decision_id"] == who.entries[-1].context["decision"]["decision_id"]
    see(database, [False] * LEAST)
    (done,) = await watcher(settings, database, who).look()
    assert (done.replaced, done.version_id) == (version, versions[1])

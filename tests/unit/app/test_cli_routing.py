"""`flywheel routing`: what operators change, what they are shown of it, and what they are refused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from agents.routing.live import CATALOGUE
from app.cli.main import cli
from app.embedded.redis import RedisServer
from app.embedded.run_directory import RunDirectory
from app.live import LiveCopier
from app.redis import make_redis
from app.settings import load_settings
from app.store import Database, outbox

RATE = "policy_evaluation.sample_rate"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own: the key is one for a whole system."""
    with RunDirectory.create(tmp_path_factory.mktemp("routing")) as run:
        server = RedisServer(run)
        server.start()
        yield server
        server.stop()


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The commands run on a database of the test's own; Redis is away."""
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'test.db'}"
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", url)
    monkeypatch.setenv("FLYWHEEL_REDIS__URL", "redis://127.0.0.1:1/0")
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def copy(redis_server: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Redis is there; calling this copies to it what is audited, as the monitoring agent does."""
    monkeypatch.setenv("FLYWHEEL_REDIS__URL", redis_server.url)

    async def copy() -> None:
        client = make_redis(load_settings())
        await LiveCopier(lambda: database, client).copy_once()
        await client.aclose()

    async def flush() -> None:
        client = make_redis(load_settings())
        await client.flushall()
        await client.aclose()

    asyncio.run(flush())
    return lambda: asyncio.run(copy())


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["routing", *arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def run_json(*arguments: str) -> Any:
    return orjson.loads(run(*arguments, "--json").stdout)


def shown(name: str = RATE) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in run_json("ls") if row["name"] == name)
    return found


def deliver(database: Database) -> None:
    with database.write() as connection:
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])


def test_every_setting_is_shown_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_ROUTING__TRIGGER_THRESHOLD", "0.7")
    rows = run_json("ls")
    assert [row["name"] for row in rows] == list(CATALOGUE)
    assert all(row["effect"] == "as configured" for row in rows)
    assert all(row["value"] == row["configured"] for row in rows)
    assert all(row["by"] is row["at"] is row["revision"] is row["set"] is None for row in rows)
    assert all(row["meaning"] and row["bounds"] for row in rows)
    values = {row["name"]: row["value"] for row in rows}
    assert (values["trigger.threshold"], values[RATE]) == (0.7, 0.2)
    table = run("ls").stdout
    assert "trigger.threshold" in table


def test_how_far_a_change_has_come(database: Database, copy: Callable[[], None]) -> None:
    made = run_json("set", RATE, "0.5", "--by", "alice", "--comment", "look closer")
    assert (made["name"], made["value"], made["by"], made["comment"]) == (RATE, 0.5, "alice", "look closer")
    row = shown()
    assert (row["value"], row["configured"], row["set"]) == (0.2, 0.2, 0.5)
    assert (row["by"], row["at"], row["revision"]) == ("alice", made["at"], made["revision"])
    assert row["effect"] == "waits for the audit engine"
    copy()
    deliver(database)
    row = shown()
    assert (row["value"], row["effect"]) == (0.2, "waits for the monitoring agent")
    copy()
    row = shown()
    assert (row["value"], row["effect"]) == (0.5, "in force")

    run("set", RATE, "0.6", "--by", "bob")
    row = shown()
    assert (row["value"], row["set"], row["effect"]) == (0.5, 0.6, "waits for the audit engine")

    run("unset", RATE, "--by", "carol", "--comment", "enough seen")
    row = shown()
    assert (row["value"], row["set"], row["by"], row["effect"]) == (0.5, None, "carol", "waits for the audit engine")
    deliver(database)
    copy()
    row = shown()
    assert (row["value"], row["set"], row["effect"]) == (0.2, None, "in force")
    assert shown("dedup.window_s")["effect"] == "as configured"

    history = run_json("history")
    assert [(row["revision"], row["value"], row["by"]) for row in history] == [
        (3, None, "carol"),
        (2, 0.6, "bob"),
        (1, 0.5, "alice"),
    ]
    assert [row["comment"] for row in history] == ["enough seen", "", "look closer"]
    assert all(row["audited"] for row in history)
    assert [row["revision"] for row in run_json("history", "--limit", "1")] == [3]


def test_without_redis_nobody_claims_to_know(database: Database) -> None:
    run("set", RATE, "0.5", "--by", "alice")
    assert shown()["effect"] == "waits for the audit engine"
    deliver(database)
    row = shown()
    assert (row["value"], row["effect"]) == (0.5, "audited; Redis holds no copy or does not answer")


def test_people_are_told_what_was_done() -> None:
    told = run("set", RATE, "0.5", "--by", "alice").stdout
    assert f"{RATE} is set to 0.5 by revision 1" in told
    assert "once it is in the audit log" in told
    table = " ".join(run("ls").stdout.split())
    assert "alice" in table
    assert f"{RATE} is given back to the configuration by revision 2" in run("unset", RATE, "--by", "alice").stdout
    assert "alice" in run("history").stdout


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("policy_evaluation.sample_rat", "0.5", "did you mean policy_evaluation.sample_rate?"),
        ("trigger.threshold", "1.5", "it must lie in 0..1: give a compliance score, such as 0.8"),
        ("trigger.threshold", "-0.5", "it must lie in 0..1"),
        (RATE, "0", "a rate of 0 would drop all of them"),
        ("constitutional_violation.sample_rate", "0.5", "the specification keeps every one of these"),
        ("dedup.on_outage", "drop", "it must be wait or pass"),
        ("dedup.window_s", "soon", "give seconds, such as 3600"),
    ],
)
def test_what_is_refused_is_one_line_with_a_remedy(name: str, value: str, words: str) -> None:
    refused = run("set", name, value, "--by", "alice", status=2)
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert run_json("history") == []


def test_changes_that_nobody_can_be_named_for_are_refused() -> None:
    assert "Missing option '--by'" in run("set", RATE, "0.5", status=2).stderr
    assert "Missing option '--by'" in run("unset", RATE, status=2).stderr
    assert "name a person" in run("set", RATE, "0.5", "--by", " ", status=1).stderr
    assert "shorten it" in run("set", RATE, "0.5", "--by", "a", "--comment", "x" * 1001, status=1).stderr
    assert run_json("history") == []


def test_what_is_not_set_cannot_be_given_back() -> None:
    assert f"{RATE} is not set" in run("unset", RATE, "--by", "alice", status=1).stderr
    assert "did you mean dedup.window_s?" in run("unset", "dedup.windows", "--by", "alice", status=2).stderr


def test_a_mistyped_option_is_not_passed_over() -> None:
    run("set", RATE, "0.5", "--by", "alice", "--coment", "why", status=2)
    assert run_json("history") == []

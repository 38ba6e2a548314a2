"""The `flywheel` command: what it prints, what it changes, how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from app import __version__
from app.cli.main import cli, main
from app.cli.output import emit
from app.store import Database, approvals, cycles, progress
from app.topics import REGISTRY
from models.cycle import Cycle, CycleState, TriggerType

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commands run on a database of the test's own."""
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'test.db'}"
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", url)
    return url


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def run_json(*arguments: str) -> Any:
    return orjson.loads(run(*arguments, "--json").stdout)


def triggered(model: str = "m", by: str = "alice") -> str:
    return str(run_json("cycles", "trigger", model, "--by", by)["cycle"])


def planned(url: str) -> str:
    """A cycle with a plan, as it stands when a reviewer is asked."""
    database = Database(url)
    cycle_id = triggered()
    with database.write() as connection:
        cycle = cycles.get(connection, cycle_id)
        assert cycle is not None
        for state in (CycleState.PREPARING, CycleState.REVISING):
            cycle = cycles.transition(connection, cycle, state)
        cycles.transition(connection, cycle, CycleState.AWAITING_APPROVAL, plan_digest="0" * 64)
        progress.save(connection, cycle_id, "revise", 3, 9, {"round": 1})
    database.close()
    return cycle_id


def cycle_of(url: str, cycle_id: str) -> Cycle:
    database = Database(url)
    with database.read() as connection:
        cycle = cycles.get(connection, cycle_id)
    database.close()
    assert cycle is not None
    return cycle


def test_version() -> None:
    assert run("version").stdout.strip() == __version__


def test_the_topics_are_those_of_the_registry() -> None:
    shown = run_json("topics", "ls")
    assert [row["topic"] for row in shown] == [spec.name for spec in REGISTRY]
    assert next(row for row in shown if row["topic"] == "audit-trail-events")["retention_days"] == 2555
    assert run("topics", "ls").exit_code == 0


def test_config_check_shows_what_is_in_force(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_WEB__TOKEN", "hunter2")
    shown = run_json("config", "check")
    assert shown["database"]["url"] == url
    assert shown["privacy"]["cycle_targets"] == [4.0, 6.0, 8.0]
    assert shown["web"]["token"] == "********"


def test_a_cycle_from_trigger_to_cancel(url: str) -> None:
    cycle_id = triggered()
    cycle = cycle_of(url, cycle_id)
    assert (cycle.state, cycle.trigger_type, cycle.requested_by) == (CycleState.PROPOSED, TriggerType.MANUAL, "alice")
    assert (cycle.model_id, cycle.domain) == ("m", "default")

    refused = run("cycles", "trigger", "m", "--by", "bob", status=1)
    assert "m has an open cycle already" in refused.stderr

    other = run_json("cycles", "trigger", "n", "--by", "bob", "--domain", "health")
    listed = run_json("cycles", "ls")
    assert [row["cycle"] for row in listed] == [other["cycle"], cycle_id]
    assert listed[0]["domain"] == "health"

    assert "cancelled" in run("cycles", "cancel", cycle_id, "--by", "bob").stdout
    assert cycle_of(url, cycle_id).state is CycleState.CANCELLED
    shown = run_json("cycles", "show", cycle_id)
    assert shown["history"][-1]["detail"] == {"cancelled_by": "bob"}
    assert "is cancelled already" in run("cycles", "cancel", cycle_id, "--by", "bob", status=1).stderr
    assert triggered() != cycle_id


def test_showing_a_cycle(url: str) -> None:
    cycle_id = planned(url)
    shown = run_json("cycles", "show", cycle_id)
    assert shown["state"] == "awaiting_approval"
    assert shown["progress"]["done"] == 3
    assert [event["state"] for event in shown["history"]] == ["proposed", "preparing", "revising", "awaiting_approval"]
    assert cycle_id in run("cycles", "show", cycle_id).stdout


@pytest.mark.parametrize(("command", "approved"), [("approve", True), ("reject", False)])
def test_a_reviewer_decides(url: str, command: str, approved: bool) -> None:
    cycle_id = planned(url)
    said = run("cycles", command, cycle_id, "--by", "bob", "--comment", "because").stdout
    assert f"bob {'approved' if approved else 'rejected'} the plan" in said
    database = Database(url)
    with database.read() as connection:
        decision = approvals.latest(connection, cycle_id)
    database.close()
    assert decision is not None
    assert (decision.approved, decision.reviewer, decision.comment) == (approved, "bob", "because")
    assert decision.plan_digest == "0" * 64


def test_the_requester_cannot_approve(url: str) -> None:
    cycle_id = planned(url)
    refused = run("cycles", "approve", cycle_id, "--by", "alice", status=1)
    assert "alice requested cycle" in refused.stderr
    database = Database(url)
    with database.read() as connection:
        assert approvals.latest(connection, cycle_id) is None
    database.close()


def test_without_a_plan_there_is_nothing_to_approve() -> None:
    assert "no plan yet" in run("cycles", "approve", triggered(), "--by", "bob", status=1).stderr


@pytest.mark.parametrize(
    "command", [["show"], ["approve", "--by", "bob"], ["reject", "--by", "b"], ["cancel", "--by", "b"]]
)
def test_an_unknown_cycle_is_named(command: list[str]) -> None:
    refused = run("cycles", command[0], "no-such", *command[1:], status=1)
    assert "there is no cycle 'no-such'" in refused.stderr


def test_names_from_events_are_no_terminal_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    triggered("[/bold] [red]model[/red]")
    assert "[/bold]" in run("cycles", "ls").stdout


def test_an_empty_list() -> None:
    assert run_json("cycles", "ls") == []
    assert "nothing to show" in run("cycles", "ls").stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": \n', ("line 2", "not JSON")),
        (b'{"a": 1}\n\n[1, 2]\n', ("line 3", "not an event")),
        (b'"text"', ("line 1", "not an event")),
        (b"\xff\xfe\n", ("line 1", "not JSON")),
    ],
)
def test_a_broken_file_is_refused_before_anything_is_sent(
    tmp_path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(content)
    told = " ".join(run("emit", str(file), status=2).output.split())
    assert all(word in told for word in words), told


def test_emit_says_what_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in run("emit", str(tmp_path / "missing.jsonl"), status=2).output
    file = tmp_path / "events.jsonl"
    file.write_text('{"a": 1}\n', encoding="utf-8")
    assert "use otlp or kafka" in run("emit", str(file), "--via", "pigeon", status=2).output
    monkeypatch.setattr("app.emitter.TIMEOUT_S", 0.5)
    refused = run("emit", str(file), "--endpoint", "http://127.0.0.1:1/v1/logs", status=1)
    assert "did not take 1 events" in refused.stderr
    monkeypatch.setenv("FLYWHEEL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    refused = run("emit", str(file), "--via", "kafka", status=1)
    assert "Kafka at 127.0.0.1:1" in refused.stderr


def test_roles_and_brokers_that_do_not_exist() -> None:
    assert "route, curate, train, monitor" in " ".join(run("worker", "baker", status=2).output.split())
    assert "mock or real" in " ".join(run("up", "--kafka", "pigeon", status=2).output.split())


@pytest.mark.parametrize(
    ("arguments", "status", "remedy"),
    [
        (["examples", "forget", "--by", "é" * 20_000], 2, "give 1 to 256 characters"),
        (["examples", "show", "x" * 20_000], 1, "see `flywheel examples ls`"),
        (["examples", "ls", "--limit", "9" * 4000 + "x" * 20_000], 2, "as an integer"),
        ([f"--{'x' * 20_000}"], 2, "No such option"),
        (["x" * 20_000], 2, "No such command"),
    ],
)
def test_a_long_argument_is_not_repeated_whole(arguments: list[str], status: int, remedy: str) -> None:
    told = run(*arguments, status=status).stderr
    assert len(told) < 4000
    assert remedy in " ".join(told.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["users", "history", "--limit", "9" * 30],
        ["access", "history", "--limit", "9" * 30],
        ["routing", "history", "--limit", "9" * 30],
        ["examples", "ls", "--limit", "9" * 30],
        ["audit", "export", "--from-seq", "9" * 30],
        ["privacy", "plan", "m", "--examples", "9" * 30],
        ["dlq", "drop", "--limit", "9" * 30],
        ["backfill", "--from", "0", "--partition", "9" * 30],
        ["backfill", "--from", "0", "--rate", "nan"],
        ["backfill", "--from", "x" * 300],
        ["backfill", "--from", "0", "--name", "0:1"],
        ["constitution", "test", "--texts", str(ROOT / "CHANGELOG.md"), "--min-accuracy", "nan"],
    ],
)
def test_numbers_and_names_that_nothing_can_have_are_refused(arguments: list[str]) -> None:
    assert "Invalid value" in run(*arguments, status=2).stderr


def as_program(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLYWHEEL_")}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, env=inherited | env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_wrong_setting_is_one_line_and_exit_status_2() -> None:
    result = as_program("config", "check", FLYWHEEL_KAFKA__PARTITION="3", FLYWHEEL_WEB__TOKEN="hunter2")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "flywheel: unknown setting FLYWHEEL_KAFKA__PARTITION (kafka.partition); "
        "did you mean kafka.partitions (FLYWHEEL_KAFKA__PARTITIONS)?\n"
    )


def test_a_database_that_is_away_is_one_line_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app import wiring

    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", "postgresql+psycopg://user:hunter2@127.0.0.1:1/x")
    monkeypatch.setattr("app.cli.cycles.open_database", lambda settings, **_: wiring.open_database(settings, 0.0))
    monkeypatch.setattr(sys, "argv", ["flywheel", "cycles", "ls"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "did not answer" in told
    assert "hunter2" not in told


def test_what_names_a_row_can_be_copied_from_a_narrow_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was folded over two lines, and `flywheel cycles show` needs it whole."""
    monkeypatch.setenv("COLUMNS", "80")
    row = {"cycle": "20261127-155354-094b2e"} | {f"column {n}": "some words of its own" for n in range(6)}
    emit([row, row | {"cycle": "short"}], as_json=False)
    told = capsys.readouterr().out
    assert "20261127-155354-094b2e" in told
    assert max(map(len, told.splitlines())) <= 80
    long = "x" * 200
    emit([row | {"cycle": long}], as_json=False)
    assert capsys.readouterr().out.count("x") == 200, "nothing is cut off"


def test_a_terminal_does_not_obey_a_models_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    triggered("m\x1b[2J\x9b2J\u202e[red]x")
    shown = run("cycles", "ls").stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\\x1b" in shown.replace("\n", "")

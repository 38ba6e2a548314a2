"""`flywheel examples`, and the stop switch of `flywheel cycles`: what they print, change and exit with."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest
from example_parts import example
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.keys import key
from app.store import Database, examples, outbox
from models.example import Example, ExampleStatus
from otel.subject import SubjectTokenizer

PERSON = "ada@example.org"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The commands run on a database of the test's own."""
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", f"sqlite:///{tmp_path / 'test.db'}")
    monkeypatch.setenv("COLUMNS", "240")
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    token = SubjectTokenizer(key(None, Path("var"), "subject").encode()).token(PERSON)
    with database.write() as connection:
        examples.insert(connection, [stored(1, token), stored(2, token, model_id="other"), stored(3, None)])
    return database


def stored(number: int, subject: str | None, **changes: Any) -> Example:
    return example(number, subject_token=subject, prompt=f"question {number} \x1b[31m[b]", **changes)


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def run_json(*arguments: str) -> Any:
    return orjson.loads(run(*arguments, "--json").stdout)


def audited(database: Database) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [item.payload for item in outbox.pending(connection)]


def test_ls_shows_no_text_and_filters() -> None:
    rows = run_json("examples", "ls")
    assert [row["event"] for row in rows] == ["e3", "e2", "e1"]
    assert "question" not in str(rows)
    assert [row["event"] for row in run_json("examples", "ls", "--model", "other")] == ["e2"]
    assert run_json("examples", "ls", "--status", "used") == []
    assert run_json("examples", "ls", "--limit", "1")[0]["event"] == "e3"


def test_show_has_text_and_lineage_and_is_safe_on_a_terminal() -> None:
    name = f"{1:032x}"
    shown = run_json("examples", "show", name)
    assert shown["prompt"].startswith("question 1")
    assert shown["lineage"]["offset"] == 1
    assert shown["revisions"] == []
    told = run("examples", "show", name).output
    assert "\x1b" not in told
    assert "[b]" in told
    assert "no example 'x'" in run("examples", "show", "x", status=1).output


def test_an_export_with_text_is_audited_and_belongs_to_its_owner(database: Database, tmp_path: Path) -> None:
    bare, whole = tmp_path / "bare.jsonl", tmp_path / "whole.jsonl"
    run("examples", "export", str(bare))
    assert "question" not in bare.read_text()
    assert audited(database) == []
    assert "say who exports" in run("examples", "export", str(whole), "--text", status=1).output
    run("examples", "export", str(whole), "--text", "--by", "ann", "--model", "m")
    rows = [orjson.loads(line) for line in whole.read_bytes().splitlines()]
    assert [row["prompt"][:10] for row in rows] == ["question 3", "question 1"]
    assert stat.S_IMODE(whole.stat().st_mode) == 0o600
    [entry] = audited(database)
    assert entry["event_type"] == "examples_exported"
    assert entry["context"] == {"exported_by": "ann", "examples": 2, "domain": None, "model": "m"}
    assert "is there already" in run("examples", "export", str(whole), status=1).output


@pytest.mark.parametrize("as_token", [False, True])
def test_a_person_is_forgotten_by_id_or_token(database: Database, as_token: bool) -> None:
    with database.read() as connection:
        token = examples.get(connection, [f"{1:032x}"])[f"{1:032x}"].subject_token
    done = run_json("examples", "forget", "--subject", str(token) if as_token else PERSON, "--by", "ann")
    assert done["forgotten"] == 2
    with database.read() as connection:
        found = examples.search(connection, examples.Filter())
    assert [(one.event_id, one.status) for one in found if not one.prompt] == [
        ("e2", ExampleStatus.FORGOTTEN),
        ("e1", ExampleStatus.FORGOTTEN),
    ]
    again = run("examples", "forget", "--subject", PERSON, "--by", "ann", status=1)
    assert "nothing was changed" in again.output


def test_forget_says_what_it_needs(database: Database) -> None:
    assert "say what is to be forgotten" in run("examples", "forget", "--by", "ann", status=1).output
    both = ("examples", "forget", "--by", "ann", "--subject", "a", "--example", "b")
    assert "say what is to be forgotten" in run(*both, status=1).output
    assert "names nobody" in run("examples", "forget", "--by", "ann", "--subject", "[EMAIL]", status=1).output
    run("examples", "forget", "--subject", PERSON, "--by", " ", status=2)
    assert run_json("examples", "forget", "--example", f"{3:032x}", "--by", "ann")["forgotten"] == 1


def test_the_stop_switch_stops_at_once_and_resumes_once_audited(database: Database) -> None:
    run("cycles", "halt", "--by", "ann", "--comment", "a leak")
    refused = run("cycles", "trigger", "m", "--by", "bob", status=1).output
    assert "ann stopped them" in refused
    assert "a leak" in refused
    assert "ann stopped them" in run("cycles", "ls").output
    run("cycles", "resume", "--by", "eve")
    assert "until the audit engine knows" in run("cycles", "trigger", "m", "--by", "bob", status=1).output
    assert [entry["event_type"] for entry in audited(database)] == ["stop_switch", "stop_switch"]
    with database.write() as connection:
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])
    run("cycles", "trigger", "m", "--by", "bob")
    assert "cycles run already" in run("cycles", "resume", "--by", "eve", status=1).output

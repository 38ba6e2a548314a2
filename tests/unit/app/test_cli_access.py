"""`flywheel access`: tokens and people are made, listed and taken back, and each change is in the outbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.store import Database, access, outbox


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", f"sqlite:///{tmp_path / 'test.db'}")
    return Database(f"sqlite:///{tmp_path / 'test.db'}")


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ("access", *arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


def run_json(*arguments: str) -> Any:
    return orjson.loads(run(*arguments, "--json").stdout)


def test_from_making_a_token_to_taking_it_back(database: Database) -> None:
    made = run_json("token", "--person", "bob", "--role", "reviewer", "--domain", "medical", "--by", "ada")
    assert (made["person"], made["role"], made["domains"]) == ("bob", "reviewer", ["medical"])
    assert access.token_name(made["token"]) == made["name"]
    run("grant", "eve@corp", "--role", "viewer", "--by", "ada")
    rows = {row["name"]: row for row in run_json("ls")}
    assert {row["effect"] for row in rows.values()} == {"waits for the audit engine"}
    with database.write() as connection:
        waiting = outbox.pending(connection)
        assert [item.destination for item in waiting] == ["access_grant", "access_grant"]
        assert made["token"] not in str([item.payload for item in waiting])
        outbox.mark_delivered(connection, [item.seq for item in waiting])
    rows = {row["name"]: row for row in run_json("ls")}
    assert {row["effect"] for row in rows.values()} == {"in force"}
    assert rows["person:eve@corp"]["domains"] == ["*"]
    assert "opens nothing any more" in run("revoke", made["name"], "--by", "ada", "--comment", "left").stdout
    assert [row["name"] for row in run_json("ls")] == ["person:eve@corp"]
    with database.read() as connection:
        assert set(access.in_force(connection)) == {"person:eve@corp"}
    history = run_json("history")
    assert (history[0]["name"], history[0]["comment"]) == (made["name"], "left")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("token", "--person", " ", "--role", "viewer", "--by", "ada"), "person's name"),
        (("token", "--person", "bob", "--role", "viewer", "--by", "ada", "--days", "0"), "more than 0"),
        (("revoke", "token:none", "--by", "ada"), "nothing to take back"),
    ],
)
def test_what_is_refused_says_why(database: Database, arguments: tuple[str, ...], said: str) -> None:
    assert said in run(*arguments, status=2).output

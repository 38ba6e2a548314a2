"""`flywheel models` as an operator types it: what there is, who is champion, and how that changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from deciding_parts import Watch, opener
from registry_parts import BAD, GOOD, STATEMENT, trained
from typer.testing import CliRunner

from agents.training.adapter import ADAPTER_FILES, adapter_digest
from app.cli import models
from app.cli.main import cli
from app.store import Database, outbox, registry
from models.cycle import CycleState


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", url)
    monkeypatch.setenv("FLYWHEEL_DATA_DIR", str(tmp_path))
    made = Database(url)
    made.migrate()
    return made


@pytest.fixture
def who(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The watchers of the gate's real policies."""
    watch = Watch()
    monkeypatch.setattr(models, "decision_context", opener(watch))
    return watch


def run(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["models", *arguments])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if result.stdout else result.stderr


def promote(version: str, *more: str, by: str = "ann", status: int = 0) -> Any:
    return run("promote", version, "--by", by, "--comment", "better", "--json", *more, status=status)


def champion(database: Database) -> str | None:
    with database.read() as connection:
        found = registry.champion(connection, "m")
    return None if found is None else str(found.version_id)


def version(database: Database, folder: Path, **given: Any) -> str:
    with database.write() as connection:
        return trained(connection, folder, **given)


def test_a_version_is_promoted_through_gate_and_audit(database: Database, who: Watch, tmp_path: Path) -> None:
    first, second = version(database, tmp_path), version(database, tmp_path)
    done = promote(first)
    assert (done["champion"], done["replaced"]) == (first, "the base model")
    done = promote(second)
    assert (done["champion"], done["replaced"]) == (second, first)
    assert champion(database) == second
    assert who.decisions() == [("model_promotion", True)] * 2
    action, facts = who.asked[-1]
    assert action == "model_promotion"
    assert facts["evaluation"]["adherence"] == GOOD["adherence"]["candidate"]
    assert facts["privacy"] == {name: STATEMENT[name] for name in ("epsilon", "delta", "non_private")}
    assert (facts["approval"]["approved_by"], facts["approval"]["requested_by"]) == ("ann", "requester")
    assert who.entries[-1].entry_id == f"decision-{done['decision']}"
    with database.read() as connection:
        told = [item.payload for item in outbox.pending(connection, 1000) if item.destination == "deployment"]
    assert told[-1]["context"] == {
        "reason": "promoted by ann",
        "kind": "promotion",
        "deployed_by": "ann",
        "decision_id": done["decision"],
        "why": "better",
    }


def test_a_refusal_lists_what_fell_short_and_changes_nothing(database: Database, who: Watch, tmp_path: Path) -> None:
    few = GOOD["adherence"] | {"n": 99}
    refused = version(database, tmp_path, evaluation=BAD | {"adherence": few})
    told = promote(refused, status=1)
    assert not told["permitted"]
    assert {reason["code"] for reason in told["reasons"]} == {"evaluation_over_refusal", "evaluation_harmful_count"}
    assert champion(database) is None
    assert who.decisions() == [("model_promotion", False)]


def test_what_cannot_be_promoted(database: Database, who: Watch, tmp_path: Path) -> None:
    good = version(database, tmp_path)
    assert "requested cycle" in promote(good, by=" Requester ", status=1)
    assert "see `flywheel models ls`" in promote("nothing", status=1)
    assert "never evaluated" in promote(version(database, tmp_path, evaluation=None), status=1)
    waiting = version(database, tmp_path, model="n", state=CycleState.EVALUATING)
    assert f"flywheel cycles approve {waiting}" in promote(waiting, status=1)
    run("promote", good, "--by", " ", "--comment", "x", status=2)
    run("promote", good, "--by", "ann", "--comment", "two\nlines", status=2)
    assert who.asked == []
    promote(good)
    assert "is the champion of m already" in promote(good, status=1)


@pytest.mark.parametrize("trouble", ["audit_fails", "audit_engine", "policy_engine"])
def test_without_a_watcher_there_is_no_verdict(database: Database, who: Watch, tmp_path: Path, trouble: str) -> None:
    setattr(who, trouble, trouble == "audit_fails")
    promote(version(database, tmp_path), status=2)
    assert champion(database) is None
    run("rollback", "m", "--by", "ann", "--comment", "x", status=1)


def test_a_changed_adapter_is_neither_promoted_nor_exported(database: Database, who: Watch, tmp_path: Path) -> None:
    one = version(database, tmp_path)
    (tmp_path / one / "adapter" / ADAPTER_FILES[1]).write_bytes(b"other weights")
    assert "is not the one that was registered" in promote(one, status=1)
    assert who.asked == []
    assert "is not the one that was registered" in run("export", one, str(tmp_path / "out"), status=1)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*")), "nothing is left half written"
    (tmp_path / one / "adapter" / ADAPTER_FILES[1]).unlink()
    assert "holds no adapter_model.safetensors" in run("export", one, str(tmp_path / "out"), status=1)
    assert not (tmp_path / "out").exists()


def test_an_export_can_be_checked(database: Database, tmp_path: Path) -> None:
    one = version(database, tmp_path)
    out = tmp_path / "to" / "out"
    told = run("export", one, str(out), "--json")
    names = {f"adapter/{name}" for name in ADAPTER_FILES} | {"statement.json", "evaluation.json", "version.json"}
    assert set(told["files"]) == names | {"SHA256SUMS"}
    assert adapter_digest(out / "adapter") == told["digest"]
    assert json.loads((out / "statement.json").read_text())["epsilon"] == 4.0
    assert json.loads((out / "evaluation.json").read_text())["over_refusal"] == GOOD["over_refusal"]
    assert json.loads((out / "version.json").read_text())["version_id"] == one
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    assert "never overwrites" in run("export", one, str(out), status=1)
    assert "there is no version" in run("export", "nothing", str(tmp_path / "x"), status=1)


def test_a_rollback_returns_to_the_champion_before(database: Database, who: Watch, tmp_path: Path) -> None:
    first, second = version(database, tmp_path), version(database, tmp_path)
    promote(first)
    promote(second)
    assert run("show", second, "--json")["rollback_goes_to"] == first
    done = run("rollback", "m", "--by", "bob", "--comment", "complaints", "--json")
    assert (done["champion"], done["replaced"]) == (first, second)
    assert who.asked[-1][1]["rollback"] == {
        "trigger": "manual",
        "requested_by": "bob",
        "target_version": first,
        "target_was_champion": True,
    }
    shown = run("show", second, "--json")
    assert (shown["status"], shown["rolled_back_reason"]) == ("rolled_back", "rolled back by bob: complaints")
    assert "with --again" in promote(second, status=1)
    assert promote(second, "--again")["champion"] == second
    assert run("show", second, "--json")["status"] == "champion"
    run("rollback", "m", "--by", "bob", "--comment", "still", "--json")
    last = run("rollback", "m", "--by", "bob", "--comment", "and this one", "--json")
    assert last["champion"] == "the base model"
    assert "has no champion" in run("rollback", "m", "--by", "bob", "--comment", "more", status=1)


def test_a_rollback_that_cannot_wait_needs_no_verdict_but_the_audit_log(
    database: Database, who: Watch, tmp_path: Path
) -> None:
    one = version(database, tmp_path, state=CycleState.PROMOTED)
    who.policy_engine = False
    back = ("rollback", "m", "--by", "bob", "--comment", "it is harmful")
    run(*back, status=2)
    who.audit_fails = True
    run(*back, "--without-verdict", status=2)
    assert champion(database) == one
    who.audit_fails = False
    done = run(*back, "--without-verdict", "--json")
    assert (done["champion"], done["decision"]) == ("the base model", None)
    assert [entry.event_type for entry in who.entries] == ["rollback_without_verdict"]


def test_versions_are_listed(database: Database, who: Watch, tmp_path: Path) -> None:
    assert run("ls", "--json") == []
    first = version(database, tmp_path)
    second = version(database, tmp_path, state=CycleState.PROMOTED)
    other = version(database, tmp_path, model="n", state=CycleState.FAILED)
    listed = {row["version"]: row["status"] for row in run("ls", "--json")}
    assert listed == {first: "rejected", second: "champion", other: "failed"}
    assert [row["version"] for row in run("ls", "--model", "n", "--json")] == [other]
    table = CliRunner().invoke(cli, ["models", "ls"], env={"COLUMNS": "200"})  # a narrow one folds words
    assert table.exit_code == 0
    assert "champion" in table.stdout
    shown = run("show", second, "--json")
    assert [row["kind"] for row in shown["deployments"]] == ["promotion"]
    assert shown["deployments"][0]["watch"] is None
    assert "there is no version" in run("show", "nothing", status=1)

"""`flywheel audit`: what auditors run, and what they are told when something was done to the log."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from audit_logs import (
    DAY,
    DIGEST_KEY,
    LONG_AGO,
    SIGNING,
    Clock,
    fill,
    fill_and_seal,
    read_rows,
    recompute,
    rewrite,
    sealer,
    take_guards,
)
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.keys import key
from app.settings import SettingsError, load_settings
from app.wiring import audit_checkpoint, audit_config, audit_token
from policies.audit.engine import make_engine
from policies.audit.migrate import migrate
from policies.audit.seal import SigningKey, key_id
from policies.audit.store import AuditStore

SEED = bytes(range(32)).hex()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of the test's own, with the signing key of `audit_logs`."""
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FLYWHEEL_AUDIT_ENGINE__DATABASE_URL", f"sqlite:///{tmp_path}/data/audit.db")
    monkeypatch.setenv("FLYWHEEL_AUDIT_ENGINE__SIGNING_KEY", SEED)
    return tmp_path / "data"


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    url = load_settings().audit_engine.database_url
    migrate(url)
    made = make_engine(url)
    yield made
    made.dispose()


@pytest.fixture
def heads(folder: Path) -> Path:
    return folder / "audit-heads.jsonl"


@pytest.fixture
def log(engine: Engine, heads: Path) -> Engine:
    """Sealed at 4 and 8; entries 9 and 10 are not."""
    fill_and_seal(engine, heads, [4, 4])
    fill(AuditStore(engine, DIGEST_KEY), 2, first=9)
    return engine


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["audit", *arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_a_sound_log_and_its_unsealed_tail(log: Engine) -> None:
    shown = run("verify").stdout
    assert "sound" in shown
    assert "NOT" not in shown
    assert "entries 9 to 10" in " ".join(shown.replace("│", " ").split())
    report = orjson.loads(run("verify", "--json").stdout)
    assert (report["ok"], report["entries"], report["sealed_through"], report["unsealed"]) == (True, 10, 8, 2)


def test_a_changed_entry_is_one_line_and_status_1(log: Engine) -> None:
    take_guards(log)
    rows = read_rows(log)
    rewrite(log, [*rows[:5], {**rows[5], "model_id": "x"}, *rows[6:]])
    result = run("verify", status=1)
    assert "NOT SOUND" in result.stdout
    assert result.stderr.splitlines() == ["flywheel: entry 6 (e6) is changed: its fields do not match its digest"]
    assert orjson.loads(run("verify", "--json", status=1).stdout)["fault"]["seq"] == 6


def test_a_log_computed_anew_is_found_by_a_copy_of_the_heads(log: Engine, heads: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(heads.read_bytes())
    take_guards(log)
    rows = read_rows(log)
    rows = recompute([*rows[:5], {**rows[5], "model_id": "x"}, *rows[6:]], 5)
    rewrite(log, rows, (10, rows[-1]["digest"]))
    assert "entries 5 to 8 are not those that were sealed" in run("verify", status=1).stderr
    heads.unlink()
    assert "audit-heads.jsonl does not exist" in run("verify", status=1).stderr
    assert "entries 5 to 8" in run("verify", "--checkpoint", str(copy), status=1).stderr


def test_verifying_needs_no_secret(log: Engine, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "audit.pub"
    run("key", "--out", str(written))
    assert run("key").stdout.strip() == written.read_text().strip() == SIGNING.public.hex()
    shown = orjson.loads(run("key", "--json").stdout)
    assert shown == {"public_key": SIGNING.public.hex(), "key_id": key_id(SIGNING.public)}
    assert "exists already" in run("key", "--out", str(written), status=1).stderr
    monkeypatch.delenv("FLYWHEEL_AUDIT_ENGINE__SIGNING_KEY")
    assert "give --public-key" in run("verify", status=1).stderr
    assert not (heads.parent / "keys").exists(), "a check makes no key"
    run("verify", "--public-key", str(written))
    run("verify", "--public-key", SIGNING.public.hex())
    other = SigningKey(b"\x03" * 32).public.hex()
    assert "unknown key" in run("verify", "--public-key", other, status=1).stderr
    run("verify", "--public-key", other, "--public-key", str(written))
    assert "64 hex digits" in run("verify", "--public-key", "abc", status=1).stderr


def test_an_installations_own_key_is_used_where_none_is_set(
    engine: Engine, folder: Path, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLYWHEEL_AUDIT_ENGINE__SIGNING_KEY")
    own = key(None, folder, "audit-signing")
    seal = audit_config(load_settings()).seal
    assert seal is not None
    assert seal.signing_key.hex() == own
    fill_and_seal(engine, heads, [2])
    assert "unknown key" in run("verify", status=1).stderr
    monkeypatch.setenv("FLYWHEEL_AUDIT_ENGINE__RETIRED_PUBLIC_KEYS", f'["{SIGNING.public.hex()}"]')
    run("verify")


def test_an_export_is_verified_alone(log: Engine, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    told = run("export", "--out", str(file), "--from-seq", "3").stderr
    assert told == "entries 3 to 10, 2 signed heads; no head covers what comes after entry 8\n"
    assert run("export", "--from-seq", "3").stdout.splitlines()[1:] == file.read_text().splitlines()[1:]
    assert "exists already" in run("export", "--out", str(file), status=1).stderr
    assert "widen the range" in run("export", "--since", "2100-01-01", "--out", "none.jsonl", status=1).stderr
    assert not Path("none.jsonl").exists(), "no half of a file is left"
    assert "is no time" in run("export", "--until", "yesterday", status=2).stderr
    copy = shutil.copy(folder / "audit-heads.jsonl", tmp_path / "heads.jsonl")
    for name in ("audit.db", "audit-heads.jsonl"):
        (folder / name).unlink()
    report = orjson.loads(run("verify", "--export", str(file), "--json").stdout)
    assert (report["ok"], report["entries"], report["sealed_through"]) == (True, 8, 8)
    run("verify", "--export", str(file), "--checkpoint", str(copy))
    assert "does not exist" in run("verify", "--export", str(file), "--checkpoint", "none", status=1).stderr
    file.write_text(file.read_text().replace('"model_id":"m"', '"model_id":"x"', 1))
    assert "entry 3 (e3) is changed" in run("verify", "--export", str(file), status=1).stderr
    assert "No such file" in run("verify", "--export", "none.jsonl", status=1).stderr
    file.write_text("{}")
    assert "is no line of an export" in run("verify", "--export", str(file), status=1).stderr


def test_without_a_log_it_says_so(folder: Path) -> None:
    folder.mkdir()
    for command in ("verify", "export", "prune"):
        assert "there is no audit log at" in run(command, status=1).stderr
    assert list(folder.iterdir()) == []


@pytest.fixture
def old(engine: Engine, heads: Path) -> Engine:
    """Entries 1 to 3 of 2015 and 4 to 6 of today, all sealed."""
    clock = Clock(LONG_AGO)
    fill(AuditStore(engine, DIGEST_KEY, clock), 3)
    clock.now += DAY
    sealer(engine, heads, clock).seal()
    fill_and_seal(engine, heads, [3])
    return engine


def test_pruning(old: Engine) -> None:
    plan = orjson.loads(run("prune", "--dry-run", "--json").stdout)
    assert (plan["through"], plan["entries"], plan["pruned"]) == (3, 3, False)
    assert len(read_rows(old)) == 6
    now = datetime.now(UTC).isoformat()
    refused = run("prune", "--before", now, status=1).stderr
    assert "must be kept (2555 days)" in refused
    assert len(read_rows(old)) == 6
    done = orjson.loads(run("prune", "--by", "an auditor", "--json").stdout)
    assert (done["pruned"], done["through"]) == (True, 3)
    rows = read_rows(old)
    assert [row["seq"] for row in rows] == [4, 5, 6, 7]
    assert rows[-1]["entry_id"] == done["audit_entry"]
    assert orjson.loads(rows[-1]["body"])["context"]["by"] == "an auditor"
    report = orjson.loads(run("verify", "--json").stdout)
    assert (report["ok"], report["anchor"]["seq"], report["entries"]) == (True, 3, 4)
    again = orjson.loads(run("prune", "--json").stdout)
    assert (again["pruned"], again["entries"]) == (False, 0)


def test_a_longer_retention_is_kept(old: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_AUDIT_ENGINE__RETENTION_DAYS", "36500")
    assert orjson.loads(run("prune", "--json").stdout)["pruned"] is False
    assert "36500 days" in run("prune", "--before", "2016-01-01", status=1).stderr
    assert len(read_rows(old)) == 6


# --- the settings behind it --------------------------------------------------------------------------------------


def test_writers_and_engine_of_an_installation_share_a_token_of_its_own(folder: Path) -> None:
    settings = load_settings()
    assert settings.audit_engine.token is None
    assert audit_config(settings).token == audit_token(settings) == key(None, folder, "audit-token")
    assert len(audit_token(settings)) == 64
    given = load_settings({"FLYWHEEL_AUDIT_ENGINE__TOKEN": "hunter2", "FLYWHEEL_DATA_DIR": str(folder)})
    assert audit_config(given).token == audit_token(given) == "hunter2"


def test_where_signed_heads_lie(folder: Path) -> None:
    assert audit_checkpoint(load_settings()) == folder / "audit-heads.jsonl"
    given = load_settings({"FLYWHEEL_AUDIT_ENGINE__CHECKPOINT": "/mnt/heads.jsonl"})
    assert audit_checkpoint(given) == Path("/mnt/heads.jsonl")


@pytest.mark.parametrize("name", ["SIGNING_KEY", "RETIRED_PUBLIC_KEYS"])
def test_what_is_no_key_is_refused_by_the_settings_name(folder: Path, name: str) -> None:
    value = "hunter2" if name == "SIGNING_KEY" else '["hunter2"]'
    environment = {f"FLYWHEEL_AUDIT_ENGINE__{name}": value, "FLYWHEEL_DATA_DIR": str(folder)}
    with pytest.raises(SettingsError, match=f"audit_engine.{name.lower()}") as refused:
        audit_config(load_settings(environment))
    assert name != "SIGNING_KEY" or "hunter2" not in str(refused.value)

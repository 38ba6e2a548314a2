"""What docker/README.md says of backup, restore, loss of Redis and incidents, done as written, on a system at work."""

from __future__ import annotations

import json
import os
import re
import secrets as random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from ledger_parts import spend
from pipelines import Pipeline, Traffic
from services import REPOSITORY
from systems import cli, entries, running, wait_until

from app.embedded.postgres import PostgresServer
from app.roles import Role
from app.settings.export import to_environment
from app.store import Database, cycles, ledger, registry
from app.store.tables import ledger as ledger_table
from models.cycle import Cycle, TriggerType

README = REPOSITORY / "docker" / "README.md"
BLOCK = re.compile(r"<!-- executed: (.+?) -->\n```sh\n(.*?)```", re.DOTALL)
BLOCKS = dict(BLOCK.findall(README.read_text()))
SETTINGS = {"curation": {"min_examples": 100_000}}
ADAPTER = b"weights of the adapter"


@dataclass
class Installation:
    """A running system with databases of its own, and the shell that its operator has."""

    pipeline: Pipeline
    folder: Path
    server: PostgresServer | None

    @property
    def urls(self) -> list[str]:
        settings = self.pipeline.system.settings
        return [settings.database.url, settings.audit_engine.database_url]

    @property
    def artifacts(self) -> Path:
        return self.pipeline.system.settings.training.artifacts

    @property
    def heads(self) -> Path:
        return self.pipeline.system.settings.data_dir / "audit-heads.jsonl"

    def follow(self, block: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a block of the manual as it stands there."""
        store, log = self.urls
        given = {
            "DATABASE_URL": store,
            "AUDIT_DATABASE_URL": log,
            "AUDIT_HEADS": str(self.heads),
            "ARTIFACTS": str(self.artifacts),
            "BACKUPS": str(self.folder / "backups"),
        }
        path = f"{self._command()}:{os.environ['PATH']}"
        settings = to_environment(self.pipeline.system.settings)
        environment = {**os.environ, **settings, **given, **variables, "PATH": path}
        script = ["bash", "-euo", "pipefail", "-c", BLOCKS[block]]
        return subprocess.run(
            script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    def start(self) -> None:
        self.pipeline.system.start_engines(["audit-engine"])
        self.pipeline.system.start_workers([Role.ROUTE, Role.CURATE])

    def stop(self) -> None:
        for process in self.pipeline.system.processes.values():
            process.stop()
        self.pipeline.database.close()

    def lose(self) -> None:
        """All data are gone: both databases, the signed heads, the models, and Redis."""
        if self.server is None:
            for url in self.urls:
                path = Path(sa.make_url(url).database or "")
                for file in path.parent.glob(f"{path.name}*"):
                    file.unlink()
        else:
            remake(self.server, self.urls)
        self.heads.unlink()
        for file in sorted(self.artifacts.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        self.pipeline.system.stack.redis.stop()
        self.pipeline.system.stack.redis.start()

    def _command(self) -> Path:
        """A folder with a `flywheel` that runs this checkout."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "flywheel"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app "$@"\n')
        script.chmod(0o755)
        return folder


def remake(server: PostgresServer, urls: list[str], *, again: bool = True) -> None:
    """Empty databases of these names."""
    engine = sa.create_engine(server.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for url in urls:
            name = sa.make_url(url).database
            connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
            if again:
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    server: PostgresServer | None = None
    urls: list[str] = []
    changes = dict(SETTINGS)
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        mark = random.token_hex(4)
        urls = [server.url(f"store_{mark}"), server.url(f"audit_{mark}")]
        remake(server, urls)
        changes |= {"audit_engine": {"database_url": urls[1], "seal_interval_s": 1.0}}
    else:
        changes |= {"audit_engine": {"seal_interval_s": 1.0}}
    with running(tmp_path, "mock", urls[0] if urls else None, changes) as system:
        yield Installation(Pipeline(system, tmp_path), tmp_path, server)
    if server is not None:
        remake(server, urls, again=False)


def train(database: Database, artifacts: Path, steps: int) -> Cycle:
    """What a promoted cycle leaves: steps in the ledger, a version with its files, a deployment."""
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection,
            model_id="assistant",
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by="requester",
            facts={},
        )
        assert cycle is not None
        for _ in range(steps):
            spend(connection, cycle)
        where = artifacts / cycle.cycle_id
        where.mkdir(parents=True)
        (where / "adapter.safetensors").write_bytes(ADAPTER)
        row = {
            "version_id": f"{cycle.cycle_id}-v1",
            "model_id": "assistant",
            "cycle_id": cycle.cycle_id,
            "base_model": "SmolLM2-135M-Instruct",
            "path": str(where),
            "digest": "0" * 64,
            "statement": {},
        }
        registry.add_version(connection, row)
        registry.deploy(connection, "assistant", str(row["version_id"]), "promoted")
    return cycle


def spent(database: Database) -> list[tuple[object, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(ledger_table).order_by(ledger_table.c.seq))]


@pytest.mark.timeout(400)
def test_what_was_backed_up_comes_back_and_the_system_goes_on(installation: Installation) -> None:
    pipeline = installation.pipeline
    system = pipeline.system
    installation.start()
    before, after, later = Traffic("B", 4), Traffic("A", 3), Traffic("L", 2)
    pipeline.emit(before.events)
    wait_until(lambda: len(pipeline.stored()) == len(before.examples), "the first events are stored")
    cycle = train(pipeline.database, installation.artifacts, steps=5)
    wait_until(lambda: not pipeline.unsent(), "all is told")

    copied = installation.follow("back up")
    assert copied.returncode == 0, copied.stderr
    kept, ledger_kept = pipeline.stored(), spent(pipeline.database)
    assert len(ledger_kept) == 5

    # What comes after the copy is lost with the store, and is in Kafka still. Redis is away meanwhile: routing waits.
    system.stack.redis.kill()
    pipeline.emit(after.events)
    assert httpx.get(f"{system.url(Role.ROUTE)}/health/live", timeout=10.0, trust_env=False).is_success
    assert len(pipeline.stored()) == len(kept)
    system.stack.redis.start()
    wait_until(lambda: len(pipeline.stored()) == len(kept) + len(after.examples), "later events are stored")
    sealed = entries(system, "privacy_ledger")
    assert len(sealed) == 5
    installation.stop()
    refused = installation.follow("restore")
    assert refused.returncode != 0, "a restore must not overwrite"
    assert "is there already" in refused.stderr

    installation.lose()
    restored = installation.follow("restore")
    assert restored.returncode == 0, restored.stderr
    assert pipeline.stored() == kept
    assert spent(pipeline.database) == ledger_kept
    with pipeline.database.read() as connection:
        champion = registry.champion(connection, "assistant")
        assert champion is not None
        assert champion.cycle_id == cycle.cycle_id
        assert ledger.steps_of(connection, cycle.cycle_id) == 5
    assert (installation.artifacts / cycle.cycle_id / "adapter.safetensors").read_bytes() == ADAPTER

    installation.start()
    assert "operator stopped them" in cli(system, "cycles", "ls").stdout
    again = installation.follow("route again", SINCE="earliest")
    assert again.returncode == 0, again.stderr
    wait_until(lambda: len(pipeline.stored()) == len(kept) + len(after.examples), "what was lost is back, and once")
    resumed = installation.follow("resume")
    assert resumed.returncode == 0, resumed.stderr
    pipeline.emit(later.events)
    everything = len(kept) + len(after.examples) + len(later.examples)
    wait_until(lambda: len(pipeline.stored()) == everything, "new events are stored")

    verified = cli(system, "audit", "verify", "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["fault"] is None
    assert len(entries(system, "privacy_ledger")) == 5
    if installation.server is None:
        for block in ("dead letters", "privacy", "cycles"):
            shown = installation.follow(block)
            assert shown.returncode == 0, f"{block}: {shown.stderr}"


@pytest.mark.parametrize("installation", ["sqlite"], indirect=True)
def test_a_damaged_copy_is_refused(installation: Installation) -> None:
    installation.pipeline.system.start_engines(["audit-engine"])
    installation.pipeline.database.migrate()
    installation.artifacts.mkdir(parents=True, exist_ok=True)
    assert installation.follow("back up").returncode == 0
    assert installation.follow("back up").returncode != 0, "a copy must not be written over another"
    installation.stop()
    wait_until(lambda: installation.heads.exists(), "the log is sealed")
    installation.lose()
    store = installation.folder / "backups" / "today" / "store"
    store.write_bytes(store.read_bytes()[:-1] + b"\0\1")
    refused = installation.follow("restore")
    assert refused.returncode != 0
    assert "not whole" in refused.stderr
    assert not installation.heads.exists()


def test_the_manual_has_a_section_for_every_alert() -> None:
    text = README.read_text()
    alerts = {
        *("FlywheelConsumerLag", "FlywheelNoCommitProgress", "FlywheelDeadLetters", "FlywheelAdherenceLow"),
        *("FlywheelViolationsBurst", "FlywheelPrivacyBudget80", "FlywheelPrivacyBudget95", "FlywheelCycleStuck"),
        *("FlywheelEngineUnreachable", "FlywheelPiiDownstream"),
    }
    rules = REPOSITORY / "docker" / "prometheus" / "rules.yaml"
    if rules.exists():
        alerts |= set(re.findall(r"alert: (\w+)", rules.read_text()))
    assert not [name for name in sorted(alerts) if f"\n### {name}\n" not in text]

"""The mirror: what is left is shown, in order and once; away it catches up; event text stays here."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from example_parts import example
from registry_parts import GOOD, trained
from systems import wait_until

from agents.curation import manifest as snapshots
from agents.training.mirror import LEASE, MirrorAway, MirrorLost, RegistryMirror, VersionView
from app.store import Database, cycles, examples, leases, mirrored, registry
from app.store.registry import Authority, Kind
from models.cycle import CycleState


class Shown:
    """A mirror that remembers, and may be away."""

    def __init__(self) -> None:
        self.versions: list[tuple[str, str]] = []
        self.views: dict[str, VersionView] = {}
        self.aliases: dict[str, dict[str, Any]] = {}
        self.away = False
        self.broken: set[str] = set()
        self.lost = False

    def show_version(self, view: VersionView, remote: dict[str, Any]) -> dict[str, Any]:
        name = view.version.version_id
        if self.away:
            raise MirrorAway("nobody answers")
        if name in self.broken:
            raise ValueError("not this one")
        if self.lost and remote:
            raise MirrorLost("no such run")
        self.versions.append((name, view.status))
        self.views[name] = view
        return {"version": name} | remote

    def show_aliases(self, model_id: str, named: dict[str, dict[str, Any] | None]) -> None:
        if self.away:
            raise MirrorAway("nobody answers")
        self.aliases[model_id] = {alias: remote and remote["version"] for alias, remote in named.items()}


def mirror_of(database: Database, shown: Shown, artifacts: Path, name: str = "here") -> RegistryMirror:
    return RegistryMirror(lambda: database, lambda: shown, name, "worker", artifacts, interval_s=0.05, retry_s=0.2)


def roll_back(database: Database) -> None:
    with database.write() as connection:
        now, target = registry.current(connection, "m"), registry.rollback_target(connection, "m")
        assert now is not None
        assert target is not None
        registry.roll_back(connection, "m", target, "bad", Authority("a"), kind=Kind.WATCH, expected=now.seq)


def test_what_changes_is_shown_and_nothing_twice(database: Database, tmp_path: Path) -> None:
    shown = Shown()
    mirror = mirror_of(database, shown, tmp_path)
    assert mirror.show_left() == 0
    with database.write() as connection:
        first = trained(connection, tmp_path, state=CycleState.PROMOTED)
        second = trained(connection, tmp_path, state=CycleState.PROMOTED)
        waiting = trained(connection, tmp_path, state=CycleState.EVALUATING, evaluation=None)
    assert mirror.show_left() == 4
    assert shown.versions == [(first, "former"), (second, "champion"), (waiting, "candidate")]
    assert shown.aliases == {"m": {"champion": second, "candidate": waiting}}
    assert mirror.show_left() == 0
    with database.write() as connection:
        registry.set_evaluation(connection, waiting, GOOD)
    roll_back(database)
    assert mirror.show_left() == 4
    assert shown.versions[3:] == [(first, "champion"), (second, "rolled_back"), (waiting, "candidate")]
    assert shown.aliases == {"m": {"champion": first, "candidate": waiting}}
    roll_back(database)
    mirror.show_left()
    assert shown.aliases == {"m": {"champion": None, "candidate": waiting}}
    assert mirror.show_left() == 0


def test_another_mirror_is_shown_everything(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        trained(connection, tmp_path, state=CycleState.PROMOTED)
    assert mirror_of(database, Shown(), tmp_path).show_left() == 2
    other = Shown()
    assert mirror_of(database, other, tmp_path, "elsewhere").show_left() == 2
    assert len(other.versions) == 1


def test_a_mirror_that_is_away_catches_up(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = Shown()
    shown.away = True
    mirror = mirror_of(database, shown, tmp_path)
    with database.write() as connection:
        version = trained(connection, tmp_path, state=CycleState.PROMOTED)
    thread = threading.Thread(target=mirror.work)
    thread.start()
    try:
        wait_until(lambda: "waits: MirrorAway" in caplog.text, "it is away", 20)
        assert (mirror.counts["up"], mirror.counts["pending"]) == (0, 2)
        shown.away = False
        wait_until(lambda: mirror.counts["up"] and not mirror.counts["pending"], "it has caught up", 20)
    finally:
        mirror._stop.set()
        thread.join(20)
    assert shown.versions == [(version, "champion")]
    assert caplog.text.count("waits: MirrorAway") == 1, "told once, not with every attempt"
    with database.write() as connection:
        assert leases.acquire(connection, LEASE, "another", 1.0) is not None


def test_one_that_cannot_be_shown_does_not_hide_the_others(database: Database, tmp_path: Path) -> None:
    shown = Shown()
    mirror = mirror_of(database, shown, tmp_path)
    with database.write() as connection:
        first, second = (trained(connection, tmp_path, state=CycleState.PROMOTED) for _ in range(2))
        other = trained(connection, tmp_path, model="n", state=CycleState.PROMOTED)
    shown.broken = {second}
    with pytest.raises(RuntimeError, match=f"version {second}: ValueError"):
        mirror.show_left()
    assert {name for name, _ in shown.versions} == {first, other}
    assert shown.aliases == {"n": {"champion": other, "candidate": None}}, "never an alias of what is not there"
    shown.broken = set()
    assert mirror.show_left() == 2
    assert shown.aliases["m"] == {"champion": second, "candidate": None}


def test_a_mirror_that_lost_everything_is_filled_anew(database: Database, tmp_path: Path) -> None:
    shown = Shown()
    mirror = mirror_of(database, shown, tmp_path)
    with database.write() as connection:
        first, second = (trained(connection, tmp_path, state=CycleState.PROMOTED) for _ in range(2))
    mirror.show_left()
    shown.versions.clear()
    shown.lost = True
    roll_back(database)
    mirror.show_left()
    shown.lost = False
    mirror.show_left()
    assert dict(shown.versions) == {first: "champion", second: "rolled_back"}


def test_two_workers_do_not_mirror_at_once(database: Database, tmp_path: Path) -> None:
    shown = Shown()
    with database.write() as connection:
        trained(connection, tmp_path, state=CycleState.PROMOTED)
        assert leases.acquire(connection, LEASE, "another", 60.0) is not None
    assert mirror_of(database, shown, tmp_path).show_left() == 0
    assert shown.versions == []


def test_event_text_stays_here(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = 'the patient said "do not tell <anyone>"'
    shown = Shown()
    with database.write() as connection:
        version = trained(connection, tmp_path, state=CycleState.PROMOTED)
        told = example(1, prompt=secret)
        examples.insert(connection, [told])
        rules = snapshots.ManifestRules(b"key", 0.0, 0)
        manifest = snapshots.build(version, "default", [told], rules, lambda _: False, "c")
        cycles.save_manifest(connection, manifest, snapshots.manifest_digest(manifest))
        registry.set_evaluation(connection, version, GOOD | {"disagreements": [secret]})
    folder = tmp_path / version
    (folder / "report.md").write_text("adherence: 97 %")
    (folder / "report.json").write_text(json.dumps({"sample": secret}))
    (folder / "report.html").write_text("the patient said &quot;do not tell &lt;anyone&gt;&quot;")
    (folder / "samples.json").write_text("not a file of the report")
    mirror_of(database, shown, tmp_path).show_left()
    view = shown.views[version]
    assert [path.name for path in view.reports] == ["report.md"]
    assert not view.is_clean
    assert caplog.text.count("is not mirrored") == 3


def test_it_is_compared_not_counted(database: Database, tmp_path: Path) -> None:
    """What is left is the difference between the registry and what was shown, whatever was shown before."""
    with database.write() as connection:
        trained(connection, tmp_path, state=CycleState.PROMOTED)
        (version, aliases) = mirrored.left(connection, "a")
        mirrored.done(connection, aliases, {})
        assert [one.kind for one in mirrored.left(connection, "a")] == ["version"]
        mirrored.done(connection, version, {"version": 1})
        assert mirrored.left(connection, "a") == []
        assert mirrored.remote_of(connection, "version", version.name, "a") == {"version": 1}
        assert mirrored.remote_of(connection, "version", version.name, "b") == {}
        assert [one.remote for one in mirrored.left(connection, "b")] == [{}, {}]

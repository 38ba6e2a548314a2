"""Mirrors the registry into MLflow, in a thread of its own: it may be slow or away, and nothing waits for it.

SQL decides, MLflow shows. What is left to show follows from a comparison (`app/store/mirrored.py`), so a mirror that
was away catches up, and one that is emptied or exchanged is filled anew. Showing a thing again changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.settings.masking import hide_password
from app.store import Database, cycles, examples, leases, mirrored, registry
from app.store.database import DatabaseUnavailable
from app.store.leases import FenceLost, Lease
from app.store.mirrored import Left
from models.cycle import Cycle

logger = logging.getLogger(__name__)

LEASE = "mlflow-mirror"
LEASE_S = 300.0
REPORTS = ("report.md", "report.json", "report.html", "model_card.md")
"""Files of a cycle's folder that are shown beside the adapter, where they are."""
LEAST_TEXT = 24
"""Event texts shorter than this are not looked for: they stand in any text."""


class MirrorAway(RuntimeError):
    """The mirror does not answer."""


class MirrorLost(RuntimeError):
    """The mirror does not have what it had been shown."""


class _NotYet(RuntimeError):
    """Something else has to be shown first."""


@dataclass(frozen=True, slots=True)
class VersionView:
    """All that is shown of a version. `reports` are without event text; so is the evaluation where it `is_clean`."""

    version: sa.Row[Any]
    cycle: Cycle
    status: str
    reports: tuple[Path, ...] = ()
    is_clean: bool = True


class Mirror(Protocol):
    """Where the registry is shown. Raises `MirrorAway`, `MirrorLost`, or whatever else is wrong with one thing."""

    def show_version(self, view: VersionView, remote: dict[str, Any]) -> dict[str, Any]:
        """Show a version; returns what it is there, which comes back with the next call."""
        ...

    def show_aliases(self, model_id: str, named: dict[str, dict[str, Any] | None]) -> None:
        """Have each alias name the version that is this there, or none."""
        ...


class RegistryMirror:
    """Shows what is left, again and again."""

    def __init__(
        self,
        database: Callable[[], Database],
        open_mirror: Callable[[], Mirror],
        name: str,
        holder: str,
        artifacts: Path,
        *,
        interval_s: float,
        retry_s: float,
    ) -> None:
        """`name` tells mirrors apart (a URI); `database` and `open_mirror` are first called in the mirror's thread."""
        self._database = database
        self._open_mirror = open_mirror
        self._mirror: Mirror | None = None
        self._name = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._holder = holder
        self._artifacts = artifacts
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._stop = threading.Event()
        self._told: str | None = None
        self.counts: dict[str, int] = {"up": 0, "pending": 0, "shown": 0, "failed": 0}

    async def run(self) -> None:
        """Mirror until cancelled. The thread is left to itself then: it writes nothing that cannot be written again."""
        thread = threading.Thread(target=self.work, name="registry-mirror", daemon=True)
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stop.set()

    def work(self) -> None:
        """Mirror until stopped; blocks."""
        wait_s = self._interval_s
        while not self._stop.is_set():
            wait_s = self._interval_s if self._pass() else min(self._retry_s, 2 * wait_s)
            self._stop.wait(wait_s)
        self._release()

    def _pass(self) -> bool:
        try:
            self.show_left()
        except (MirrorAway, sa.exc.SQLAlchemyError, DatabaseUnavailable, FenceLost) as error:
            self.counts["up"] = 0
            self._tell(f"the registry's mirror waits: {type(error).__name__}: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - a mirror that ends is never seen again
            self.counts["up"] = 0
            self._tell(f"the registry's mirror failed and tries again: {type(error).__name__}: {error}")
            return False
        self.counts["up"] = 1
        if self._told is not None:
            logger.info("the registry's mirror has caught up")
            self._told = None
        return True

    def show_left(self) -> int:
        """Show all that is left; returns how much. Nothing while another worker mirrors. Raises `MirrorAway`."""
        database = self._database()
        with database.write() as connection:
            lease = leases.acquire(connection, LEASE, self._holder, LEASE_S)
            if lease is None:
                return 0
            remaining = mirrored.left(connection, self._name)
        self.counts["pending"] = len(remaining)
        # Only now: a worker that has nothing to show need not load the package.
        if remaining and self._mirror is None:
            self._mirror = self._open_mirror()
        failed: list[str] = []
        for one in remaining:
            if self._stop.is_set() or self._mirror is None:
                break
            try:
                self._show(database, self._mirror, one, lease)
            except (MirrorAway, sa.exc.SQLAlchemyError, FenceLost):
                raise
            except _NotYet:
                continue
            except MirrorLost as lost:
                logger.warning("the mirror has lost %s (%s): its model is shown anew", one.name, lost)
                self._forget(database, one)
            except Exception as error:  # noqa: BLE001 - one thing that cannot be shown must not hide the others
                failed.append(f"{one.kind} {one.name}: {type(error).__name__}: {error}")
            else:
                self.counts["shown"] += 1
                self.counts["pending"] -= 1
        if failed:
            self.counts["failed"] += len(failed)
            raise RuntimeError(f"{len(failed)} things could not be shown, the first: {failed[0]}")
        return len(remaining)

    def _show(self, database: Database, mirror: Mirror, one: Left, lease: Lease) -> None:
        with database.write() as connection:
            leases.renew(connection, lease, LEASE_S)
        if one.kind == mirrored.VERSION:
            with database.read() as connection:
                view = self._view(connection, one)
            remote = mirror.show_version(view, one.remote)
        else:
            with database.read() as connection:
                named = {
                    alias: None
                    if version_id is None
                    else mirrored.remote_of(connection, mirrored.VERSION, version_id, self._name)
                    for alias, version_id in one.showing.items()
                }
            if any(found == {} for found in named.values()):
                raise _NotYet
            mirror.show_aliases(one.name, named)
            remote = {}
        with database.write() as connection:
            mirrored.done(connection, one, remote)

    def _view(self, connection: Connection, one: Left) -> VersionView:
        version = registry.get(connection, one.name)
        cycle = None if version is None else cycles.get(connection, version.cycle_id)
        if version is None or cycle is None:
            raise RuntimeError(f"version {one.name} or its cycle is not in the store")
        texts = _event_texts(connection, version.cycle_id)
        folder = self._artifacts / version.cycle_id
        present = [folder / name for name in REPORTS if (folder / name).is_file()]
        clean = tuple(path for path in present if not _holds_text(path.read_text("utf-8", "replace"), texts))
        for path in set(present) - set(clean):
            logger.error("%s holds event text and is not mirrored", path)
        is_clean = not _holds_text(json.dumps(version.evaluation), texts)
        if not is_clean:
            logger.error("the evaluation of %s holds event text and is not mirrored", one.name)
        return VersionView(version, cycle, str(one.showing["status"]), clean, is_clean)

    def _forget(self, database: Database, one: Left) -> None:
        with database.write() as connection:
            if one.kind == mirrored.ALIASES:
                mirrored.forget(connection, one.name)
            elif (version := registry.get(connection, one.name)) is not None:
                mirrored.forget(connection, version.model_id)

    def _tell(self, message: str) -> None:
        """Once for each trouble, not with every attempt."""
        if message != self._told:
            logger.warning("%s", hide_password(message))
            self._told = message

    def _release(self) -> None:
        try:
            with self._database().write() as connection:
                leases.release_if_held(connection, LEASE, self._holder)
        except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
            logger.warning("the mirror's lease was not released: %s", type(error).__name__)


def _event_texts(connection: Connection, cycle_id: str) -> list[str]:
    """What must not leave with a report: the prompts and answers of the cycle's events."""
    try:
        manifest = cycles.get_manifest(connection, cycle_id)
    except sa.exc.NoResultFound:
        return []
    names = [member.example_id for member in (*manifest.members, *manifest.held_out)]
    stored = examples.get(connection, names)
    texts = {text for example in stored.values() for text in (example.prompt, example.response)}
    return [text for text in texts if len(text) >= LEAST_TEXT]


def _holds_text(content: str, texts: list[str]) -> bool:
    # As it stands, as in JSON, and as in HTML with and without its quotes escaped.
    return any(
        form in content
        for text in texts
        for form in {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text),
                     html.escape(text, quote=False)}
    )  # fmt: skip

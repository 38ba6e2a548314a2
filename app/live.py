"""Live settings on their way from SQL to the routers: copied to Redis, watched there, kept in a file.

SQL is the truth. The monitoring agent copies what is audited to one key in Redis (`LiveCopier`); each router polls that
key (`LiveWatcher`) and keeps the last it saw, also over a restart, while Redis is away or has lost its data.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from redis.asyncio import Redis, RedisCluster

from agents.cancellation import heed_cancellation
from agents.routing.classify import RoutingRules
from agents.routing.limits import DeadLetterLimits
from agents.routing.live import CATALOGUE, LiveValues, apply
from app.redis import REDIS_ERRORS, make_redis
from app.settings import Settings
from app.store import Database, live_settings
from app.store.database import DatabaseUnavailable
from models.event import Classification

KEY = "flywheel:live:routing"
"""The one key of the copy, so that it is read and replaced whole, on a Redis Cluster too."""

# Replaces what was read and nothing newer: a copier that was held up must not put an older revision back.
_REPLACE = """
local held = redis.call('GET', KEYS[1])
if (held or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

logger = logging.getLogger(__name__)

Client = Redis | RedisCluster


def configured_values(settings: Settings) -> LiveValues:
    """What is in force where nothing is set."""
    routing = settings.routing
    rules = RoutingRules(
        constitutional_hash=settings.constitution.hash,
        trigger_threshold=routing.trigger_threshold,
        routine_threshold=routing.routine_threshold,
        sample_rates={Classification.POLICY_EVALUATION: routing.policy_evaluation_sample_rate},
        dedup_ttl_s=routing.dedup_window_s,
    )
    limits = DeadLetterLimits(routing.dead_letters_max_share, routing.dead_letters_window, routing.dead_letters_max_run)
    return LiveValues(rules, routing.dedup_on_outage, limits)


@dataclass(frozen=True, slots=True)
class Document:
    """The copy: values by name as of a revision; 0 where nothing was ever set."""

    revision: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> bytes:
        """As JSON; equal documents give equal bytes."""
        return orjson.dumps(self.as_dict(), option=orjson.OPT_SORT_KEYS)

    def as_dict(self) -> dict[str, Any]:
        """As a dictionary that any JSON writer takes."""
        return {"revision": self.revision, "values": dict(self.values)}

    @classmethod
    def parse(cls, data: bytes | str) -> Document:
        """From `dump`; raises ValueError."""
        found = orjson.loads(data)
        revision, values = (found.get("revision"), found.get("values")) if isinstance(found, dict) else (None, None)
        if type(revision) is not int or revision < 0 or not isinstance(values, dict):
            raise ValueError("it is no object with a revision and values")
        return cls(revision, values)


class LiveCopier:
    """Keeps the copy in Redis equal to what is audited in SQL.

    Args:
        database: gives the store; called in a thread, may raise while the store is away.
        redis: takes the copy.
        poll_s: seconds between two looks at both.
    """

    def __init__(self, database: Callable[[], Database], redis: Client, poll_s: float = 1.0) -> None:
        self._database = database
        self._redis = redis
        self._poll_s = poll_s
        self._said = _Said()

    async def run(self) -> None:
        """Copy until cancelled; whatever is away is waited for."""
        while True:
            try:
                await self.copy_once()
                self._said(logging.INFO, "", "live settings are copied to Redis again")
            except REDIS_ERRORS as error:
                self._said(logging.WARNING, "redis", "live settings are not copied: Redis is away (%s)", _kind(error))
            except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
                self._said(logging.WARNING, "sql", "live settings are not copied: SQL is away (%s)", _kind(error))
            except Exception as error:  # noqa: BLE001 - a task that raised would end the worker
                self._said(logging.ERROR, "fault", "live settings are not copied: %s", _kind(error), fault=error)
            heed_cancellation()
            await asyncio.sleep(self._poll_s)

    async def copy_once(self) -> bool:
        """Put the copy right where it differs; whether this did. Raises what Redis and the store raise."""
        # Redis first: what is replaced is then never newer than what SQL said.
        held = await self._redis.get(KEY)
        audited = await asyncio.to_thread(self._read)
        document = Document(audited.revision, audited.values).dump()
        if held == document:
            return False
        return bool(await self._redis.eval(_REPLACE, 1, KEY, held or b"", document))

    def _read(self) -> live_settings.Audited:
        with self._database().read() as connection:
            return live_settings.audited(connection)


class LiveWatcher:
    """Tells a router what is in force, at its start and at each change.

    Args:
        redis: holds the copy.
        configured: what is in force where nothing is set.
        on_change: gets all values in force, in the event loop.
        path: the file that keeps the last revision seen; best effort, several workers may share it.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        redis: Client,
        configured: LiveValues,
        on_change: Callable[[LiveValues], None],
        path: Path,
        poll_s: float = 1.0,
    ) -> None:
        self._redis = redis
        self._configured = configured
        self._on_change = on_change
        self._path = path
        self._poll_s = poll_s
        self._document = Document()
        self._started = False
        self._said = _Said()

    def snapshot(self) -> dict[str, Any]:
        """`{"revision": n, "values": {...}}`: what is set, as this router has taken it over."""
        return self._document.as_dict()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Start, then watch for as long as the block lasts."""
        await self.start()
        task = asyncio.create_task(self.run(), name="live-settings")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def start(self) -> None:
        """Take over what the file kept, then what Redis holds, if it answers: before the first record is routed."""
        if not self._started:
            self._started = True
            await self._load()
            await self.poll()
            heed_cancellation()

    async def run(self) -> None:
        """Watch until cancelled; whatever is away is waited for."""
        await self.start()
        while True:
            await asyncio.sleep(self._poll_s)
            await self.poll()
            heed_cancellation()

    async def poll(self) -> None:
        """Look once and take over what is new. Never raises, but for cancellation."""
        stays = self._document.revision
        try:
            held = await self._redis.get(KEY)
            if held is None:
                self._said(logging.INFO, "absent", "Redis holds no live settings; revision %d stays in force", stays)
                return
            document = Document.parse(held)
            if document != self._document:
                self._take(document)
                await self._save(document)
            self._said(logging.INFO, "", "live settings are read from Redis again")
        except REDIS_ERRORS as error:
            what = "Redis cannot be asked for live settings (%s); revision %d stays in force"
            self._said(logging.WARNING, "away", what, _kind(error), stays)
        except ValueError as error:
            what = "Redis holds live settings that are none (%s); revision %d stays in force"
            self._said(logging.WARNING, f"unreadable: {error}", what, error, stays)
        except Exception as error:  # noqa: BLE001 - a task that raised would end the worker
            what = "live settings were not taken over (%s); revision %d stays in force"
            self._said(logging.ERROR, "fault", what, _kind(error), stays, fault=error)

    def _take(self, document: Document) -> None:
        known = {name: value for name, value in document.values.items() if name in CATALOGUE}
        in_force = apply(self._configured, known)
        self._on_change(in_force)
        self._document = document
        logger.info("live settings: revision %d is in force", document.revision, extra={"values": dict(known)})
        # A newer version's, in the midst of an upgrade: the others must not wait for it.
        unknown = sorted(set(document.values) - set(known))
        if unknown:
            named = ", ".join(unknown[:5])
            logger.warning("%d live settings unknown to this version are left out: %.200s", len(unknown), named)

    async def _load(self) -> None:
        try:
            self._take(Document.parse(await asyncio.to_thread(self._path.read_bytes)))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("the live settings kept in %s cannot be used: %s", self._path, error)

    async def _save(self, document: Document) -> None:
        try:
            await asyncio.to_thread(_replace_file, self._path, document.dump())
        except OSError as error:
            # Best effort: a restart while Redis is away then finds an older revision, or what is configured.
            logger.warning("live settings cannot be kept in %s: %s", self._path, error)


async def read_copy(settings: Settings) -> Document | None:
    """What Redis holds for the routers; None where it does not answer, or holds none."""
    client = make_redis(settings)
    try:
        held = await client.get(KEY)
        return None if held is None else Document.parse(held)
    except (*REDIS_ERRORS, ValueError):
        return None
    finally:
        await client.aclose()


class _Said:
    """Logs a state when it is entered, not again while it lasts. "" is the ordinary one."""

    def __init__(self) -> None:
        self._state = ""

    def __call__(self, level: int, state: str, message: str, *values: Any, fault: BaseException | None = None) -> None:
        if state != self._state:
            self._state = state
            logger.log(level, message, *values, exc_info=fault)


def _kind(error: BaseException) -> str:
    """An error's type alone: Redis' and SQL's texts may hold an address with its password."""
    return type(error).__name__


def _replace_file(path: Path, data: bytes) -> None:
    """Write a file such that a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

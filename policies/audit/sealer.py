"""Seals the log at intervals: checks what came since the last signed head, signs the newest entry, writes it outside.

A range that does not fit is never signed. Nor is anything after a last head that the log no longer agrees with: from
then on the sealer refuses, says so, and waits for somebody to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.audit import ChainHead, SignedHead
from policies.audit.chain import format_time
from policies.audit.checkpoint import CheckpointFile, open_checkpoint
from policies.audit.engine import transaction
from policies.audit.errors import AuditStoreUnavailable, SealBroken
from policies.audit.metrics import SEAL_FAILED, SEALED, AuditMetrics
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.store import Clock, utc_clock
from policies.audit.verify import digest_at, head_of, proven_anchor, verify_since

_LOG = logging.getLogger(__name__)

_REMEDY = "run `flywheel audit verify` and restore what was changed"


class Sealer:
    """Signs the newest entry into a checkpoint file. Synchronous; one thread at a time.

    Several processes may share the file; one that finds it in use leaves the sealing to the other.
    `written` gives the newest entry that this process knows to be durable: it must be in the log, sealed or not.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        key: SigningKey,
        keys: KeyRing,
        *,
        clock: Clock = utc_clock,
        written: Callable[[], ChainHead | None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._path = path
        self._key = key
        self._keys = keys
        self._clock: Clock = clock
        self._written = written
        self._seen: tuple[bytes, int] | None = None
        """The line that this sealer last saw at the end of the file, and where it ends."""

    def check(self) -> ChainHead:
        """From where the log is to be sealed: the last sealed head, if the log still agrees with it.

        Raises SealBroken; AuditStoreUnavailable and OSError where it cannot be told now.
        """
        with open_checkpoint(self._path) as file, transaction(self._engine) as connection:
            return self._start(connection, self._last(file))

    def seal(self) -> SignedHead | None:
        """Sign the newest entry; None where it is signed already. Raises as `check` does."""
        with open_checkpoint(self._path) as file:
            last = self._last(file)
            written = self._written()
            with transaction(self._engine) as connection:
                head = self._sound_head(connection, self._start(connection, last))
                self._expect(connection, written)
            if last is not None and last.seq == head.seq:
                return None
            if last is None and head.seq > 0:
                _LOG.warning(
                    "%s is new, and the audit log holds %d entries: if they were sealed before, restore the file",
                    self._path,
                    head.seq,
                )
            signed = self._key.seal(head, format_time(self._clock()), last)
            file.append(signed)
            self._seen = (file.last_line, file.size)
            return signed

    def _last(self, file: CheckpointFile) -> SignedHead | None:
        if self._seen is not None and not file.holds(*self._seen):
            raise SealBroken(f"the checkpoint file {self._path} was cut short or changed; {_REMEDY}")
        last = file.last
        if last is None:
            if file.last_line:
                raise SealBroken(f"the last line of the checkpoint file {self._path} is no signed head; {_REMEDY}")
            return None
        if (problem := self._keys.problem(last)) is not None:
            raise SealBroken(f"the last head in {self._path}, of entry {last.seq}, cannot be trusted: {problem}")
        self._seen = (file.last_line, file.size)
        return last

    def _start(self, connection: Connection, last: SignedHead | None) -> ChainHead:
        anchor, problem = proven_anchor(connection, self._keys, self._clock())
        if problem is not None:
            raise SealBroken(f"{problem}; {_REMEDY}")
        if last is None or last.seq < anchor.seq:
            return anchor
        if digest_at(connection, last.seq) != last.digest:
            raise SealBroken(
                f"entry {last.seq} of the audit log is not the one that was sealed at {last.sealed_at}; {_REMEDY}"
            )
        return ChainHead(seq=last.seq, digest=last.digest)

    def _expect(self, connection: Connection, written: ChainHead | None) -> None:
        if written is not None and digest_at(connection, written.seq) != written.digest:
            raise SealBroken(
                f"entry {written.seq} of the audit log is not the one that this engine has written; {_REMEDY}"
            )

    def _sound_head(self, connection: Connection, start: ChainHead) -> ChainHead:
        """The newest entry, once everything since the last signed one is found sound."""
        if head_of(connection) == start:
            return start
        report = verify_since(connection, start)
        if report.fault is not None or report.head is None:
            seq, found = (start.seq, "") if report.fault is None else (report.fault.seq, report.fault.detail)
            raise SealBroken(f"entry {seq} of the audit log does not fit, nothing is sealed: {found}; {_REMEDY}")
        return report.head


class SealLoop:
    """Seals when it starts, every `interval_s`, and when it stops. `start` and `stop` belong to one event loop."""

    def __init__(self, sealer: Sealer, metrics: AuditMetrics, interval_s: float) -> None:
        self._sealer = sealer
        self._metrics = metrics
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.broken: str | None = None
        """Why nothing is sealed any more; None as long as sealing goes on."""

    async def start(self) -> None:
        """Check that the log agrees with the last signed head, then begin to seal."""
        await self._guarded(self._check)
        self._task = asyncio.create_task(self._run(), name="audit-sealer")

    async def stop(self) -> None:
        """Seal what came last, then end. Call it once nothing is written any more."""
        if self._task is not None:
            self._stopping.set()
            await self._task

    async def _run(self) -> None:
        while True:
            await self._guarded(self._seal)
            if self._stopping.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._stopping.wait()

    def _check(self) -> None:
        last = self._sealer.check()
        self._metrics.sealed_through.set(last.seq)

    def _seal(self) -> None:
        signed = self._sealer.seal()
        if signed is not None:
            self._metrics.seals.labels(SEALED).inc()
            self._metrics.sealed_through.set(signed.seq)
            # The log of this service is a copy of the head elsewhere, where logs are shipped.
            _LOG.info("sealed the audit log at entry %d, digest %s", signed.seq, signed.digest)

    async def _guarded(self, work: Callable[[], None]) -> None:
        if self.broken is not None:
            _LOG.error("the audit log is not sealed any more: %s", self.broken)
            return
        try:
            await asyncio.to_thread(work)
        except SealBroken as error:
            self.broken = str(error)
            self._metrics.seal_broken.set(1)
            _LOG.error("the audit log is not sealed any more: %s", error)
        except BlockingIOError:
            _LOG.debug("another audit engine is sealing")
        except Exception as error:  # noqa: BLE001  whatever it is, the next time may succeed
            # Only our own messages and the system's are known to hold no password.
            cause = str(error) if isinstance(error, AuditStoreUnavailable | OSError) else type(error).__name__
            self._metrics.seals.labels(SEAL_FAILED).inc()
            _LOG.warning("the audit log was not sealed, next try in %g s: %s", self._interval_s, cause)

"""Walks cycles through their states, one worker a model at a time, from what SQL says. Free of Kafka and Faust."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator

import sqlalchemy as sa

from agents.training.child import JobFailed
from agents.training.context import StageContext
from agents.training.full_disk import DISK_FULL, is_disk_full
from agents.training.stages import STAGES
from app.store import cycles, leases, progress, switches
from app.store.leases import FenceLost, Lease
from app.store.ledger import domain_lease
from models.cycle import TERMINAL_STATES, Cycle, CycleState

logger = logging.getLogger(__name__)

# Errors by name, because a child's come as text. A transient one is asked again for as long as it lasts.
TRANSIENT = frozenset(
    {
        "AuditUnavailable",
        "BundleUnavailable",
        "ClusterUnavailable",
        DISK_FULL,
        "FenceLost",
        "Halted",
        "InterfaceError",
        "NotScheduled",
        "OperationalError",
        "PolicyEngineUnavailable",
        "StaleCycle",
        "StaleDeployment",
        "TeacherUnavailable",
        "WatcherAway",
    },
)
REFUSALS = frozenset({"BudgetUsedUp", "BudgetExhaustedError", "CohortClosed", "ManifestChanged"})
MAX_ATTEMPTS = 3
MAX_WAIT_S = 15.0
"""A transient fault is asked about again after twice the time of the last try, up to this."""


class CycleRunner:
    """Takes open cycles under their model's lease and advances each as far as it goes."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self._attempts: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()
        self._reached: dict[str, tuple[str, int] | None] = {}
        self._not_before: dict[str, float] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: a record said that something changed."""
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled; cancelling ends the child at work, and another worker goes on from there."""
        while True:
            self._wake.clear()
            try:
                await self.run_once()
            except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
                logger.warning("store unavailable, waiting: %s", type(error).__name__)
            except Exception:
                # A worker whose runner has ended looks alive and never works again.
                logger.exception("cycles could not be looked at, trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.context.config.poll_s)

    async def run_once(self) -> None:
        """Advance every open cycle whose model nobody else works on; none while the stop switch is on."""
        for seen in await asyncio.to_thread(self._open_cycles):
            if time.monotonic() < self._not_before.get(seen.cycle_id, 0.0):
                continue
            taken = await asyncio.to_thread(self._take, seen)
            if taken is None:
                continue
            cycle, lease = taken
            work = asyncio.create_task(self._advance(cycle))
            async with self._kept(lease, cycle, work):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(work)
                if not work.done():
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    raise asyncio.CancelledError

    async def _advance(self, cycle: Cycle) -> None:
        while cycle.state not in TERMINAL_STATES:
            with self.context.trace.stage(cycle) as stage:
                try:
                    following = await STAGES[cycle.state](self.context, cycle)
                except Exception as error:  # noqa: BLE001 - every kind is told apart by name, none is lost
                    stage.failed(error)
                    await self._handle(cycle, error)
                    return
                if following is None:
                    return
                stage.moved(following)
                self._waits.pop(cycle.cycle_id, None)
                logger.info("%s -> %s", cycle.state, following.state, extra={"cycle_id": cycle.cycle_id})
                cycle = following
        await asyncio.to_thread(self.context.trace.ended, cycle)

    async def _handle(self, cycle: Cycle, error: Exception) -> None:
        kind = _kind(error)
        if kind in TRANSIENT:
            self._waits[cycle.cycle_id] += 1
            wait_s = min(MAX_WAIT_S, self.context.config.poll_s * 2.0 ** self._waits[cycle.cycle_id])
            self._not_before[cycle.cycle_id] = time.monotonic() + wait_s
            logger.warning("%s, again in %.0f s: %s", kind, wait_s, error, extra={"cycle_id": cycle.cycle_id})
            return
        # Whoever gets further each time is not broken, however often something kills it.
        reached = await asyncio.to_thread(self._progress, cycle.cycle_id)
        if self._reached.get(cycle.cycle_id) != reached:
            self._attempts.pop(cycle.cycle_id, None)
        self._reached[cycle.cycle_id] = reached
        self._attempts[cycle.cycle_id] += 1
        if kind == "Died" and self._attempts[cycle.cycle_id] < MAX_ATTEMPTS:
            logger.warning("job died, trying again: %s", error, extra={"cycle_id": cycle.cycle_id})
            return
        refused = kind in REFUSALS
        logger.error("%s: %s", kind, error, extra={"cycle_id": cycle.cycle_id}, exc_info=not refused)
        ended = await asyncio.to_thread(self._conclude, cycle.cycle_id, kind, str(error), refused)
        if ended is not None:
            await asyncio.to_thread(self.context.trace.ended, ended)

    def _progress(self, cycle_id: str) -> tuple[str, int] | None:
        """Stage and count that the cycle's job told last."""
        with self.context.database.read() as connection:
            told = progress.get(connection, cycle_id)
        return None if told is None else (str(told["stage"]), int(told["done"]))

    def _conclude(self, cycle_id: str, kind: str, message: str, refused: bool) -> Cycle | None:
        with self.context.database.write() as connection:
            cycle = cycles.get(connection, cycle_id)
            if cycle is None or cycle.state in TERMINAL_STATES:
                return None
            reason = {"code": kind, "message": message}
            state = CycleState.REJECTED if refused else CycleState.FAILED
            return cycles.transition(connection, cycle, state, reason, reasons=(reason,))

    @contextlib.asynccontextmanager
    async def _kept(self, lease: Lease, cycle: Cycle, work: asyncio.Task[None]) -> AsyncIterator[None]:
        keeper = asyncio.create_task(self._keep(lease, cycle, work))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await asyncio.to_thread(self._release, lease, cycle)

    async def _keep(self, lease: Lease, cycle: Cycle, work: asyncio.Task[None]) -> None:
        """Renew the lease; stop the work when it is lost, the cycle was cancelled, or all cycles are stopped."""
        while True:
            await asyncio.sleep(self.context.config.lease_s / 4)
            try:
                going = await asyncio.to_thread(self._renew, lease, cycle)
            except FenceLost as lost:
                logger.warning("%s", lost, extra={"cycle_id": cycle.cycle_id})
                going = False
            except sa.exc.OperationalError as error:
                # The lease runs out by itself if this lasts; whoever takes it over raises the fence.
                logger.warning("lease not renewed: %s", type(error).__name__, extra={"cycle_id": cycle.cycle_id})
                continue
            if not going:
                work.cancel()
                return

    def _renew(self, lease: Lease, cycle: Cycle) -> bool:
        with self.context.database.write() as connection:
            leases.renew(connection, lease, self.context.config.lease_s)
            # The domain's lease is held only while training; renewing it is harmless otherwise.
            leases.extend_if_held(
                connection, domain_lease(cycle.domain), self.context.domain_holder(cycle), self.context.config.lease_s
            )
            current = cycles.get(connection, cycle.cycle_id)
            stopped = switches.halted(connection)
        if stopped is not None:
            logger.warning("stopped by %s; the cycle goes on after `flywheel cycles resume`", stopped.changed_by,
                           extra={"cycle_id": cycle.cycle_id})  # fmt: skip
            return False
        return current is not None and current.state is not CycleState.CANCELLED

    def _take(self, seen: Cycle) -> tuple[Cycle, Lease] | None:
        """The model's lease, and the cycle as it is now: others may have moved it on since it was `seen`.

        None while another worker has the model, or the stop switch is on.
        """
        with self.context.database.write() as connection:
            if switches.halted(connection) is not None:
                return None
            name = f"model:{seen.model_id}"
            lease = leases.acquire(connection, name, self.context.holder, self.context.config.lease_s)
            if lease is None:
                return None
            cycle = cycles.get(connection, seen.cycle_id)
            if cycle is None or cycle.state in TERMINAL_STATES:
                leases.release(connection, lease)
                return None
            return cycle, lease

    def _release(self, lease: Lease, cycle: Cycle) -> None:
        with contextlib.suppress(sa.exc.OperationalError), self.context.database.write() as connection:
            leases.release(connection, lease)
            if not self.context.is_left_at_work(cycle):
                leases.release_if_held(connection, domain_lease(cycle.domain), self.context.domain_holder(cycle))

    def _open_cycles(self) -> list[Cycle]:
        with self.context.database.read() as connection:
            if switches.halted(connection) is not None:
                return []
            return cycles.list_cycles(connection, open_only=True)


def _kind(error: Exception) -> str:
    if isinstance(error, JobFailed):
        return error.kind
    return DISK_FULL if is_disk_full(error) else type(error).__name__

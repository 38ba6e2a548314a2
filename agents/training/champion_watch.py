"""The watch over champions: one whose adherence falls below the gate's bound is rolled back by itself.

Curation counts what comes in (`app/store/watch.py`); here it is looked at. Bounds are the gate's own
(`watch_adherence`, `watch_min_evaluations`), and the gate has the word on every rollback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from agents.training.context import DecisionContext
from agents.training.promotion import Deployed, NotPromotable, NoVerdict, Refused, roll_back_watched
from app.store import leases, watch
from app.store.registry import StaleDeployment
from app.store.watch import Watched
from policies.clients.audit_client import AuditClientError

logger = logging.getLogger(__name__)

LEASE = "champion-watch"
BY = "watch"
"""Who deploys, in deployments and audit entries."""


class ChampionWatch:
    """Looks at what was seen of the champions, for as long as the worker lives.

    By lease one worker looks at a time. Two that do all the same change nothing twice: a rollback replaces just the
    deployment that was looked at.
    """

    def __init__(self, context: DecisionContext, holder: str) -> None:
        self._context = context
        self._holder = holder
        self._refused: dict[int, int] = {}
        """Deployments whose rollback the gate refused, and after how many evaluations: it is asked again after more."""

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except Exception as error:  # noqa: BLE001 - whatever it is, the next look asks again
                    logger.warning("champions could not be looked at: %s: %s", type(error).__name__, error)
                await asyncio.sleep(self._context.config.watch_s)
        finally:
            await asyncio.shield(asyncio.to_thread(self._release))

    async def look(self) -> list[Deployed]:
        """Roll back every champion that is below the bound; returns what was done."""
        seen = await asyncio.to_thread(self._seen)
        if not seen:
            return []
        bounds = await self._context.bounds()
        done = []
        for watched in seen:
            if _falls_short(watched, bounds) and watched.evaluations > self._refused.get(watched.deployment, -1):
                rolled_back = await self._roll_back(watched)
                if rolled_back is not None:
                    done.append(rolled_back)
        return done

    async def _roll_back(self, watched: Watched) -> Deployed | None:
        try:
            done = await roll_back_watched(self._context, watched, BY)
        except (StaleDeployment, NotPromotable) as stale:
            logger.info("%s", stale)
            return None
        except (NoVerdict, AuditClientError) as error:
            logger.error("champion %s of %s is below its bound and stays, for now: %s", watched.version_id,
                         watched.model_id, error)  # fmt: skip
            return None
        except Refused as refusal:
            self._refused[watched.deployment] = watched.evaluations
            logger.error("champion %s of %s is below its bound and stays: %s", watched.version_id, watched.model_id,
                         refusal)  # fmt: skip
            return None
        logger.error(
            "champion %s of %s rolled back to %s: adherence %.4f over %d evaluations",
            watched.version_id, watched.model_id, done.version_id or "the base model", watched.mean,
            watched.evaluations,
            extra={"alert": "champion_rolled_back", "model_id": watched.model_id, "decision_id": done.decision_id},
        )  # fmt: skip
        return done

    def _seen(self) -> list[Watched]:
        with self._context.database.write() as connection:
            ttl_s = max(30.0, 4 * self._context.config.watch_s)
            if leases.acquire(connection, LEASE, self._holder, ttl_s) is None:
                return []
            return watch.champions(connection)

    def _release(self) -> None:
        with contextlib.suppress(sa.exc.OperationalError), self._context.database.write() as connection:
            leases.release_if_held(connection, LEASE, self._holder)


def _falls_short(watched: Watched, bounds: Mapping[str, Any]) -> bool:
    """By the gate's bounds. Where they are no numbers, nothing is asked: the policies would refuse."""
    least, share = bounds.get("watch_min_evaluations"), bounds.get("watch_adherence")
    if isinstance(least, bool) or isinstance(share, bool):
        return False
    if not isinstance(least, int | float) or not isinstance(share, int | float):
        return False
    return watched.evaluations >= least and watched.mean < share

"""An engine whose policies and data may change between two decisions, for as long as the worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from models.decision import GateDecision
from policies.gate.bundle import BundleError, PolicyBundle
from policies.gate.interface import POLICY_REVISION, POLICY_UNAVAILABLE, PolicyEngine, undecided

CACHED_ACTIONS = frozenset({"model_inference"})
"""Actions that may be decided by data a moment old, and from the cache. All others are asked anew, by fresh data."""


class BundleUnavailable(RuntimeError):
    """The policies or their data cannot be had at the moment; the message says why. Nothing is decided meanwhile."""


class Present(Protocol):
    """Tells which bundle is in force."""

    async def __call__(self, *, fresh: bool) -> PolicyBundle:
        """The bundle in force; `fresh` reads its sources now instead of taking what was read a moment ago.

        Raises:
            BundleUnavailable: it cannot be had.
        """
        ...


@runtime_checkable
class Swappable(Protocol):
    """An engine that holds its bundle itself and can be given another."""

    def swap(self, bundle: PolicyBundle) -> None:
        """Put another bundle in force; raises `BundleError` and keeps the old one."""
        ...


class LiveEngine:
    """A `PolicyEngine` that decides only by the bundle in force.

    An engine that holds its bundle itself (regopy) is given the new one before it decides. One that loads it elsewhere
    (an OPA server that polls for it) may lag behind: what it decides by other revisions is no decision.
    """

    def __init__(self, engine: PolicyEngine, present: Present) -> None:
        self._engine = engine
        self._present = present
        self._held: PolicyBundle | None = None
        self._swapping = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._engine.name

    async def present(self, *, fresh: bool) -> PolicyBundle:
        """The bundle in force; raises `BundleUnavailable`."""
        return await self._present(fresh=fresh)

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """See `PolicyEngine.decide`."""
        try:
            bundle = await self._present(fresh=action not in CACHED_ACTIONS)
            await self._hold(bundle)
        except BundleUnavailable as error:
            return undecided(action, self.name, POLICY_UNAVAILABLE, str(error))
        except BundleError as error:
            message = f"The policies in force do not load: {error}."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        decision = await self._engine.decide(action, facts)
        wanted = (bundle.bundle_revision, bundle.data_revision)
        if decision.conclusive and (decision.bundle_revision, decision.data_revision) != wanted:
            message = (
                "The policy engine decided by other policies or data than those in force; it has yet to load them."
            )
            return undecided(action, self.name, POLICY_REVISION, message)
        return decision

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()

    async def _hold(self, bundle: PolicyBundle) -> None:
        if bundle is self._held or not isinstance(self._engine, Swappable):
            return
        async with self._swapping:
            if bundle is not self._held:
                # Compiling takes tens of milliseconds: too long for the loop.
                await asyncio.to_thread(self._engine.swap, bundle)
                self._held = bundle

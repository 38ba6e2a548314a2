"""What a policy engine is, and what it answers when the policy cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from models.decision import GateDecision, GateReason

POLICY_UNAVAILABLE = "policy_unavailable"
"""Code of a decision not had: the policy did not answer, or not in time. Ask again."""

POLICY_MALFORMED = "policy_malformed"
"""Code of a decision not had: the policy answered something else than a decision."""

POLICY_REVISION = "policy_revision"
"""Code of a decision not taken: other policies or other data decided than the ones asked for."""

FACTS_UNREADABLE = "facts_unreadable"
"""Code of a conclusive refusal: the facts are no JSON, so they prove nothing however often one asks."""


@runtime_checkable
class PolicyEngine(Protocol):
    """Decides actions from measured facts. Safe to share between tasks and threads."""

    @property
    def name(self) -> str:
        """Name of the engine, as decisions carry it."""
        ...

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """Decide `action` from `facts`; the policies document which facts each action needs.

        Never raises for the policy's sake: one that is unreachable, slow or malformed gives a decision that permits
        nothing and is not `conclusive`. Cancellation passes through.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections. The engine decides nothing afterwards."""
        ...


def undecided(action: str, engine: str, code: str, message: str) -> GateDecision:
    """A decision that could not be had: permits nothing and is no verdict."""
    return GateDecision(
        action=action,
        allow=False,
        conclusive=False,
        reasons=(GateReason(code=code, message=message),),
        lane="slow",
        bundle_revision=None,
        data_revision=None,
        engine=engine,
    )

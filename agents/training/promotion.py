"""Who is champion, decided: promotion and rollback by a person's word or by the watch, through the gate.

The audit log has the gate's decision before anything is deployed. A deployment replaces just the one that was looked
at: whoever comes second is told so, and nothing of theirs takes effect. Where the gate does not answer nothing is
promoted; a person may still step back, which the audit log has to know first.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from agents.training import facts
from agents.training.adapter import require_digest
from agents.training.context import DecisionContext
from app.store import alerts, cycles, registry, teacher_usage
from app.store.registry import Authority, Kind, Target
from app.store.watch import Watched
from models.audit import AuditEntry
from models.cycle import TERMINAL_STATES, Cycle
from models.decision import GateDecision


class NotPromotable(RuntimeError):
    """There is nothing to ask the gate about; the message says why and what to do."""


class Refused(RuntimeError):
    """The gate refused. `reasons` are what fell short, by code."""

    def __init__(self, what: str, decision: GateDecision) -> None:
        self.reasons = [reason.model_dump() for reason in decision.reasons]
        super().__init__(f"the gate does not permit {what}: " + " ".join(reason["message"] for reason in self.reasons))


class NoVerdict(RuntimeError):
    """The gate or one of the watchers could not be asked: nothing was decided and nothing changed. Ask again."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What came of it. `version_id` and `replaced` are None for the base model, `decision_id` where no gate spoke."""

    model_id: str
    version_id: str | None
    replaced: str | None
    deployment: int
    decision_id: str | None


@dataclass(frozen=True, slots=True)
class _Promotion:
    version: Any
    cycle: Cycle
    replaces: int
    replaced: str | None
    teacher_used: bool


async def promote(context: DecisionContext, version_id: str, *, by: str, comment: str, again: bool = False) -> Deployed:
    """Make a version the champion by a named person's word, where the gate permits it by what is stored of it.

    `again`: also one that was rolled back. Raises `NotPromotable`, `Refused`, `NoVerdict`,
    `agents.training.adapter.AdapterError`, `app.store.registry.StaleDeployment`, and what the audit client raises.
    """
    found = await asyncio.to_thread(_promotion, context, version_id, by, again)
    version, cycle = found.version, found.cycle
    # Nothing says that the artifacts are as they were when they were evaluated.
    await asyncio.to_thread(require_digest, Path(version.path), version.digest)
    measured = facts.promotion_facts(
        context.config,
        version.evaluation,
        version.statement,
        await _watchers(context),
        facts.spoken_for(cycle, by),
        found.teacher_used,
    )
    decision = await _verdict(context, cycle, "model_promotion", measured, f"the promotion of {version_id}")

    def deploy() -> int:
        with context.database.write() as connection:
            return registry.deploy(
                connection,
                version.model_id,
                version_id,
                f"promoted by {by}",
                Authority(by, comment, decision.decision_id),
                expected=found.replaces,
            )

    seq = await asyncio.to_thread(deploy)
    return Deployed(version.model_id, version_id, found.replaced, seq, decision.decision_id)


async def roll_back(
    context: DecisionContext,
    model_id: str,
    *,
    by: str,
    comment: str,
    champion: str | None = None,
    without_verdict: bool = False,
) -> Deployed:
    """Return to the champion before, by a named person's word. Raises as `promote` does.

    `champion`: which version is to go, where the person looked at one. `without_verdict`: go ahead where the gate gives
    none, for a bad model must not serve on because a service is away; what the gate refuses stays refused.
    """
    deployed, cycle, target = await asyncio.to_thread(_rollback, context, model_id)
    if champion is not None and champion != deployed.version_id:
        raise registry.StaleDeployment(f"{deployed.version_id} serves {model_id} now, not {champion}: look again")
    grounds = {"trigger": "manual", "requested_by": by}
    try:
        decision_id: str | None = (await _ask_rollback(context, cycle, grounds, target)).decision_id
    except NoVerdict as none:
        if not without_verdict:
            raise
        told = {"requested_by": by, "why": comment, "rolled_back": deployed.version_id, "returns_to": target.name}
        await context.audit.log(_unheard(context, cycle, told | {"no_verdict": str(none)}))
        decision_id = None
    authority = Authority(by, comment, decision_id)

    def deploy() -> int:
        with context.database.write() as connection:
            reason = f"rolled back by {by}" + (f": {comment}" if comment else "")
            return registry.roll_back(
                connection, model_id, target, reason, authority, kind=Kind.ROLLBACK, expected=deployed.seq
            )

    seq = await asyncio.to_thread(deploy)
    return Deployed(model_id, target.version_id, deployed.version_id, seq, decision_id)


async def roll_back_watched(context: DecisionContext, watched: Watched, by: str) -> Deployed:
    """Return to the champion before, because of what the watch saw of the present one. Raises as `promote` does."""
    deployed, cycle, target = await asyncio.to_thread(_rollback, context, watched.model_id)
    if deployed.seq != watched.deployment:
        raise registry.StaleDeployment(f"deployment {watched.deployment} of {watched.model_id} is no longer in force")
    measured = {"adherence": watched.mean, "n_evaluations": watched.evaluations}
    decision = await _ask_rollback(context, cycle, {"trigger": "watch", **measured}, target)
    reason = f"adherence {watched.mean:.4f} over {watched.evaluations} evaluations since {watched.since}"

    def deploy() -> int:
        with context.database.write() as connection:
            seq = registry.roll_back(
                connection,
                watched.model_id,
                target,
                reason,
                Authority(by, decision_id=decision.decision_id),
                kind=Kind.WATCH,
                expected=watched.deployment,
                measured=measured,
            )
            alerts.add(
                connection,
                alerts.CHAMPION_ROLLED_BACK,
                f"{watched.model_id}: {watched.version_id} was rolled back to {target.name}: {reason}",
                severity="critical",
                model_id=watched.model_id,
                detail={
                    "rolled_back": watched.version_id,
                    "returned_to": target.name,
                    "deployment": seq,
                    "decision_id": decision.decision_id,
                    **measured,
                },
            )
            return seq

    seq = await asyncio.to_thread(deploy)
    return Deployed(watched.model_id, target.version_id, watched.version_id, seq, decision.decision_id)


def _promotion(context: DecisionContext, version_id: str, by: str, again: bool) -> _Promotion:
    with context.database.read() as connection:
        version = registry.get(connection, version_id)
        if version is None:
            raise NotPromotable(f"there is no version {version_id!r}: see `flywheel models ls`")
        cycle = _cycle(connection, version)
        deployed = registry.current(connection, version.model_id)
        used = bool(teacher_usage.of_cycle(connection, cycle.cycle_id))
    replaced = None if deployed is None else deployed.version_id
    if by.strip().casefold() == cycle.requested_by.strip().casefold():
        raise NotPromotable(f"{by} requested cycle {cycle.cycle_id} and cannot promote what it made: ask another")
    if replaced == version_id:
        raise NotPromotable(f"{version_id} is the champion of {version.model_id} already")
    if cycle.state not in TERMINAL_STATES:
        raise NotPromotable(
            f"cycle {cycle.cycle_id} of this version is still open ({cycle.state}): wait for its end, or decide with "
            f"`flywheel cycles approve {cycle.cycle_id}`"
        )
    if not version.evaluation:
        raise NotPromotable(f"{version_id} was never evaluated ({cycle.state}): nothing can be said for it")
    if version.evaluation.get("adapter_digest", version.digest) != version.digest:
        raise NotPromotable(f"the evaluation of {version_id} is of another adapter than the registered one")
    if version.rolled_back_at is not None and not again:
        raise NotPromotable(
            f"{version_id} was rolled back at {version.rolled_back_at} ({version.rolled_back_reason}): "
            "promote another version, or this one once more with --again (on the page: also one that was rolled back)"
        )
    return _Promotion(version, cycle, 0 if deployed is None else int(deployed.seq), replaced, used)


def _rollback(context: DecisionContext, model_id: str) -> tuple[Any, Cycle, Target]:
    with context.database.read() as connection:
        deployed = registry.current(connection, model_id)
        champion = registry.champion(connection, model_id)
        target = registry.rollback_target(connection, model_id)
        if deployed is None or champion is None or target is None:
            raise NotPromotable(f"{model_id} has no champion: its base model serves, and nothing is before it")
        return deployed, _cycle(connection, champion), target


def _cycle(connection: Connection, version: Any) -> Cycle:
    cycle = cycles.get(connection, version.cycle_id)
    if cycle is None:
        raise RuntimeError(f"version {version.version_id} names a cycle that is not there: {version.cycle_id}")
    return cycle


async def _ask_rollback(
    context: DecisionContext, cycle: Cycle, grounds: dict[str, Any], target: Target
) -> GateDecision:
    # What was deployed before was champion, and so was the base model before the first version.
    rollback = {**grounds, "target_version": target.name, "target_was_champion": True}
    measured = facts.rollback_facts(context.config, rollback, await _watchers(context))
    return await _verdict(context, cycle, "model_rollback", measured, f"the rollback of {cycle.model_id}")


def _unheard(context: DecisionContext, cycle: Cycle, told: dict[str, Any]) -> AuditEntry:
    """What the audit log has to hold before a person steps back without the gate's word."""
    return AuditEntry(
        entry_id=f"without-verdict-{uuid.uuid4().hex}",
        event_type="rollback_without_verdict",
        constitutional_hash=context.config.constitutional_hash,
        model_id=cycle.model_id,
        cycle_id=cycle.cycle_id,
        domain=cycle.domain,
        context=told,
    )


async def _verdict(
    context: DecisionContext, cycle: Cycle, action: str, measured: dict[str, Any], what: str
) -> GateDecision:
    decision = await context.decide(cycle, action, measured)
    if not decision.conclusive:
        raise NoVerdict(f"the gate gave no verdict on {what}: {decision.reasons[0].message} Ask again")
    if not decision.allow:
        raise Refused(what, decision)
    return decision


async def _watchers(context: DecisionContext) -> facts.Watchers:
    watchers = await context.probe()
    if not (watchers.policy_engine and watchers.audit_engine):
        away = "policy engine" if not watchers.policy_engine else "audit engine"
        raise NoVerdict(f"the {away} is not ready: nothing was decided and nothing changed; ask again when it is")
    return watchers

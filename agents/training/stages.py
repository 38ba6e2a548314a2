"""One function a state: it does the state's work and moves the cycle on, or returns None to wait and be asked again.

A stage may be cut off anywhere and run again by another worker: what it has written is keyed, and the transition at
its end is compare-and-set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.engine import Connection

from agents.curation import manifest as snapshots
from agents.training import export, facts, planning
from agents.training.child import JobFailed
from agents.training.context import StageContext
from app.store import approvals, cohorts, cycles, examples, leases, ledger, registry, revisions, teacher_usage
from models.cycle import Cycle, CycleState, TrainingPlan
from models.decision import GateDecision
from models.example import ExampleStatus
from policies.gate.live import BundleUnavailable

logger = logging.getLogger(__name__)

Stage = Callable[[StageContext, Cycle], Awaitable[Cycle | None]]


class WatcherAway(RuntimeError):
    """The policy engine or the audit engine does not answer. Nothing is decided; the cycle waits and asks again."""


async def start(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`proposed`: nothing to do but begin."""
    return await _move(context, cycle, CycleState.PREPARING)


async def prepare(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`preparing`: snapshot the waiting examples."""
    config = context.config
    rules = snapshots.ManifestRules(
        digest_key=config.digest_key.encode(),
        held_out_share=config.held_out_share,
        public_benign=context.public_training,
        class_shares=config.class_shares,
        near_duplicate=config.near_duplicate,
    )

    left_out_for_pii: list[str] = []

    def snapshot() -> Cycle:
        with context.database.write() as connection:
            cohort = cohorts.current(connection, cycle.domain)
            # Raises where the cohort's budget is used up: no text need be revised then.
            planning.epsilon_target(config, len(ledger.trained_cycles(connection, cycle.domain, cohort)))
            waiting = examples.waiting(connection, cycle.model_id, cycle.domain)
            manifest = snapshots.build(
                cycle.cycle_id,
                cycle.domain,
                waiting,
                rules,
                context.has_pii,
                context.constitution_digest,
                examples.trained_prompts(connection, cycle.domain),
                cohort,
                cohorts.units_of_earlier(connection, cycle.domain),
            )
            left_out = manifest.excluded_examples
            left_out_for_pii[:] = left_out.get(snapshots.RESIDUAL_PII, ())
            held_out = [member.example_id for member in manifest.held_out]
            held_out += left_out.get(snapshots.NEAR_DUPLICATE, ())
            # They stay held out whatever becomes of this cycle: a prompt's side of the split never changes.
            examples.mark(connection, held_out, ExampleStatus.HELD_OUT, cycle.cycle_id)
            for_good = [name for reason in snapshots.FOR_GOOD for name in left_out.get(reason, ())]
            examples.mark(connection, for_good, ExampleStatus.EXCLUDED, cycle.cycle_id)
            if not manifest.members:
                return cycles.transition(
                    connection,
                    cycle,
                    CycleState.REJECTED,
                    {"excluded": manifest.excluded},
                    reasons=(_reason("no_examples", "No waiting example may be trained on."),),
                )
            digest = snapshots.manifest_digest(manifest)
            cycles.save_manifest(connection, manifest, digest)
            counts = {"members": len(manifest.members), "held_out": len(manifest.held_out)}
            return cycles.transition(
                connection,
                cycle,
                CycleState.REVISING,
                counts | {"excluded": manifest.excluded},
                manifest_digest=digest,
                facts=cycle.facts | counts,
            )

    following = await asyncio.to_thread(snapshot)
    context.at_work.found_pii(len(left_out_for_pii))
    return following


async def revise(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`revising`: critique and revision in a child, by a teacher where the gate permits it; then the gate."""
    watchers = await _watchers(context)
    specification: dict[str, Any] = {}
    teacher = context.config.teacher
    if teacher is not None:
        asked = await export.ask(context, cycle, teacher, watchers)
        if not asked.decision.conclusive:
            return None
        if asked.decision.needs_approval:
            detail = {"decision_id": asked.decision.decision_id, "teacher": teacher.url, "model": teacher.model}
            waiting = cycle.facts | {"teacher": asked.waiting(teacher)}
            return await _move(
                context, cycle, CycleState.AWAITING_APPROVAL, detail, plan_digest=asked.digest, facts=waiting
            )
        if not asked.decision.allow:
            return await _refuse(context, cycle, asked.decision)
        specification["teacher"] = {"decision_id": asked.decision.decision_id}
    summary = await context.job(cycle, "revise", specification)
    revised = cycle.model_copy(update={"facts": cycle.facts | {"revision": summary}})
    return await _gate_fine_tuning(context, revised)


async def await_approval(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`awaiting_approval`: look for a reviewer's decision on this very plan, or on sending text to a teacher."""
    decision = await asyncio.to_thread(_latest_approval, context, cycle)
    if decision is None:
        return None
    if facts.is_expired(decision):
        reason = _reason("approval_expired", f"The decision of {decision.reviewer} has expired.")
        return await _move(context, cycle, CycleState.REJECTED, reasons=(reason,))
    if not decision.approved:
        what = "sending text to the teacher" if export.awaited(cycle) else "the plan"
        reason = _reason("approval_refused", f"{decision.reviewer} rejected {what}: {decision.comment}")
        return await _move(context, cycle, CycleState.REJECTED, reasons=(reason,))
    if export.awaited(cycle):
        told = cycle.facts["teacher"] | {"awaits": False, "approved_by": decision.reviewer}
        return await _move(context, cycle, CycleState.REVISING, facts=cycle.facts | {"teacher": told})
    return await _gate_fine_tuning(context, cycle)


async def train(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`approved`: under the domain's lease, plan and ask anew, then begin to train."""
    lease = await asyncio.to_thread(_take_domain, context, cycle)
    if lease is None:
        return None
    plan, cost = await asyncio.to_thread(_plan, context, cycle)
    decision, digest = await _ask_fine_tuning(context, cycle, plan, cost)
    if not decision.conclusive:
        return None
    if not decision.allow:
        return await _refuse(context, cycle, decision)
    _warn_of_budget(context, cycle, cost.epsilon_after, "after this cycle")
    detail = {"lane": decision.lane, "decision_id": decision.decision_id, "noise_multiplier": cost.noise_multiplier}
    return await _move(context, cycle, CycleState.TRAINING, detail, plan=plan, plan_digest=digest)


async def run_training(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`training`: DP LoRA in a job that reserves each step in the ledger under the domain's lease."""
    lease = await asyncio.to_thread(_take_domain, context, cycle)
    if lease is None:
        return None
    result = await context.job(
        cycle, "train", {"lease": {"name": lease.name, "holder": lease.holder, "fence": lease.fence}}
    )

    _warn_of_budget(context, cycle, result["statement"]["epsilon"], "now")

    def finish() -> Cycle:
        with context.database.write() as connection:
            registry.add_version(
                connection,
                {
                    "version_id": cycle.cycle_id,
                    "model_id": cycle.model_id,
                    "cycle_id": cycle.cycle_id,
                    "base_model": result["base_model"],
                    "path": result["path"],
                    "digest": result["digest"],
                    "statement": result["statement"],
                },
            )
            _mark_members(connection, cycle.cycle_id)
            leases.release(connection, lease)
            return cycles.transition(
                connection,
                cycle,
                CycleState.EVALUATING,
                {"adapter_digest": result["digest"], "privacy": result["statement"]},
                facts=cycle.facts | {"training": result["training"], "privacy": result["statement"]},
            )

    return await asyncio.to_thread(finish)


def _warn_of_budget(context: StageContext, cycle: Cycle, epsilon: float, when: str) -> None:
    warning = planning.budget_warning(epsilon, context.config.privacy.epsilon)
    if warning is not None:
        of_cycle = {"cycle_id": cycle.cycle_id, "domain": cycle.domain}
        logger.warning("privacy of domain %s, %s: %s", cycle.domain, when, warning, extra=of_cycle)


def _mark_members(connection: Connection, cycle_id: str) -> None:
    """What was trained on is used; what no round made compliant is left out for good."""
    finished = revisions.finished(connection, cycle_id)
    members = [member.example_id for member in cycles.get_manifest(connection, cycle_id).members]
    used = [name for name in members if name in finished and revisions.usable(finished[name])]
    examples.mark(connection, used, ExampleStatus.USED, cycle_id)
    rest = [name for name in members if name in finished and not revisions.usable(finished[name])]
    examples.mark(connection, rest, ExampleStatus.EXCLUDED, cycle_id)


async def evaluate(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`evaluating`: base, champion and candidate on the same prompts, then the promotion gate."""
    await _watchers(context)
    evaluation = await context.job(cycle, "evaluate", {})
    return await _gate_promotion(context, cycle, evaluation)


async def await_promotion(context: StageContext, cycle: Cycle) -> Cycle | None:
    """`awaiting_promotion`: look for a reviewer's decision on the evaluated adapter."""
    decision = await asyncio.to_thread(_latest_approval, context, cycle)
    if decision is None or decision.created_at <= cycle.updated_at:
        return None
    # Another champion may have been deployed since: the job compares with the present one, or finds nothing to do.
    evaluation = await context.job(cycle, "evaluate", {})
    return await _gate_promotion(context, cycle, evaluation)


STAGES: dict[CycleState, Stage] = {
    CycleState.PROPOSED: start,
    CycleState.PREPARING: prepare,
    CycleState.REVISING: revise,
    CycleState.AWAITING_APPROVAL: await_approval,
    CycleState.APPROVED: train,
    CycleState.TRAINING: run_training,
    CycleState.EVALUATING: evaluate,
    CycleState.AWAITING_PROMOTION: await_promotion,
}


async def _gate_fine_tuning(context: StageContext, cycle: Cycle) -> Cycle | None:
    plan, cost = await asyncio.to_thread(_plan, context, cycle)
    decision, digest = await _ask_fine_tuning(context, cycle, plan, cost)
    if not decision.conclusive:
        return None
    changes: dict[str, Any] = {"plan": plan, "plan_digest": digest, "facts": cycle.facts}
    detail = {"lane": decision.lane, "decision_id": decision.decision_id, "epsilon_after": cost.epsilon_after}
    if decision.allow:
        return await _move(context, cycle, CycleState.APPROVED, detail, **changes)
    if decision.needs_approval and cycle.state is CycleState.REVISING:
        return await _move(context, cycle, CycleState.AWAITING_APPROVAL, detail, **changes)
    return await _refuse(context, cycle, decision, **changes)


async def _ask_fine_tuning(
    context: StageContext, cycle: Cycle, plan: TrainingPlan, cost: planning.PlanCost
) -> tuple[GateDecision, str]:
    digest = planning.plan_digest(plan, cycle.manifest_digest or "")
    revision = cycle.facts["revision"]
    approval = await asyncio.to_thread(_latest_approval, context, cycle)
    measured = facts.fine_tuning_facts(
        context.config,
        plan,
        epsilon_after=cost.epsilon_after,
        n_examples=revision["compliant"],
        pii_found=revision["pii_found"],
        rounds=revision["rounds"],
        approved_models=await context.approved_models(),
        watchers=await _watchers(context),
        approval=facts.approval_facts(cycle, approval, digest),
        teacher_used=await asyncio.to_thread(_teacher_used, context, cycle),
    )
    return await context.decide(cycle, "model_fine_tuning", measured), digest


async def _gate_promotion(context: StageContext, cycle: Cycle, evaluation: dict[str, Any]) -> Cycle | None:
    approval = await asyncio.to_thread(_latest_approval, context, cycle)
    measured = facts.promotion_facts(
        context.config,
        evaluation,
        cycle.facts["privacy"],
        await _watchers(context),
        facts.approval_facts(cycle, approval, cycle.plan_digest or ""),
        await asyncio.to_thread(_teacher_used, context, cycle),
    )
    decision = await context.decide(cycle, "model_promotion", measured)
    if not decision.conclusive:
        return None
    evaluated = cycle.model_copy(update={"facts": cycle.facts | {"evaluation": evaluation}})
    await _report(context, cycle, measured, decision)
    if decision.needs_approval and cycle.state is CycleState.EVALUATING:
        return await _move(context, cycle, CycleState.AWAITING_PROMOTION, facts=evaluated.facts)

    def conclude() -> Cycle:
        with context.database.write() as connection:
            version = registry.version_of_cycle(connection, cycle.cycle_id)
            if version is None:
                raise RuntimeError(f"cycle {cycle.cycle_id} is evaluated but has no model version")
            registry.set_evaluation(connection, version.version_id, evaluation)
            detail = {"decision_id": decision.decision_id, "reasons": _reasons(decision)}
            if decision.allow:
                authority = registry.Authority(by="", decision_id=decision.decision_id)
                registry.deploy(connection, cycle.model_id, version.version_id, f"cycle {cycle.cycle_id}", authority)
                return cycles.transition(connection, cycle, CycleState.PROMOTED, detail, facts=evaluated.facts)
            return cycles.transition(
                connection,
                cycle,
                CycleState.REJECTED,
                detail,
                facts=evaluated.facts,
                reasons=_reasons(decision),
            )

    return await asyncio.to_thread(conclude)


async def _report(context: StageContext, cycle: Cycle, measured: dict[str, Any], decision: GateDecision) -> None:
    """Have the report written. It tells of the decision and is no part of it: what goes wrong here stops no cycle."""
    try:
        specification = {
            "facts": measured,
            "decision": decision.model_dump(mode="json"),
            "bounds": dict(await context.bounds()),
        }
        await context.job(cycle, "report", specification)
    except (JobFailed, BundleUnavailable) as failed:
        logger.error("no report: %s", failed, extra={"cycle_id": cycle.cycle_id})


async def _refuse(context: StageContext, cycle: Cycle, decision: GateDecision, **changes: Any) -> Cycle:
    detail = {"decision_id": decision.decision_id, "reasons": _reasons(decision)}
    return await _move(context, cycle, CycleState.REJECTED, detail, **changes, reasons=_reasons(decision))


async def _move(
    context: StageContext, cycle: Cycle, state: CycleState, detail: dict[str, Any] | None = None, **changes: Any
) -> Cycle:
    def move() -> Cycle:
        with context.database.write() as connection:
            return cycles.transition(connection, cycle, state, detail, **changes)

    return await asyncio.to_thread(move)


async def _watchers(context: StageContext) -> facts.Watchers:
    """Who watches just now; raises `WatcherAway`. A watcher that is away for a moment is no verdict on the cycle."""
    watchers = await context.probe()
    if not (watchers.policy_engine and watchers.audit_engine):
        away = "policy engine" if not watchers.policy_engine else "audit engine"
        raise WatcherAway(f"the {away} is not ready; the cycle waits for it")
    return watchers


def _plan(context: StageContext, cycle: Cycle) -> tuple[TrainingPlan, planning.PlanCost]:
    with context.database.read() as connection:
        done = revisions.finished(connection, cycle.cycle_id)
        manifest = snapshots.check_unchanged(cycles.get_manifest(connection, cycle.cycle_id), cycle.manifest_digest)
        cohort = manifest.cohort
        cohorts.require(connection, cycle.domain, cohort)
        earlier = [c for c in ledger.trained_cycles(connection, cycle.domain, cohort) if c != cycle.cycle_id]
        history = ledger.phases(connection, cycle.domain, cohort)
    n_private = sum(1 for row in done.values() if revisions.usable(row))
    n_public = min(context.public_training, round(n_private * context.config.benign_ratio))
    target = planning.epsilon_target(context.config, len(earlier))
    plan = planning.make_plan(context.config, n_private, n_public, target)
    return plan, planning.cost_of(plan, history)


def _take_domain(context: StageContext, cycle: Cycle) -> leases.Lease | None:
    with context.database.write() as connection:
        holder = context.domain_holder(cycle)
        return leases.acquire(connection, ledger.domain_lease(cycle.domain), holder, context.config.lease_s)


def _latest_approval(context: StageContext, cycle: Cycle) -> Any:
    """The last decision on what the cycle waits for: one on sending text is none on the plan, and the reverse."""
    with context.database.read() as connection:
        if export.awaited(cycle):
            return approvals.latest(connection, cycle.cycle_id, cycle.plan_digest)
        found = approvals.latest(connection, cycle.cycle_id)
    return None if export.concerns(cycle, found) else found


def _teacher_used(context: StageContext, cycle: Cycle) -> bool:
    with context.database.read() as connection:
        return bool(teacher_usage.of_cycle(connection, cycle.cycle_id))


def _reasons(decision: GateDecision) -> tuple[dict[str, str], ...]:
    return tuple(reason.model_dump() for reason in decision.reasons)


def _reason(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}

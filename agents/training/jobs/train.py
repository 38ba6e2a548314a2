"""DP LoRA fine-tuning of a cycle: each step is reserved in the domain's ledger before it runs, checkpointed after.

Under torchrun the job's processes train together: the first one speaks with the worker, and writes ledger, checkpoints
and adapter; the others only compute.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch

from agents.curation.manifest import check_unchanged
from agents.training.child import Channel, JobChannel, SilentChannel
from agents.training.full_disk import when_there_is_room
from agents.training.jobs.setup import Job, Student, load_student, open_job
from agents.training.jobs.training_set import training_set
from agents.training.ml.accounting import BudgetExhaustedError, Phase, epsilon_of
from agents.training.ml.checkpoint import latest_checkpoint, load_checkpoint, marked_non_private, save_checkpoint
from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import (
    LoraSpec,
    adapter_digest,
    adapter_state,
    attach_adapter,
    save_adapter,
    weights_moved,
)
from agents.training.ml.loss import TrainExample
from agents.training.ml.plan import DpPlan
from agents.training.ml.ranks import Ranks, joined_ranks
from agents.training.planning import cost_of
from agents.training.statement import privacy_statement
from app.store import cycles, ledger
from app.store.database import utc_now
from app.store.leases import Lease
from models.cycle import Cycle, TrainingPlan
from models.privacy import LedgerEntry

SPENT_SHARE = 20
"""What has been spent is told anew after so many times what telling it took."""


class AdapterUnchanged(RuntimeError):
    """Training ended and left tensors as they were, or not finite: such an adapter is not to be used."""


def main(specification: dict[str, Any], channel: Channel, ranks: Ranks | None = None) -> dict[str, Any]:
    """Train (or go on training) the cycle's adapter; returns its path, digest, privacy statement and figures."""
    ranks = ranks or Ranks()
    job = open_job(specification, ranks.here)
    lease = Lease(**specification["lease"])
    with job.database.read() as connection:
        cycle = cycles.get(connection, job.cycle_id)
        if cycle is None or cycle.plan is None:
            raise RuntimeError(f"cycle {job.cycle_id} has no plan to train by")
        manifest = check_unchanged(cycles.get_manifest(connection, job.cycle_id), cycle.manifest_digest)
    plan = cycle.plan
    student = load_student(job.config.student)
    channel.progress(gpus=student.gpus * ranks.size)
    data, n_private = training_set(job, student, manifest)
    started = time.monotonic()
    adapter = job.directory / "adapter"
    if not (adapter / "adapter_config.json").exists():
        _train(job, student, cycle, plan, lease, manifest.cohort, data, channel, ranks)
    if not ranks.leads:
        return {}
    last = latest_checkpoint(job.directory / "checkpoints")
    # Every step leaves one; without it nothing says that the noise was valid.
    marked = last is None or marked_non_private(last)
    statement = privacy_statement(
        job.config, job.database, cycle, n_private, len(data) - n_private, marked_non_private=marked
    )
    return {
        "path": str(adapter),
        "digest": adapter_digest(adapter),
        "base_model": plan.base_model,
        "statement": statement.model_dump(mode="json"),
        "training": {
            "seconds": round(time.monotonic() - started, 2),
            "steps": plan.steps,
            "processes": ranks.size,
            "examples": n_private,
            "public": len(data) - n_private,
        },
    }


def _train(
    job: Job,
    student: Student,
    cycle: Cycle,
    plan: TrainingPlan,
    lease: Lease,
    cohort: int,
    data: list[TrainExample],
    channel: Channel,
    ranks: Ranks,
) -> None:
    config = job.config
    # The initial weights precede all data; a seed of the cycle's id makes a resumed job start from the same ones.
    seed = int.from_bytes(job.seed("adapter", "initial")[:4], "big")
    spec = LoraSpec(plan.lora_rank, plan.lora_alpha, plan.lora_dropout, plan.target_modules)
    model = attach_adapter(student.model, spec, seed=seed)
    before = adapter_state(model)
    checkpoints = job.directory / "checkpoints"
    latest = latest_checkpoint(checkpoints)
    done = int(latest.name.removeprefix("step-")) if latest else 0
    noise = _noise_of_all(job, cycle, plan, plan.steps - done, cohort, ranks)
    trainer = PrivateTrainer(
        model,
        data,
        _dp_plan(job, plan, noise),
        pad_id=int(student.tokenizer.pad_token_id),
        before_step=lambda _: _reserve(job, cycle, plan, noise or 0.0, lease, cohort),
        seed=config.privacy.fixed_seed,
        ranks=ranks,
    )
    if latest is not None:
        load_checkpoint(trainer, latest)
    channel.progress(done=done, total=plan.steps)
    spent, spent_due = 0.0, 0.0
    while noise is not None and not trainer.finished:
        report = trainer.step()
        if not ranks.leads:
            continue
        asked = time.monotonic()
        if asked >= spent_due:
            spent = _spent(job, cycle, plan, cohort)
            # It takes seconds where a ledger holds much noise of many kinds, and only those who watch want it.
            spent_due = asked + SPENT_SHARE * (time.monotonic() - asked)
        # The step stands in the ledger: were it lost for want of space, the next try would pay for it once more.
        when_there_is_room(lambda: save_checkpoint(trainer, checkpoints), lambda: _waits(channel, trainer, plan))
        # At once: a job that is killed in between seems to have come no further.
        channel.progress(
            done=trainer.step_index,
            total=plan.steps,
            gpu_memory_bytes=student.gpu_memory_bytes(),
            tokens_per_s=round(report.tokens / max(report.seconds, 1e-9), 1),
            epsilon=round(spent, 3),
            memory_mb=student.peak_memory_mb(),
        )
    trainer.close()
    shift = weights_moved(before, adapter_state(model))
    if not shift.moved:
        raise AdapterUnchanged(
            f"{shift.unmoved} of {shift.tensors} adapter tensors did not move and {shift.not_finite} are not finite: "
            "the adapter is not saved; check learning rate and data",
        )
    if ranks.leads:
        save_adapter(model, job.directory / "adapter", base_name=plan.base_model)


def _waits(channel: Channel, trainer: PrivateTrainer, plan: TrainingPlan) -> None:
    channel.progress(done=trainer.step_index - 1, total=plan.steps, waits_for="room on the disk of checkpoints")


def _dp_plan(job: Job, plan: TrainingPlan, noise: float | None) -> DpPlan:
    return DpPlan(
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        noise_multiplier=noise or 1.0,
        max_grad_norm=plan.max_grad_norm,
        delta=plan.delta,
        micro_batch=job.config.tuning.micro_batch,
        learning_rate=plan.learning_rate,
    )


def _noise_of_all(
    job: Job, cycle: Cycle, plan: TrainingPlan, remaining: int, cohort: int, ranks: Ranks
) -> float | None:
    """The noise that the first process solved, in every process; None: there is no step to take."""
    solved = torch.full((1,), torch.nan, dtype=torch.float64)
    if ranks.leads and remaining > 0:
        noise = _noise(job, cycle, plan, remaining, cohort)
        solved[0] = torch.nan if noise is None else noise
    told = float(ranks.same(solved))
    return None if math.isnan(told) else told


def _noise(job: Job, cycle: Cycle, plan: TrainingPlan, remaining: int, cohort: int) -> float | None:
    """The noise of the remaining steps, solved over the whole ledger; None when nothing fits any more.

    After a crash the ledger may hold steps that never ran, so less is left than the plan foresaw: more noise pays
    for it. When nothing fits, a cycle that has trained some steps ends at its last checkpoint.
    """
    history = _history(job, cycle, cohort)
    try:
        return cost_of(plan, history, remaining).noise_multiplier
    except BudgetExhaustedError:
        if remaining < plan.steps:
            return None
        raise


def _reserve(job: Job, cycle: Cycle, plan: TrainingPlan, noise: float, lease: Lease, cohort: int) -> None:
    entry = LedgerEntry(
        domain=cycle.domain,
        cohort=cohort,
        cycle_id=cycle.cycle_id,
        model_id=cycle.model_id,
        noise_multiplier=noise,
        sample_rate=plan.sample_rate,
        steps=1,
        fence=lease.fence,
        created_at=utc_now(),
    )
    with job.database.write() as connection:
        ledger.reserve(connection, entry, lease)


def _spent(job: Job, cycle: Cycle, plan: TrainingPlan, cohort: int) -> float:
    return epsilon_of([Phase(*phase) for phase in _history(job, cycle, cohort)], plan.delta)


def _history(job: Job, cycle: Cycle, cohort: int) -> list[tuple[float, float, int]]:
    """What the domain's cohort has spent, this cycle included."""
    with job.database.read() as connection:
        return ledger.phases(connection, cycle.domain, cohort)


def _take_part() -> None:
    """This process's part: with the worker at the other end of its pipes, or as one that helps the first."""
    with joined_ranks() as ranks:
        if ranks.leads:
            JobChannel().run(lambda specification, channel: main(_shared(ranks, specification), channel, ranks))
        else:
            main(_shared(ranks, None), SilentChannel(), ranks)


def _shared(ranks: Ranks, specification: dict[str, Any] | None) -> dict[str, Any]:
    """The specification that the first process was given."""
    told = ranks.same_text(None if specification is None else json.dumps(specification))
    shared: dict[str, Any] = json.loads(told)
    return shared


if __name__ == "__main__":
    _take_part()

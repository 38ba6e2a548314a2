"""Critique and revision: from a snapshot's examples to answers that the policy engine finds compliant."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.training.child import JobChannel
from agents.training.jobs.setup import Job, is_compliant, judge, open_job
from agents.training.jobs.writing import open_writer
from agents.training.prompting import RevisionPrompt, breached_principle, copies_instructions, revision_prompt
from agents.training.writers import Writer, WritingTask
from app.store import cycles, examples, revisions, teacher_usage
from models.evaluation_api import Evaluation
from models.example import Example
from otel.scrub import Scrubber
from otel.table import load_table


@dataclass(slots=True)
class Draft:
    """An example on its way: its latest answer, the verdict on it, and the best compliant one so far."""

    example: Example
    answer: str
    scores: dict[str, float] = field(default_factory=dict)
    copied: bool = False
    best: str = ""
    best_score: float = 0.0
    rounds: int = 0
    written: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def compliant(self) -> bool:
        return bool(self.best)


_TOLD_OF_TEACHER = ("endpoint", "model", "requests", "prompt_tokens", "completion_tokens", "untold", "cost")


def main(specification: dict[str, Any], channel: JobChannel) -> dict[str, Any]:
    """Revise what is not finished yet, store each finished example, and sum up."""
    job = open_job(specification)
    writer = open_writer(job, specification, lambda gpus: channel.progress(gpus=gpus))
    work = _Work(job, channel, writer, *_pending(job))
    started = time.monotonic()
    for start in range(0, len(work.pending), writer.slice_size):
        work.revise(work.pending[start : start + writer.slice_size])
    return _summary(job, writer.tokens, time.monotonic() - started)


@dataclass(slots=True)
class _Work:
    """What is to be revised, and how far it is. An example's answer does not depend on who shares its slice."""

    job: Job
    channel: JobChannel
    writer: Writer
    pending: list[Example]
    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self.done = self.total - len(self.pending)

    def revise(self, examples: Sequence[Example]) -> None:
        """Take some examples through all rounds; each is stored as soon as it is finished."""
        drafts = [Draft(example, example.corrected_response or example.response) for example in examples]
        _judge_round(self.job, drafts, 0)
        drafts = self._settle(drafts, "answer", 0)
        for round_number in range(1, self.job.config.revision.max_rounds + 1):
            if not drafts:
                return
            self._write(drafts, round_number)
            _judge_round(self.job, drafts, round_number)
            drafts = self._settle(drafts, "revision", round_number)
        _store(self.job, drafts, "excluded")
        self.done += len(drafts)
        self._tell(self.job.config.revision.max_rounds)

    def _settle(self, drafts: Sequence[Draft], origin: str, round_number: int) -> list[Draft]:
        """Store those that are compliant by now; returns the others."""
        compliant = [draft for draft in drafts if draft.compliant]
        _store(self.job, compliant, origin)
        self.done += len(compliant)
        self._tell(round_number)
        return [draft for draft in drafts if not draft.compliant]

    def _write(self, drafts: Sequence[Draft], round_number: int) -> None:
        """Have each draft written anew."""
        tasks = [
            WritingTask(
                draft.example.example_id,
                _prompt(self.job, draft, round_number),
                self.job.seed(f"revise-{round_number}", draft.example.example_id),
            )
            for draft in drafts
        ]
        answers = self.writer.write(tasks, lambda ready, of: self._tell(round_number, ready, of))
        for draft, task, answer in zip(drafts, tasks, answers, strict=True):
            draft.answer = answer
            draft.copied = copies_instructions(answer, task.prompt)
            draft.rounds = round_number
            draft.written = {
                "model": self.writer.name,
                "seed": task.seed.hex(),
                "parameters": self.writer.parameters | {"prefill": bool(task.prompt.prefill)},
            }

    def _tell(self, round_number: int, generated: int | None = None, of: int | None = None) -> None:
        extra = {} if generated is None else {"generated": generated, "of": of}
        self.channel.progress(done=self.done, total=self.total, round=round_number, **extra)


def _pending(job: Job) -> tuple[list[Example], int]:
    with job.database.read() as connection:
        members = [member.example_id for member in cycles.get_manifest(connection, job.cycle_id).members]
        finished = revisions.finished(connection, job.cycle_id)
        stored = examples.get(connection, [name for name in members if name not in finished])
    # A forgotten example has lost its text since the snapshot; it is simply no longer there to be trained on.
    return [stored[name] for name in members if name in stored and stored[name].prompt], len(members)


def _prompt(job: Job, draft: Draft, round_number: int) -> RevisionPrompt:
    principle = breached_principle(job.constitution, draft.scores, [draft.example.violation_type])
    opening = job.seed("opening", draft.example.example_id)[0]
    return revision_prompt(round_number, principle, draft.example.prompt, draft.example.response, opening)


def _judge_round(job: Job, drafts: Sequence[Draft], round_number: int) -> None:
    verdicts = judge(job, [(draft.example.prompt, draft.answer, round_number) for draft in drafts])
    for draft, verdict in zip(drafts, verdicts, strict=True):
        _take(job, draft, verdict, round_number)


def _take(job: Job, draft: Draft, verdict: Evaluation, round_number: int) -> None:
    weight = job.config.revision.constitutional_weight
    score = weight * verdict.confidence_score + (1 - weight) * verdict.scores.get("relevance", 0.0)
    signed = round_number == 0 and draft.example.correction_signed
    found = is_compliant(job, verdict) and not draft.copied
    compliant = signed or found
    if round_number == 0:
        # What the original answer breaks is what its revisions have to mend.
        draft.scores = dict(verdict.scores)
    draft.history.append(
        {
            "round": round_number,
            "digest": _digest(draft.answer),
            "score": score,
            "compliant": compliant,
            "engine_agrees": found,
            "decision_id": verdict.decision_id,
            **draft.written,
        },
    )
    if compliant and score >= draft.best_score:
        draft.best, draft.best_score = draft.answer, score


def _store(job: Job, drafts: Sequence[Draft], origin: str) -> None:
    rows = [
        {
            "example_id": draft.example.example_id,
            "rounds": draft.rounds,
            "origin": "correction" if draft.example.correction_signed else origin,
            "compliant": draft.compliant,
            "score": draft.best_score,
            "target": draft.best,
            "target_digest": _digest(draft.best),
            "history": draft.history,
        }
        for draft in drafts
    ]
    with job.database.write() as connection:
        revisions.save(connection, job.cycle_id, rows)


def _summary(job: Job, tokens: int, seconds: float) -> dict[str, Any]:
    """Measured over what is stored, so that a resumed job says the same as one that ran through."""
    scrubber = Scrubber(load_table(), None, "detect")
    with job.database.read() as connection:
        finished = revisions.finished(connection, job.cycle_id)
        used = {name: row for name, row in finished.items() if revisions.usable(row)}
        prompts = examples.get(connection, list(used))
        teachers = teacher_usage.of_cycle(connection, job.cycle_id)
    texts = [row.target for row in used.values()] + [prompts[name].prompt for name in used]
    by_round = Counter(int(row.rounds) for row in used.values())
    corrections = [row for row in used.values() if row.origin == "correction"]
    return {
        "examples": len(finished),
        "compliant": len(used),
        "compliant_by_round": {str(number): by_round[number] for number in sorted(by_round)},
        # A person's word stands, but whoever approves the plan should know where the policy engine disagrees with it.
        "corrections": len(corrections),
        "corrections_disputed": sum(1 for row in corrections if not row.history[0].get("engine_agrees", True)),
        "rounds": max((int(row.rounds) for row in finished.values()), default=0),
        "pii_found": sum(1 for text in texts if scrubber.find(text)),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "teacher": [{name: row[name] for name in _TOLD_OF_TEACHER} for row in teachers],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    JobChannel().run(main)

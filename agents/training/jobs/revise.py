"""Critique and revision: from a snapshot's examples to answers that the policy engine finds compliant."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.training.child import JobChannel
from agents.training.jobs.setup import Job, Student, is_compliant, judge, load_student, open_job
from agents.training.prompting import (
    RevisionPrompt,
    breached_principle,
    copies_instructions,
    joined,
    revision_prompt,
)
from app.store import cycles, examples, revisions
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
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def compliant(self) -> bool:
        return bool(self.best)


def main(specification: dict[str, Any], channel: JobChannel) -> dict[str, Any]:
    """Revise what is not finished yet, store each finished example, and sum up."""
    job = open_job(specification)
    pending, total = _pending(job)
    started = time.monotonic()
    tokens = 0
    if pending:
        drafts = [Draft(example, example.corrected_response or example.response) for example in pending]
        _judge_round(job, drafts, 0)
        _store(job, [draft for draft in drafts if draft.compliant], "answer")
        tokens = _rounds(job, drafts, channel, total)
    return _summary(job, tokens, time.monotonic() - started)


def _rounds(job: Job, drafts: list[Draft], channel: JobChannel, total: int) -> int:
    open_drafts = [draft for draft in drafts if not draft.compliant]
    done = total - len(open_drafts)
    channel.progress(done=done, total=total, round=0)
    if not open_drafts:
        return 0
    student = load_student(job.config.student)
    tokens = 0
    for round_number in range(1, job.config.revision.max_rounds + 1):
        if not open_drafts:
            break
        tokens += _revise_round(job, student, open_drafts, round_number, channel, done, total)
        _judge_round(job, open_drafts, round_number)
        _store(job, [draft for draft in open_drafts if draft.compliant], "revision")
        open_drafts = [draft for draft in open_drafts if not draft.compliant]
        done = total - len(open_drafts)
        channel.progress(done=done, total=total, round=round_number)
    _store(job, open_drafts, "excluded")
    channel.progress(done=total, total=total, round=job.config.revision.max_rounds)
    return tokens


def _pending(job: Job) -> tuple[list[Example], int]:
    with job.database.read() as connection:
        members = [member.example_id for member in cycles.get_manifest(connection, job.cycle_id).members]
        finished = revisions.finished(connection, job.cycle_id)
        stored = examples.get(connection, [name for name in members if name not in finished])
    # A forgotten example has lost its text since the snapshot; it is simply no longer there to be trained on.
    return [stored[name] for name in members if name in stored and stored[name].prompt], len(members)


def _revise_round(
    job: Job, student: Student, drafts: list[Draft], round_number: int, channel: JobChannel, done: int, total: int
) -> int:
    prompts = {draft.example.example_id: _prompt(job, draft, round_number) for draft in drafts}
    requests = [
        student.request(
            draft.example.example_id,
            prompts[draft.example.example_id].messages,
            job.seed(f"revise-{round_number}", draft.example.example_id),
            prompts[draft.example.example_id].prefill,
        )
        for draft in drafts
    ]
    generator = student.generator()
    answers = generator.generate(
        requests,
        student.params(job.config.revision.max_new_tokens),
        lambda ready, of: channel.progress(done=done, total=total, round=round_number, generated=ready, of=of),
    )
    for draft, answer in zip(drafts, answers, strict=True):
        prompt = prompts[draft.example.example_id]
        draft.answer = joined(prompt.prefill, answer.text)
        draft.copied = copies_instructions(draft.answer, prompt)
        draft.rounds = round_number
    return generator.stats.tokens


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
    compliant = signed or (is_compliant(job, verdict) and not draft.copied)
    if round_number == 0:
        # What the original answer breaks is what its revisions have to mend.
        draft.scores = dict(verdict.scores)
    draft.history.append(
        {
            "round": round_number,
            "digest": _digest(draft.answer),
            "score": score,
            "compliant": compliant,
            "decision_id": verdict.decision_id,
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
        used = {name: row for name, row in finished.items() if row.compliant}
        prompts = examples.get(connection, list(used))
    texts = [row.target for row in used.values()] + [prompts[name].prompt for name in used]
    by_round = Counter(int(row.rounds) for row in used.values())
    return {
        "examples": len(finished),
        "compliant": len(used),
        "compliant_by_round": {str(number): by_round[number] for number in sorted(by_round)},
        "rounds": max((int(row.rounds) for row in finished.values()), default=0),
        "pii_found": sum(1 for text in texts if scrubber.find(text)),
        "tokens": tokens,
        "seconds": round(seconds, 2),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    JobChannel().run(main)

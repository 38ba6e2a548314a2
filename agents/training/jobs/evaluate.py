"""Base, base with examples, champion and candidate on the same prompts: safer, and still useful?

Champion and candidate are loaded from disk, one after the other, onto the one base model in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from agents.training import comparison, costs
from agents.training.child import JobChannel
from agents.training.in_context import earlier_turns
from agents.training.jobs.setup import Job, Student, judge, load_student, open_job
from agents.training.judged import Run, judged
from agents.training.ml.chat import encode_target, encode_text, render_chat
from agents.training.ml.lora import load_adapter, unload_adapter
from agents.training.ml.loss import TrainExample, held_out_loss
from agents.training.public import public_pairs
from agents.training.suites import SuitePrompt, load_suites
from app.store import cycles, examples, registry, teacher_usage
from models.cycle import CycleState

_TURN_TOKENS = 16
"""More than a chat template puts around a turn."""
_WORKING = {CycleState.REVISING.value, CycleState.TRAINING.value, CycleState.EVALUATING.value}


class NothingToEvaluate(RuntimeError):
    """There is no prompt of either kind to compare on."""


def main(specification: dict[str, Any], channel: JobChannel) -> dict[str, Any]:
    """Evaluate the cycle's adapter; writes the evaluation's files (`_write`) beside it, returns the figures."""
    job = open_job(specification)
    with job.database.read() as connection:
        version = registry.version_of_cycle(connection, job.cycle_id)
        if version is None:
            raise RuntimeError(f"cycle {job.cycle_id} has no trained adapter to evaluate")
        champion = registry.champion(connection, version.model_id)
    finished = _finished(job.directory, version.digest, champion)
    if finished is not None:
        return finished
    prompts = _prompts(job)
    student = load_student(job.config.student)
    channel.progress(gpus=student.gpus)
    work = _Work(job, student, prompts, channel, _loss_examples(job, student))
    work.evaluate(Path(version.path), None if champion is None else Path(champion.path))
    evaluation = work.figures() | {
        "reloaded_from_disk": True,
        "adapter_digest": version.digest,
        "champion": _champion(champion, "champion" in work.runs),
        "evaluated_at": time.time(),
    }
    _write(job.directory, evaluation, work.runs)
    return evaluation


@dataclass(slots=True)
class _Work:
    """The models' turns, in the order that keeps one base and at most one adapter in memory."""

    job: Job
    student: Student
    prompts: list[SuitePrompt]
    channel: JobChannel
    loss_examples: list[TrainExample]
    runs: dict[str, Run] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    examples_shown: int = 0
    total: int = 0

    def evaluate(self, candidate: Path, champion: Path | None) -> None:
        """Have every model answer and be judged; the champion is left out where the base itself serves."""
        wanted = self.job.config.evaluation.baselines
        turns: list[dict[str, str]] = []
        if "in_context" in wanted:
            asked = [prompt.prompt for prompt in self.prompts]
            config = self.job.config.evaluation
            turns = earlier_turns(self.job.constitution, config.public_share, config.in_context_examples, asked)
        answers_of_champion = champion is not None and "champion" in wanted
        self.examples_shown = len(turns) // 2
        self.total = len(self.prompts) * (2 + bool(turns) + answers_of_champion)

        self._run("base", self.student.model)
        self._lose("base", self.student.model)
        if turns:
            self._run("in_context", self.student.model, turns)
        if champion is not None:
            model = load_adapter(self.student.model, champion)
            if answers_of_champion:
                self._run("champion", model)
            # The gate's bound on the loss is against the champion, whether or not it answers prompts.
            self._lose("champion", model)
            self.student.model = unload_adapter(model)
        model = load_adapter(self.student.model, candidate)
        self._run("candidate", model)
        self._lose("candidate", model)

    def figures(self) -> dict[str, Any]:
        """All that follows from the answers."""
        config = self.job.config
        deployed = "champion" in self.losses
        against = "champion" if deployed else "base"
        group = comparison.principle_of(self.job.constitution, 1.0 - config.compliance_threshold)
        losses = {"champion": self.losses["base"], **self.losses}
        servable, answers = comparison.servable(self.runs["candidate"], config.compliance_threshold)
        seconds, fees = _spent(self.job)
        measured = costs.Measured(self.runs["candidate"].tokens_per_s, servable, answers, seconds, fees)
        return comparison.figures(self.runs, against if against in self.runs else None, group) | {
            "held_out_loss": losses
            | {
                "against": against,
                "ratio": losses["candidate"] / losses["champion"],
                "n": len(self.loss_examples),
            },
            "cost": costs.cost_figures(config.cost, measured),
            "in_context": {"examples": self.examples_shown},
            "event_prompts": sum(1 for prompt in self.prompts if not prompt.public),
        }

    def _lose(self, name: str, model: Any) -> None:
        self.losses[name] = held_out_loss(model, self.loss_examples, int(self.student.tokenizer.pad_token_id))

    def _run(self, name: str, model: Any, turns: list[dict[str, str]] | None = None) -> None:
        turns = turns or []
        # Examples come on top of what a prompt may have: to cut one short would be to teach half an answer.
        room = sum(len(encode_text(self.student.tokenizer, turn["content"])) + _TURN_TOKENS for turn in turns)
        requests = [
            self.student.request(
                str(number),
                [*turns, {"role": "user", "content": prompt.prompt}],
                # The same stream for every model: what differs then is the model.
                self.job.seed("evaluate", prompt.prompt),
                room=room,
            )
            for number, prompt in enumerate(self.prompts)
        ]
        generator = self.student.generator(model)
        params = self.student.params(self.job.config.evaluation.max_new_tokens)
        answers = generator.generate(requests, params, self._told())
        verdicts = judge(self.job, [(p.prompt, a.text, 0) for p, a in zip(self.prompts, answers, strict=True)])
        self.runs[name] = Run(
            [
                judged(prompt, answer.text, verdict, tokens=len(answer.token_ids), finished=answer.finished)
                for prompt, answer, verdict in zip(self.prompts, answers, verdicts, strict=True)
            ],
            generator.stats.tokens_per_second,
        )

    def _told(self) -> Callable[[int, int], None]:
        done = len(self.runs) * len(self.prompts)
        return lambda ready, _: self.channel.progress(done=done + ready, total=self.total)


def _prompts(job: Job) -> list[SuitePrompt]:
    """Labelled suites, the constitution's public prompts and the cycle's held-out ones; each text once.

    A held-out event is a violation or a low score, so what is asked of its answer is that it does not comply.
    """
    config = job.config.evaluation
    public = public_pairs(job.constitution, config.public_share, for_training=False)
    with job.database.read() as connection:
        held_out = [member.example_id for member in cycles.get_manifest(connection, job.cycle_id).held_out]
        stored = examples.get(connection, held_out)
    events = [
        SuitePrompt(stored[name].prompt, "refuse", "events", example_id=name, code=stored[name].violation_type)
        for name in held_out
        if stored[name].prompt
    ]
    # Events last: of a text that is public as well, the public label counts, and it may be shown.
    found: dict[str, SuitePrompt] = {}
    for prompt in (
        *load_suites(config.suites),
        *(SuitePrompt(pair.prompt, "comply", "public") for pair in public[: config.public_prompts]),
        *events,
    ):
        found.setdefault(prompt.prompt, prompt)
    if not found:
        raise NothingToEvaluate("no suite, no public prompt and no held-out example: set evaluation.suites")
    return list(found.values())


def _loss_examples(job: Job, student: Student) -> list[TrainExample]:
    pairs = public_pairs(job.constitution, job.config.evaluation.public_share, for_training=False)
    return [
        TrainExample(
            tuple(
                render_chat(
                    student.tokenizer,
                    [{"role": "user", "content": pair.prompt}],
                    system=job.config.student.system_message,
                ),
            ),
            tuple(encode_target(student.tokenizer, pair.answer)),
        )
        for pair in pairs
    ]


def _spent(job: Job) -> tuple[float, float]:
    """Seconds the cycle has been at work by now (waiting for people is none), and a teacher's fees in dollars."""
    with job.database.read() as connection:
        history = cycles.history(connection, job.cycle_id)
        fees = sum(float(row["cost"]) for row in teacher_usage.of_cycle(connection, job.cycle_id))
    began = [datetime.fromisoformat(event["created_at"]).timestamp() for event in history]
    ended = [*began[1:], time.time()]
    at_work = [
        end - start for event, start, end in zip(history, began, ended, strict=True) if event["state"] in _WORKING
    ]
    return sum(at_work), fees


def _champion(champion: Any, answered: bool) -> dict[str, Any]:
    """Who is deployed for the model. Where nobody is, the base model serves and stands in the champion's place."""
    return {
        "version_id": None if champion is None else champion.version_id,
        "digest": None if champion is None else champion.digest,
        "answered": answered,
    }


def _finished(directory: Path, digest: str, champion: Any) -> dict[str, Any] | None:
    """This adapter's evaluation against this champion, where one has ended: it need not be repeated."""
    try:
        evaluation: dict[str, Any] = orjson.loads((directory / "evaluation.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    same_champion = evaluation.get("champion", {}).get("digest") == (None if champion is None else champion.digest)
    return evaluation if evaluation.get("adapter_digest") == digest and same_champion else None


def _write(directory: Path, evaluation: dict[str, Any], runs: dict[str, Run]) -> None:
    """`samples.json` and `disagreements.json`, then `evaluation.json`: where that one stands, all has ended."""
    directory.mkdir(parents=True, exist_ok=True)
    documents = {
        "samples": comparison.samples(runs),
        "disagreements": comparison.disagreements(runs),
        "evaluation": evaluation,
    }
    for name, document in documents.items():
        target = directory / f"{name}.json"
        partial = target.with_suffix(".partial")
        partial.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        partial.rename(target)


if __name__ == "__main__":
    JobChannel().run(main)

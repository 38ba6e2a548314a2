"""What a cycle's adapter is trained on: the manifest's revised examples, and public ones beside them."""

from __future__ import annotations

from agents.training.config import CycleConfig
from agents.training.jobs.setup import Job, Student
from agents.training.ml.chat import encode_target, render_chat
from agents.training.ml.loss import TrainExample
from agents.training.public import public_pairs
from app.store import examples, revisions
from models.cycle import Manifest

Pair = tuple[str, str]
"""A prompt and the answer to learn."""


def training_set(job: Job, student: Student, manifest: Manifest) -> tuple[list[TrainExample], int]:
    """The manifest's examples, then the public ones; and how many are the manifest's."""
    private, public = training_pairs(job, manifest)
    return [as_example(job.config, student, prompt, target) for prompt, target in private + public], len(private)


def training_pairs(job: Job, manifest: Manifest) -> tuple[list[Pair], list[Pair]]:
    """Prompts with their targets: the manifest's in the order of their ids, and the public ones that go with them."""
    members = {member.example_id for member in manifest.members}
    with job.database.read() as connection:
        finished = revisions.finished(connection, manifest.cycle_id)
        used = sorted(name for name, row in finished.items() if name in members and revisions.usable(row))
        stored = examples.get(connection, used)
    private = [(stored[name].prompt, finished[name].target) for name in used if stored[name].prompt]
    public = public_pairs(job.constitution, job.config.evaluation.public_share, for_training=True)
    wanted = round(len(private) * job.config.benign_ratio)
    return private, [(pair.prompt, pair.answer) for pair in public[:wanted]]


def as_example(config: CycleConfig, student: Student, prompt: str, target: str) -> TrainExample:
    """A prompt and its answer as the tokens that are trained on, cut to what an example may have."""
    limit = config.tuning.max_tokens
    target_ids = encode_target(student.tokenizer, target)[: limit // 2]
    prompt_ids = render_chat(
        student.tokenizer,
        [{"role": "user", "content": prompt}],
        system=config.student.system_message,
        max_tokens=limit - len(target_ids),
    )
    return TrainExample(tuple(prompt_ids), tuple(target_ids))

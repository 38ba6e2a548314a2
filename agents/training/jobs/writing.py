"""The writers as a job makes them: the student, loaded when it is first needed, or the teacher with its account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agents.training.config import StudentConfig, TeacherConfig
from agents.training.jobs.setup import Job, Student, load_student
from agents.training.ml.generate import BUCKET
from agents.training.prompting import joined
from agents.training.teacher import Teacher
from agents.training.writers import Progress, Writer, WritingTask
from app.store import Database, teacher_usage

SLICE_BATCHES = 8
"""So many batches of examples go through all rounds before the next: what a crash costs is bounded by them."""


class StudentWriter:
    """The local model. `on_load` is told how many GPUs it holds."""

    def __init__(
        self, config: StudentConfig, max_new_tokens: int, on_load: Callable[[int], None] = lambda _gpus: None
    ) -> None:
        self._config = config
        self._max_new_tokens = max_new_tokens
        self._on_load = on_load
        self._student: Student | None = None
        self._tokens = 0

    @property
    def name(self) -> str:
        return self._config.base_model

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "temperature": self._config.temperature,
            "max_new_tokens": self._max_new_tokens,
            "prompt_tokens": self._config.prompt_tokens,
            "batch_size": self._config.batch_size,
            "bucket": BUCKET,
            "dtype": self._config.dtype,
        }

    @property
    def slice_size(self) -> int:
        return SLICE_BATCHES * self._config.batch_size

    @property
    def tokens(self) -> int:
        return self._tokens

    def write(self, tasks: Sequence[WritingTask], on_progress: Progress) -> list[str]:
        student = self.student
        requests = [student.request(task.key, task.prompt.messages, task.seed, task.prompt.prefill) for task in tasks]
        generator = student.generator()
        answers = generator.generate(requests, student.params(self._max_new_tokens), on_progress)
        self._tokens += generator.stats.tokens
        return [joined(task.prompt.prefill, answer.text) for task, answer in zip(tasks, answers, strict=True)]

    @property
    def student(self) -> Student:
        """The model, loaded by now."""
        if self._student is None:
            self._student = load_student(self._config)
            self._on_load(self._student.gpus)
        return self._student


class CycleAccount:
    """Writes a cycle's use of its teacher into the store, each request before it is made."""

    def __init__(self, database: Database, cycle_id: str, teacher: TeacherConfig) -> None:
        self._database = database
        self._cycle_id = cycle_id
        self._teacher = teacher

    def reserve(self) -> bool:
        with self._database.write() as connection:
            used = teacher_usage.reserve(connection, self._cycle_id, self._teacher.url, self._teacher.model)
        limit = self._teacher.tokens_per_cycle
        return not limit or used < limit

    def used(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        prices = self._teacher
        cost = (prompt_tokens or 0) * prices.prompt_price + (completion_tokens or 0) * prices.completion_price
        with self._database.write() as connection:
            teacher_usage.used(
                connection,
                self._cycle_id,
                self._teacher.url,
                self._teacher.model,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cost=cost / 1_000_000,
            )


def open_writer(job: Job, specification: dict[str, Any], on_load: Callable[[int], None]) -> Writer:
    """The teacher where the specification says that the gate permits it, else the student."""
    teacher = job.config.teacher
    if teacher is None or "teacher" not in specification:
        return StudentWriter(job.config.student, job.config.revision.max_new_tokens, on_load)
    student = job.config.student
    account = CycleAccount(job.database, job.cycle_id, teacher)
    return Teacher(teacher, student.system_message, student.temperature, account)

"""What every job begins with: its configuration, the store, the constitution, the student."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.curation.manifest import keyed
from agents.training.child import limit_memory
from agents.training.config import CycleConfig, StudentConfig
from agents.training.ml.base_model import load_model, locate_model, pick_device
from agents.training.ml.chat import render_chat
from agents.training.ml.generate import GenerationParams, GenerationRequest, Generator
from app.store import Database
from app.telemetry import correlation
from app.telemetry.logs import set_up_logging
from models.evaluation_api import Evaluation
from policies.clients.audit_client import AuditClient
from policies.clients.audited import evaluate_audited
from policies.clients.policy_client import PolicyEngineClient
from policies.clients.spool import Spool
from policies.clients.spooling import SpoolingAudit
from policies.constitution import Constitution, load_constitution

PATIENCE_S = 60.0
"""How long verdicts may take, however short the setting: nobody waits at the other end, and the machine is busy."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job's configuration and stores."""

    config: CycleConfig
    cycle_id: str
    database: Database
    constitution: Constitution

    @property
    def directory(self) -> Path:
        """Where this cycle's files lie."""
        return self.config.directory(self.cycle_id)

    def seed(self, purpose: str, name: str) -> bytes:
        """The random stream of one example for one purpose: keyed, so nobody can foretell it from the text."""
        return keyed(self.config.digest_key.encode(), f"stream\x1f{self.cycle_id}\x1f{purpose}", name)


def open_job(specification: dict[str, Any], processes: int = 1) -> Job:
    """Set a job up from the specification its parent sent; `processes` of the job share the machine's threads."""
    set_up_logging("training-job")
    correlation.begin(specification.get("traceparent"))
    config = CycleConfig.model_validate(specification["config"])
    limit_memory(config.job_memory_gb)
    torch.set_num_threads(max(1, config.student.threads // processes))
    return Job(
        config=config,
        cycle_id=specification["cycle_id"],
        database=Database(config.database_url),
        constitution=load_constitution(config.constitution_path),
    )


@dataclass(slots=True)
class Student:
    """A loaded model that answers prompts."""

    model: Any
    tokenizer: Any
    path: Path
    device: torch.device
    config: StudentConfig

    @property
    def gpus(self) -> int:
        """How many GPUs it holds."""
        return int(self.device.type == "cuda")

    def peak_memory_mb(self) -> int:
        """The most memory that this process has held so far: the GPU's where there is one, else its resident set."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) // 2**20
        # Kilobytes on Linux, bytes on macOS.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit

    def gpu_memory_bytes(self) -> int:
        """The most GPU memory that this process has held; 0 without a GPU."""
        return int(torch.cuda.max_memory_reserved(self.device)) if self.gpus else 0

    def generator(self, model: Any | None = None) -> Generator:
        """A batched generator over this model, or over `model` with the same tokenizer."""
        return Generator(model or self.model, self.tokenizer, self.device, batch_size=self.config.batch_size)

    def request(
        self, key: str, messages: Sequence[dict[str, str]], seed: bytes, prefill: str = "", room: int = 0
    ) -> GenerationRequest:
        """One prompt, rendered by the model's own chat template; `room`: tokens beyond the configured limit."""
        ids = render_chat(
            self.tokenizer,
            messages,
            prefill,
            system=self.config.system_message,
            max_tokens=self.config.prompt_tokens + room,
        )
        return GenerationRequest(key, tuple(ids), seed)

    def params(self, max_new_tokens: int) -> GenerationParams:
        """The configured sampling; temperature 0 is greedy."""
        warm = self.config.temperature > 0
        return GenerationParams(
            max_new_tokens=max_new_tokens,
            do_sample=warm,
            temperature=self.config.temperature if warm else 1.0,
        )


def load_student(config: StudentConfig) -> Student:
    """Load the base model; raises `agents.training.ml.base_model.ModelUnavailableError`."""
    path = locate_model(config.base_model, config.model_cache)
    device = pick_device(config.device)  # type: ignore[arg-type]  # settings hold it to the three names
    model, tokenizer = load_model(path, getattr(torch, config.dtype), device)
    return Student(model, tokenizer, path, device, config)


def judge(job: Job, items: Sequence[tuple[str, str, int]]) -> list[Evaluation]:
    """The policy engine's verdicts on (prompt, answer, iteration), in order, each with an audit entry.

    Raises `PolicyEngineUnavailable` where there is no verdict, or it could not be recorded: then it is asked again.
    """

    async def ask() -> list[Evaluation]:
        engine = job.config.policy_engine
        async with evaluation_audit(job.config) as audit:
            client = PolicyEngineClient(
                engine.url,
                job.config.constitutional_hash,
                job.config.compliance_threshold,
                token=engine.token,
                timeout_s=max(engine.timeout_s, PATIENCE_S),
                batch_timeout_s=max(engine.timeout_s, PATIENCE_S),
                audit=audit.log,
                digest_key=job.config.evaluation_audit.digest_key.encode(),
            )
            context = {"type": "training", "cycle_id": job.cycle_id}
            async with client:
                return await evaluate_audited(
                    client,
                    [
                        (answer, {"prompt": prompt, "iteration": iteration, **context})
                        for prompt, answer, iteration in items
                    ],
                )

    return asyncio.run(ask())


def evaluation_audit(config: CycleConfig) -> SpoolingAudit:
    """Takes the entries of evaluations; use it as an asynchronous context manager."""
    engine, audit = config.audit_engine, config.evaluation_audit
    client = AuditClient(engine.url, engine.token, engine.timeout_s)
    return SpoolingAudit(client, Spool(audit.spool, audit.spool_bytes), audit.digest_key.encode())


def is_compliant(job: Job, verdict: Evaluation) -> bool:
    """The client's rule: allowed, and as sure as the threshold asks."""
    return verdict.allow and verdict.confidence_score >= job.config.compliance_threshold

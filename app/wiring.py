"""From settings to the plain parameters that agents, engines and clients take. The only place that knows both sides."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from agents.curation.triggers import CountTrigger
from agents.training.config import (
    CycleConfig,
    EvaluationConfig,
    PrivacyConfig,
    RevisionConfig,
    ServiceAddress,
    StudentConfig,
    TuningConfig,
)
from agents.training.facts import Watchers
from agents.training.public import public_pairs
from app.keys import key
from app.relay import Undeliverable
from app.settings import Settings
from app.store import Database
from models.audit import AuditEntry
from otel.scrub import Mode, Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table
from policies.audit.config import AuditConfig
from policies.clients.audit_client import AuditClient, AuditRefused
from policies.constitution import Constitution
from policies.engine.config import EncoderConfig, EngineConfig
from policies.gate.bundle import PolicyBundle, load_bundle


def holder_name(role: str) -> str:
    """Who holds a lease: role, host and process."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def open_database(settings: Settings, timeout_s: float = 60.0) -> Database:
    """The store, migrated; raises `app.store.database.DatabaseUnavailable`."""
    database = Database(settings.database.url)
    database.wait_ready(timeout_s)
    database.migrate()
    return database


def scrubber(settings: Settings, mode: Mode | None = None) -> Scrubber:
    """The scrubber of routing, or one in another `mode`."""
    subject_key = key(settings.pii.subject_key, settings.data_dir, "subject").encode()
    return Scrubber(load_table(), SubjectTokenizer(subject_key), mode or settings.pii.router)


def count_trigger(settings: Settings) -> CountTrigger:
    """When curation opens a cycle."""
    curation = settings.curation
    return CountTrigger(curation.min_examples, curation.settle_s, curation.cooldown_s)


def policy_bundle(settings: Settings, high_severity_codes: list[str]) -> PolicyBundle:
    """The gate's policies, with this installation's hash, bounds and base model."""
    overrides: dict[str, Any] = {"constitutional_hash": settings.constitution.hash}
    if settings.gate.bounds:
        overrides["bounds"] = dict(settings.gate.bounds)
    if high_severity_codes:
        overrides["high_severity_codes"] = sorted(high_severity_codes)
    return load_bundle(overrides=overrides)


def audit_config(settings: Settings) -> AuditConfig:
    """The audit engine as it starts."""
    engine = settings.audit_engine
    digest_key = key(engine.digest_key, settings.data_dir, "audit-digest")
    return AuditConfig(engine.database_url, digest_key.encode(), token=secret(engine.token))


def engine_config(settings: Settings) -> EngineConfig:
    """The policy engine as it starts."""
    engine = settings.policy_engine
    return EngineConfig(
        encoder=EncoderConfig(threads=engine.threads),
        cache_dir=settings.training.model_cache.parent / "engine",
        token=secret(engine.token),
    )


def audit_client(settings: Settings) -> AuditClient:
    """A client of the audit engine."""
    engine = settings.audit_engine
    return AuditClient(engine.url, secret(engine.token), engine.timeout_s)


class AuditOutlet:
    """The audit engine as the outbox relay sees it."""

    def __init__(self, client: AuditClient, constitutional_hash: str) -> None:
        self.client = client
        self.constitutional_hash = constitutional_hash

    async def log_body(self, body: dict[str, Any]) -> None:
        """Deliver an outbox message; raises `Undeliverable` where the engine refuses it for good."""
        try:
            entry = AuditEntry.model_validate({"constitutional_hash": self.constitutional_hash, **body})
        except ValidationError as error:
            fields = ", ".join(str(item["loc"]) for item in error.errors())
            raise Undeliverable(f"no audit entry can hold it; wrong: {fields}") from None
        try:
            await self.client.log(entry)
        except AuditRefused as refusal:
            raise Undeliverable(str(refusal)) from refusal


class Probe:
    """Asks the engines whether they watch."""

    def __init__(self, settings: Settings) -> None:
        self._urls = (settings.policy_engine.url, settings.audit_engine.url)
        self._client = httpx.AsyncClient(timeout=5.0, trust_env=False)

    async def __call__(self) -> Watchers:
        """Whether each engine says it is ready."""
        return Watchers(*[await self._is_ready(url) for url in self._urls])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _is_ready(self, url: str) -> bool:
        try:
            response = await self._client.get(f"{url}/health/ready")
        except httpx.HTTPError:
            return False
        return response.status_code == httpx.codes.OK


def cycle_config(settings: Settings) -> CycleConfig:
    """What the training agent runs a cycle with."""
    training, generation = settings.training, settings.generation
    return CycleConfig(
        database_url=settings.database.url,
        artifacts=training.artifacts,
        constitution_path=settings.constitution.path,
        constitutional_hash=settings.constitution.hash,
        compliance_threshold=settings.constitution.compliance_threshold,
        held_out_share=settings.curation.held_out_share,
        benign_ratio=settings.curation.benign_ratio,
        digest_key=key(settings.curation.digest_key, settings.data_dir, "curation-digest"),
        policy_engine=_address(settings.policy_engine),
        audit_engine=_address(settings.audit_engine),
        audit_retention_days=settings.audit_engine.retention_days,
        student=StudentConfig(
            base_model=training.base_model,
            risk_level=training.risk_level,
            model_cache=training.model_cache,
            device=training.device,
            dtype=training.dtype,
            threads=training.threads,
            batch_size=generation.batch_size,
            temperature=generation.temperature,
            prompt_tokens=generation.prompt_tokens,
            system_message=generation.system_message,
        ),
        revision=RevisionConfig(
            max_rounds=settings.revision.max_rounds,
            constitutional_weight=settings.revision.constitutional_weight,
            max_new_tokens=settings.revision.max_new_tokens,
        ),
        privacy=PrivacyConfig(
            cycle_targets=settings.privacy.cycle_targets,
            epsilon=settings.privacy.epsilon,
            delta=settings.privacy.delta,
            max_grad_norm=settings.privacy.max_grad_norm,
            fixed_seed=settings.privacy.fixed_seed,
        ),
        tuning=TuningConfig(
            lora_rank=training.lora_rank,
            lora_alpha=training.lora_alpha,
            lora_dropout=training.lora_dropout,
            target_modules=training.target_modules,
            epochs=training.epochs,
            batch_size=training.batch_size,
            micro_batch=training.micro_batch,
            learning_rate=training.learning_rate,
            max_tokens=training.max_tokens,
        ),
        evaluation=EvaluationConfig(
            suites=tuple(Path(suite) for suite in settings.evaluation.suites),
            max_new_tokens=settings.evaluation.max_new_tokens,
        ),
        lease_s=training.lease_s,
        poll_s=training.poll_s,
        job_timeout_s=training.job_timeout_s,
    )


def public_training(settings: Settings, constitution: Constitution) -> int:
    """How many of the constitution's public benign prompts may be trained on."""
    share = cycle_config(settings).evaluation.public_share
    return len(public_pairs(constitution, share, for_training=True))


def secret(value: SecretStr | None) -> str | None:
    """A secret's text, where it is set."""
    return None if value is None else value.get_secret_value()


def _address(engine: Any) -> ServiceAddress:
    return ServiceAddress(url=engine.url, token=secret(engine.token), timeout_s=engine.timeout_s)

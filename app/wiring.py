"""From settings to the plain parameters that agents, engines and clients take. The only place that knows both sides."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from agents.curation.curator import CurationRules
from agents.curation.triggers import AgeTrigger, CountTrigger, DriftTrigger, Triggers
from agents.training.config import (
    CostConfig,
    CycleConfig,
    EvaluationAuditConfig,
    EvaluationConfig,
    PrivacyConfig,
    RevisionConfig,
    ServiceAddress,
    StudentConfig,
    TeacherConfig,
    TuningConfig,
)
from agents.training.facts import Watchers
from agents.training.mlflow_mirror import MlflowMirror
from agents.training.public import public_pairs
from app.keys import key
from app.relay import Undeliverable
from app.settings import Settings, SettingsError
from app.settings.sections import JudgeSettings
from app.store import Database
from app.webhook import WebhookConfig
from models.audit import AuditEntry
from otel.guard import GuardUnavailable, PresidioGuard, check_presidio
from otel.scrub import Mode, Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table
from policies.audit.config import AuditConfig, SealConfig
from policies.audit.errors import UnusableKey
from policies.audit.seal import public_key, seed
from policies.clients.audit_client import AuditClient, AuditRefused
from policies.clients.spool import Spool
from policies.clients.spooling import SpoolingAudit
from policies.constitution import Constitution
from policies.engine.config import CombineConfig, EncoderConfig, EngineConfig
from policies.engine.judge_config import JudgeConfig
from policies.gate import BundleSource, PolicyBundle
from policies.gate.bundle import REGO_ROOT


def holder_name(role: str) -> str:
    """Who holds a lease: role, host and process."""
    return f"{role}@{machine_name()}:{os.getpid()}"


def machine_name() -> str:
    """This machine, as leases and reports name it."""
    return socket.gethostname()


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


def residual_pii(settings: Settings) -> Callable[[str], bool]:
    """Tells whether a text behind the router still holds personal data, by the table alone: curation counts it."""
    find = scrubber(settings, "detect").find
    return lambda text: bool(find(text))


def check_training_guard(settings: Settings) -> None:
    """Raises SettingsError where the guard that the settings ask for cannot be had: nothing is trained without it."""
    if settings.pii.training_guard == "presidio":
        try:
            check_presidio(settings.pii.presidio_model)
        except GuardUnavailable as error:
            raise _no_guard(error) from error


def training_guard(settings: Settings) -> Callable[[str], bool]:
    """Tells whether a text still holds personal data and must not be trained on. Raises SettingsError."""
    pii, find = settings.pii, scrubber(settings, "detect").find
    if pii.training_guard == "table":
        return lambda text: bool(find(text))
    try:
        presidio = PresidioGuard(pii.presidio_model, pii.presidio_score, pii.presidio_entities)
    except GuardUnavailable as error:
        raise _no_guard(error) from error
    return lambda text: bool(find(text)) or presidio(text)


def _no_guard(error: GuardUnavailable) -> SettingsError:
    return SettingsError(f"pii.training_guard=presidio: {error}; or set pii.training_guard=table")


def curation_rules(settings: Settings) -> CurationRules:
    """By what examples are made and cycles open."""
    curation, threshold = settings.curation, settings.constitution.compliance_threshold
    few = min(curation.few_examples, curation.min_examples)
    return CurationRules(
        triggers=Triggers(
            count=CountTrigger(curation.min_examples, curation.settle_s),
            age=AgeTrigger(few, curation.max_age_s),
            drift=DriftTrigger(few, threshold, curation.drift_min_weight),
            cooldown_s=curation.cooldown_s,
        ),
        feedback_key=feedback_key(settings),
        compliance_threshold=threshold,
        half_life=curation.drift_half_life,
        watch_half_life=settings.watch.half_life,
        text_retention_s=curation.text_retention_days * 86400.0,
    )


def feedback_key(settings: Settings) -> bytes:
    """What the feedback endpoint signs reviews with, and curation checks them by."""
    return key(settings.curation.feedback_key, settings.data_dir, "feedback").encode()


def session_key(settings: Settings) -> str:
    """What browsers' sessions and forms are signed with."""
    return key(settings.web.session_key, settings.data_dir, "web-session")


def webhook(settings: Settings) -> WebhookConfig | None:
    """Whom notices go to; None where nobody is told."""
    hook = settings.webhook
    if hook.url is None or hook.secret is None:
        return None
    return WebhookConfig(
        url=hook.url,
        secret=hook.secret.get_secret_value(),
        timeout_s=hook.timeout_s,
        most_wait_s=hook.most_wait_s,
        give_up_s=hook.give_up_hours * 3600.0,
        pages=settings.web.public_url,
    )


def policy_bundle(settings: Settings, constitution: Constitution) -> PolicyBundle:
    """The gate's policies as they are now; see `bundle_source`."""
    return bundle_source(settings, constitution).bundle


def bundle_source(settings: Settings, constitution: Constitution) -> BundleSource:
    """The gate's policies, with this installation's hash, principles and bounds.

    Raises `policies.gate.BundleError` where they do not load or fail their cases.
    """
    overrides: dict[str, Any] = {
        "constitutional_hash": settings.constitution.hash,
        "constitutional_principles": principles_by_code(constitution),
    }
    if settings.gate.bounds:
        overrides["bounds"] = dict(settings.gate.bounds)
    return BundleSource(settings.gate.policies or REGO_ROOT, overrides)


_LEAST_FIRST = ("low", "medium", "high", "critical")


def principles_by_code(constitution: Constitution) -> dict[str, dict[str, Any]]:
    """The constitution as the gate reads it: under each code, in small letters, its worst severity and who has it."""
    found: dict[str, dict[str, Any]] = {}
    for principle in constitution.principles:
        for code in principle.codes:
            entry = found.setdefault(code.lower(), {"principles": [], "severity": principle.severity})
            entry["principles"].append(principle.id)
            entry["severity"] = max(entry["severity"], principle.severity, key=_LEAST_FIRST.index)
    return dict(sorted(found.items()))


def audit_config(settings: Settings) -> AuditConfig:
    """The audit engine as it starts; raises SettingsError where a key is none."""
    engine = settings.audit_engine
    seal = SealConfig(
        signing_key=audit_signing_key(settings),
        checkpoint=audit_checkpoint(settings),
        interval_s=engine.seal_interval_s,
        retired_keys=retired_audit_keys(settings),
    )
    return AuditConfig(engine.database_url, audit_digest_key(settings), audit_token(settings), seal=seal)


def audit_token(settings: Settings) -> str:
    """What the audit engine asks of writers, and what its clients present: the installation's own where none is set."""
    return key(settings.audit_engine.token, settings.data_dir, "audit-token")


def audit_checkpoint(settings: Settings) -> Path:
    """Where the audit log's signed heads are kept."""
    return settings.audit_engine.checkpoint or settings.data_dir / "audit-heads.jsonl"


def retired_audit_keys(settings: Settings) -> tuple[bytes, ...]:
    """The public keys that signed heads of the audit log before the one in use; raises SettingsError."""
    try:
        return tuple(public_key(text) for text in settings.audit_engine.retired_public_keys)
    except UnusableKey as error:
        raise SettingsError(f"audit_engine.retired_public_keys: {error}") from None


def audit_signing_key(settings: Settings) -> bytes:
    """The seed of the key that signs heads of the audit log; raises SettingsError where what is set is none."""
    try:
        return seed(key(settings.audit_engine.signing_key, settings.data_dir, "audit-signing"))
    except UnusableKey as error:
        raise SettingsError(f"audit_engine.signing_key: {error}") from None


def audit_digest_key(settings: Settings) -> bytes:
    """What event text in audit entries is digested with."""
    return key(settings.audit_engine.digest_key, settings.data_dir, "audit-digest").encode()


def engine_config(settings: Settings) -> EngineConfig:
    """The policy engine as it starts; raises SettingsError where settings contradict each other."""
    engine = settings.policy_engine
    try:
        return EngineConfig(
            combine=CombineConfig(threshold=settings.constitution.compliance_threshold, evaluators=engine.evaluators),
            judge=judge_config(engine.judge),
            encoder=EncoderConfig(threads=engine.threads),
            cache_dir=settings.training.model_cache.parent / "engine",
            token=secret(engine.token),
        )
    except ValueError as error:
        raise SettingsError(f"policy_engine: {error}") from None


def judge_config(judge: JudgeSettings) -> JudgeConfig | None:
    """The judge model as the policy engine asks it; None where there is none."""
    if judge.url is None:
        return None
    given: dict[str, Any] = judge.model_dump(exclude={"token", "categories"})
    if judge.categories:
        given["categories"] = judge.categories
    return JudgeConfig(**given, token=secret(judge.token))


def audit_client(settings: Settings) -> AuditClient:
    """A client of the audit engine."""
    engine = settings.audit_engine
    return AuditClient(engine.url, audit_token(settings), engine.timeout_s)


def evaluation_audit(settings: Settings) -> SpoolingAudit:
    """Takes evaluation entries, also while the audit engine is away; use it as an asynchronous context manager."""
    spool = Spool(audit_spool(settings), settings.audit_engine.spool_bytes)
    return SpoolingAudit(audit_client(settings), spool, audit_digest_key(settings))


def audit_spool(settings: Settings) -> Path:
    """Where evaluation entries wait for the audit engine."""
    return settings.data_dir / "audit-spool.db"


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
        class_shares=settings.curation.class_shares,
        near_duplicate=settings.curation.near_duplicate,
        benign_ratio=settings.curation.benign_ratio,
        digest_key=key(settings.curation.digest_key, settings.data_dir, "curation-digest"),
        policy_engine=_address(settings.policy_engine),
        audit_engine=_address(settings.audit_engine).model_copy(update={"token": audit_token(settings)}),
        audit_retention_days=settings.audit_engine.retention_days,
        evaluation_audit=EvaluationAuditConfig(
            digest_key=audit_digest_key(settings).decode(),
            spool=audit_spool(settings).absolute(),
            spool_bytes=settings.audit_engine.spool_bytes,
        ),
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
        teacher=_teacher(settings),
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
            processes=training.processes,
        ),
        evaluation=EvaluationConfig(
            suites=tuple(Path(suite) for suite in settings.evaluation.suites),
            max_new_tokens=settings.evaluation.max_new_tokens,
            baselines=settings.evaluation.baselines,
            in_context_examples=settings.evaluation.in_context_examples,
            public_prompts=settings.evaluation.public_prompts,
        ),
        cost=CostConfig(
            teacher_per_million=settings.cost.teacher_per_million,
            machine_per_hour=settings.cost.machine_per_hour,
            traffic_million=settings.cost.traffic_million,
            target_saving=settings.cost.target_saving,
        ),
        lease_s=training.lease_s,
        poll_s=training.poll_s,
        watch_s=settings.watch.interval_s,
        job_timeout_s=training.job_timeout_s,
        job_memory_gb=training.job_memory_gb,
    )


def _teacher(settings: Settings) -> TeacherConfig | None:
    """The teacher, where event text may be sent to one."""
    teacher = settings.teacher
    if teacher.url is None or not teacher.send_event_text:
        return None
    return TeacherConfig(
        url=teacher.url,
        model=teacher.model,
        token=secret(teacher.token),
        opening=teacher.opening,
        max_new_tokens=teacher.max_new_tokens,
        timeout_s=teacher.timeout_s,
        retries=teacher.retries,
        concurrency=teacher.concurrency,
        tokens_per_cycle=teacher.tokens_per_cycle,
        prompt_price=settings.cost.teacher_prompt_per_million,
        completion_price=settings.cost.teacher_per_million,
    )


def mlflow_uri(settings: Settings) -> str:
    """The MLflow server, or the SQLite file beside the adapters."""
    if settings.mlflow.tracking_uri is not None:
        return settings.mlflow.tracking_uri
    return f"sqlite:///{settings.training.artifacts.absolute() / 'mlflow.db'}"


def mlflow_mirror(settings: Settings) -> MlflowMirror:
    """MLflow as the registry's mirror; imports it. Raises `agents.training.mlflow_mirror.MlflowMissing`."""
    mlflow, artifacts = settings.mlflow, settings.training.artifacts
    uri = mlflow_uri(settings)
    # A server keeps artifacts where it was told to.
    own = None if uri.startswith(("http://", "https://")) else artifacts / "mlflow"
    artifacts.mkdir(parents=True, exist_ok=True)
    return MlflowMirror(uri, mlflow.experiment, own, mlflow.timeout_s)


def public_training(settings: Settings, constitution: Constitution) -> int:
    """How many of the constitution's public benign prompts may be trained on."""
    share = cycle_config(settings).evaluation.public_share
    return len(public_pairs(constitution, share, for_training=True))


def secret(value: SecretStr | None) -> str | None:
    """A secret's text, where it is set."""
    return None if value is None else value.get_secret_value()


def _address(engine: Any) -> ServiceAddress:
    return ServiceAddress(url=engine.url, token=secret(engine.token), timeout_s=engine.timeout_s)

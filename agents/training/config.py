"""What a cycle is run with. Plain values, so that a child process can be handed them as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServiceAddress(BaseModel):
    """Where a service is, and what opens its door."""

    model_config = ConfigDict(frozen=True)

    url: str
    token: str | None = Field(None, repr=False)
    timeout_s: float = 10.0


class EvaluationAuditConfig(BaseModel):
    """How the verdicts on drafts and answers reach the audit log: digested, and by a spool while its engine is away."""

    model_config = ConfigDict(frozen=True)

    digest_key: str = Field(repr=False)
    spool: Path
    spool_bytes: int


class StudentConfig(BaseModel):
    """The model, where it is cached, and how it answers."""

    model_config = ConfigDict(frozen=True)

    base_model: str
    risk_level: str
    model_cache: Path
    device: str
    dtype: str
    threads: int
    batch_size: int
    temperature: float
    prompt_tokens: int
    system_message: str


class RevisionConfig(BaseModel):
    """Critique and revision."""

    model_config = ConfigDict(frozen=True)

    max_rounds: int
    constitutional_weight: float
    max_new_tokens: int


class TeacherConfig(BaseModel):
    """A model behind an OpenAI-compatible endpoint that may revise in the student's place.

    opening: how an answer's first words are handed over; `ask` says them in the prompt, `continue` begins the
    assistant's turn with them (vLLM's `continue_final_message`). Prices are US dollars per million tokens.
    tokens_per_cycle: 0 is no limit.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    model: str
    token: str | None = Field(None, repr=False)
    opening: Literal["ask", "continue"]
    max_new_tokens: int
    timeout_s: float
    retries: int
    concurrency: int
    tokens_per_cycle: int
    prompt_price: float
    completion_price: float


class PrivacyConfig(BaseModel):
    """The budget of a domain and the mechanism's parameters."""

    model_config = ConfigDict(frozen=True)

    cycle_targets: tuple[float, ...]
    epsilon: float
    delta: float
    max_grad_norm: float
    fixed_seed: int | None


class TuningConfig(BaseModel):
    """LoRA and its optimisation."""

    model_config = ConfigDict(frozen=True)

    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...]
    epochs: int
    batch_size: int
    micro_batch: int
    learning_rate: float
    max_tokens: int
    processes: int = 1
    """On each machine."""


Baseline = Literal["in_context", "champion"]


class EvaluationConfig(BaseModel):
    """What the models are compared on. `baselines`: which answers are generated beside base's and candidate's."""

    model_config = ConfigDict(frozen=True)

    suites: tuple[Path, ...]
    max_new_tokens: int
    baselines: tuple[Baseline, ...] = ("in_context", "champion")
    in_context_examples: int = 4
    public_prompts: int = 1000
    public_share: float = 0.25


class CostConfig(BaseModel):
    """The price table: US dollars per million output tokens of a teacher, and per hour of the student's machine.

    traffic_million: output tokens, in millions, over which a cycle's own cost is spread.
    """

    model_config = ConfigDict(frozen=True)

    teacher_per_million: float
    machine_per_hour: float
    traffic_million: float
    target_saving: float


class CycleConfig(BaseModel):
    """The whole of it."""

    model_config = ConfigDict(frozen=True)

    database_url: str = Field(repr=False)
    artifacts: Path
    constitution_path: Path | None
    constitutional_hash: str
    compliance_threshold: float
    held_out_share: float
    class_shares: dict[str, float] = Field(default_factory=dict)
    near_duplicate: float = 0.8
    benign_ratio: float
    digest_key: str = Field(repr=False)
    policy_engine: ServiceAddress
    audit_engine: ServiceAddress
    audit_retention_days: int
    evaluation_audit: EvaluationAuditConfig
    student: StudentConfig
    revision: RevisionConfig
    teacher: TeacherConfig | None = None
    privacy: PrivacyConfig
    tuning: TuningConfig
    evaluation: EvaluationConfig
    cost: CostConfig
    lease_s: float
    poll_s: float
    watch_s: float = 5.0
    job_timeout_s: float
    job_memory_gb: float = 0.0

    def directory(self, cycle_id: str) -> Path:
        """Where a cycle's checkpoints, adapter and reports lie."""
        return self.artifacts / cycle_id

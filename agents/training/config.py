"""What a cycle is run with. Plain values, so that a child process can be handed them as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServiceAddress(BaseModel):
    """Where a service is, and what opens its door."""

    model_config = ConfigDict(frozen=True)

    url: str
    token: str | None = Field(None, repr=False)
    timeout_s: float = 10.0


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


class EvaluationConfig(BaseModel):
    """What base and candidate are compared on."""

    model_config = ConfigDict(frozen=True)

    suites: tuple[Path, ...]
    max_new_tokens: int
    public_share: float = 0.25


class CycleConfig(BaseModel):
    """The whole of it."""

    model_config = ConfigDict(frozen=True)

    database_url: str = Field(repr=False)
    artifacts: Path
    constitution_path: Path | None
    constitutional_hash: str
    compliance_threshold: float
    held_out_share: float
    benign_ratio: float
    digest_key: str = Field(repr=False)
    policy_engine: ServiceAddress
    audit_engine: ServiceAddress
    audit_retention_days: int
    student: StudentConfig
    revision: RevisionConfig
    privacy: PrivacyConfig
    tuning: TuningConfig
    evaluation: EvaluationConfig
    lease_s: float
    poll_s: float
    job_timeout_s: float

    def directory(self, cycle_id: str) -> Path:
        """Where a cycle's checkpoints, adapter and reports lie."""
        return self.artifacts / cycle_id

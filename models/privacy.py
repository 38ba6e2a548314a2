"""The privacy ledger's entries and the statement that goes with a trained adapter."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LedgerEntry(BaseModel):
    """Steps reserved before they run. A crash can leave reserved steps that never ran: the ledger over-counts only."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    domain: str
    cohort: int
    cycle_id: str
    model_id: str
    noise_multiplier: float = Field(gt=0.0)
    sample_rate: float = Field(gt=0.0, le=1.0)
    steps: int = Field(ge=1)
    fence: int
    created_at: str


class PrivacySpent(BaseModel):
    """The specification's form of what is spent."""

    model_config = ConfigDict(frozen=True)

    epsilon: float
    delta: float
    remaining_budget: float


class PrivacyStatement(BaseModel):
    """What an adapter's owner may say about privacy, and what they may not."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    domain: str
    cohort: int
    cycle_id: str
    model_id: str
    unit: str
    n_units: int
    n_public: int
    sampling: str
    sample_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    epsilon: float = Field(description="cumulative over the domain's ledger, this cycle included")
    delta: float
    budget: float
    accountant: str
    non_private: bool
    not_covered: tuple[str, ...]

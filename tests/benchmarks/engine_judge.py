"""The policy engine's verdicts without its service: what benchmarks judge answers with."""

from __future__ import annotations

from collections.abc import Sequence

from app.settings import Settings
from policies.constitution import load_constitution
from policies.engine.combine import Verdict
from policies.engine.config import EngineConfig
from policies.engine.embedding import SentenceEncoder
from policies.engine.evaluator import PolicyEvaluator
from policies.engine.reading import Judged


class EngineJudge:
    """The policy engine's verdicts, in this process."""

    def __init__(self) -> None:
        # Where the service keeps them too: the exemplars' vectors are most of the work of a start.
        engine = EngineConfig(cache_dir=Settings().training.model_cache.parent / "engine")
        self.constitution = load_constitution()
        self._evaluator = PolicyEvaluator.fit(self.constitution, engine, SentenceEncoder.load(engine.encoder))
        self._threshold = engine.combine.threshold

    def verdicts(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Of each answer to its prompt."""
        judged = [Judged(answer, prompt) for prompt, answer in zip(prompts, answers, strict=True)]
        return self._evaluator.evaluate(judged)

    def passes(self, verdict: Verdict) -> bool:
        """Whether it is compliant, by the client's rule."""
        return verdict.allow and verdict.confidence_score >= self._threshold

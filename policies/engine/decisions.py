"""What one running policy engine does with a request: limits, local verdicts, the judge, the decision. No HTTP."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Sequence

import anyio.to_thread

from models.evaluation_api import HASH_MISMATCH, EvaluateRequest, Evaluation, ValidateRequest
from policies.constitution import Constitution
from policies.engine.batching import MicroBatcher
from policies.engine.combine import Verdict
from policies.engine.config import EngineConfig
from policies.engine.errors import EngineError, LimitError, UnfitSettings
from policies.engine.evaluator import PolicyEvaluator
from policies.engine.judge import Judge
from policies.engine.reading import Judged
from policies.engine.recent import RecentEvaluations
from policies.engine.telemetry import EngineMetrics

log = logging.getLogger(__name__)

_Asked = EvaluateRequest | ValidateRequest


class PolicyEngine:
    """What one running service holds: the evaluator once it is fitted, the batcher, recent decisions, metrics."""

    def __init__(self, config: EngineConfig, constitution: Constitution) -> None:
        """Loads nothing. UnfitSettings where the settings name what the constitution has not got."""
        _check_evaluators(config, constitution)
        self.config = config
        self.constitution = constitution
        self.metrics = EngineMetrics()
        self.recent = RecentEvaluations(config.recent_capacity)
        self.failure: str | None = None
        self.judge = Judge.of(config, constitution, self.metrics)
        self._evaluator: PolicyEvaluator | None = None
        self._batcher = MicroBatcher(config.max_batch, config.max_waiting)

    @property
    def ready(self) -> bool:
        """True once the heads are fitted."""
        return self._evaluator is not None

    async def serve(self) -> None:
        """Load, then judge until cancelled. A failed load is kept in `failure`, and readiness tells it."""
        started = time.monotonic()
        try:
            evaluator = await anyio.to_thread.run_sync(PolicyEvaluator.load, self.constitution, self.config)
        except EngineError as error:
            self.failure = str(error)
            log.error("policy engine cannot start: %s", error)
            return
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.exception("policy engine cannot start")
            return
        self._evaluator = evaluator
        self.metrics.ready.set(1)
        self.metrics.load_seconds.set(time.monotonic() - started)
        log.info("policy engine ready in %.1f s: %s", time.monotonic() - started, evaluator.report)
        await self._batcher.run(evaluator.evaluate)

    async def aclose(self) -> None:
        """Close what is open to the outside."""
        if self.judge is not None:
            await self.judge.aclose()

    def hash_matches(self, given: str) -> bool:
        """Whether a request speaks of the constitution in force."""
        return hmac.compare_digest(given.encode(), self.constitution.identifier.encode())

    async def evaluate(self, requests: Sequence[_Asked], endpoint: str) -> list[Evaluation]:
        """Decisions on requests, in order. Raises LimitError, EngineBusyError, or EngineError while loading."""
        self._check_limits(requests)
        if self._evaluator is None:
            raise EngineError(self.failure or "the heads are still being fitted; try again in some seconds")
        accepted = [request for request in requests if self.hash_matches(request.constitutional_hash)]
        with self.metrics.seconds.labels(endpoint).time():
            texts = [Judged(request.content, request.prompt) for request in accepted]
            verdicts = iter(await self._judge(texts) if texts else [])
        return [
            self._decision(
                request,
                next(verdicts) if self.hash_matches(request.constitutional_hash) else self._mismatch(request),
            )
            for request in requests
        ]

    async def _judge(self, texts: list[Judged]) -> list[Verdict]:
        try:
            verdicts = await self._batcher.judge(texts)
        finally:
            self.metrics.waiting.set(self._batcher.waiting)
        return verdicts if self.judge is None else await self.judge.review(texts, verdicts)

    def _check_limits(self, requests: Sequence[_Asked]) -> None:
        limit = self.config.max_content_chars
        if len(requests) > self.config.max_batch:
            raise LimitError(f"{len(requests)} items; send at most {self.config.max_batch} a request")
        for number, request in enumerate(requests):
            for name, text in (("content", request.content), ("context.prompt", request.prompt or "")):
                if len(text) > limit:
                    raise LimitError(f"item {number}: {name} has {len(text)} characters; send at most {limit}")

    def _mismatch(self, request: _Asked) -> Verdict:
        reason = (
            f"constitutional hash {request.constitutional_hash[:80]!r} was sent, but the constitution in force is "
            f"{self.constitution.identifier!r}; send that one, or ask the engine that holds yours"
        )
        return Verdict(allow=False, confidence_score=0.0, violations=[HASH_MISMATCH], reason=reason, scores={})

    def _decision(self, request: _Asked, verdict: Verdict) -> Evaluation:
        decision_id = uuid.uuid4().hex
        self.recent.add(decision_id, request.context, verdict.confidence_score, verdict.allow)
        self.metrics.judged(verdict.allow, verdict.violations)
        return Evaluation(
            allow=verdict.allow,
            confidence_score=verdict.confidence_score,
            violations=verdict.violations,
            reason=verdict.reason,
            policy_version=f"{self.constitution.version}+{self.constitution.digest[:12]}",
            decision_id=decision_id,
            constitution_digest=self.constitution.digest,
            scores=verdict.scores,
        )


def _check_evaluators(config: EngineConfig, constitution: Constitution) -> None:
    known = {principle.id for principle in constitution.principles}
    if unknown := set(config.combine.evaluators) - known:
        raise UnfitSettings(
            f"evaluators are set for {', '.join(sorted(unknown))}; the constitution's principles are "
            f"{', '.join(sorted(known))}"
        )

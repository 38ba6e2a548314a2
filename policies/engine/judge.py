"""The judge: a chat model that is asked about texts which the local evaluators would let pass.

It is a second pair of eyes, never the only one: where it cannot answer, the local verdict stands as it is and says
so, and what it answers can only take confidence away unless the settings allow more (`combine.with_opinion`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from policies.clients.chat import ChatEndpoint, NoAnswer, Why
from policies.constitution import Constitution, Principle
from policies.engine import combine
from policies.engine.combine import Opinion, Verdict
from policies.engine.config import EngineConfig
from policies.engine.errors import UnfitSettings
from policies.engine.judge_budget import BudgetState, DailyBudget, MinuteRate
from policies.engine.judge_config import LLAMA_GUARD_CATEGORIES, JudgeConfig
from policies.engine.judge_formats import FORMATS, JudgeFormat, Nonces, NotUnderstood
from policies.engine.reading import Judged
from policies.engine.telemetry import EngineMetrics
from policies.gate.breaker import CircuitBreaker

log = logging.getLogger(__name__)

# An endpoint that failed so often in a row is left alone for a while: else each batch would wait its deadline out.
FAILURES_UNTIL_REST = 5
REST_S = 15.0

_SAYS: dict[str, str] = {
    "unreachable": "it cannot be reached",
    "timed_out": "it took too long",
    "rate_limited": "the rate limit",
    "budget_used_up": "the day's budget is used up",
    "rejected": "it rejects our requests",
    "not_understood": "its reply was not in the form asked for",
    "too_long": "the text is too long for it",
}
# What tells of the endpoint, and not of our own limits or of one text.
_ENDPOINT_FAULTS = frozenset({"unreachable", "timed_out", "rejected"})


class Judge:
    """Asks the endpoint about texts, within rate, budget and deadline. For use on one event loop; close it."""

    def __init__(
        self,
        config: JudgeConfig,
        engine: EngineConfig,
        principles: Sequence[Principle],
        metrics: EngineMetrics,
        asking: JudgeFormat | None = None,
    ) -> None:
        self.config = config
        self._combine = engine.combine
        self._principles = [p for p in principles if engine.combine.speaks_for("judge", p.id)]
        self._format = asking or FORMATS[config.format](self._principles, config)
        self._endpoint = ChatEndpoint(config.server)
        self._rate = MinuteRate(config.requests_per_minute)
        self._budget = DailyBudget(config.calls_per_day, config.tokens_per_day, _budget_file(engine.cache_dir))
        self._breaker = CircuitBreaker(FAILURES_UNTIL_REST, REST_S)
        self._free = asyncio.Semaphore(config.concurrency)
        self._answers, self._left = metrics.judge, metrics.judge_budget_left
        self._last: Why | None = None
        _show(self._left, self._budget.state)

    @classmethod
    def of(cls, engine: EngineConfig, constitution: Constitution, metrics: EngineMetrics) -> Judge | None:
        """The judge that the settings name, if they name one; UnfitSettings where its categories do not fit."""
        if engine.judge is None:
            return None
        known = {principle.id for principle in constitution.principles}
        unknown = set(engine.judge.categories.values()) - known
        if unknown and dict(engine.judge.categories) != dict(LLAMA_GUARD_CATEGORIES):
            raise UnfitSettings(
                f"judge categories name {', '.join(sorted(unknown))}; the constitution's principles are "
                f"{', '.join(sorted(known))}"
            )
        return cls(engine.judge, engine, constitution.principles, metrics)

    @property
    def state(self) -> str:
        """`answering`, `budget_used_up`, `resting` after failures, or what kept the last answer away."""
        if self._budget.state.used_up:
            return "budget_used_up"
        if self._breaker.is_open:
            return "resting"
        return self._last or "answering"

    async def review(self, texts: Sequence[Judged], verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts with the judge's opinions; those that deny already are left alone. Never raises but for
        cancellation, and takes no longer than the deadline."""
        seconds = self.config.deadline_s if len(texts) == 1 else self.config.batch_deadline_s
        deadline = time.monotonic() + seconds
        return list(
            await asyncio.gather(
                *(self._reviewed(text, verdict, deadline) for text, verdict in zip(texts, verdicts, strict=True))
            )
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    async def _reviewed(self, text: Judged, verdict: Verdict, deadline: float) -> Verdict:
        if not verdict.allow or verdict.scores["request_harm"] < self.config.least_harm or not self._principles:
            return verdict
        try:
            opinion = await self._opinion(text, deadline)
        except NoAnswer as nothing:
            self._last = nothing.why
            self._answers.labels(nothing.why).inc()
            log.info("no answer from the judge: %s", nothing)
            return combine.without_opinion(verdict, _SAYS[nothing.why])
        self._last = None
        self._answers.labels("answered").inc()
        return combine.with_opinion(verdict, opinion, self._principles, self._combine, self.config)

    async def _opinion(self, text: Judged, deadline: float) -> Opinion:
        if len(text.content) + len(text.prompt or "") > self.config.max_chars:
            raise NoAnswer("too_long", f"more than {self.config.max_chars} characters; raise max_chars")
        try:
            async with asyncio.timeout_at(_loop_time(deadline)), self._free:
                return await self._ask(text, deadline)
        except TimeoutError:
            raise NoAnswer("timed_out", "the deadline passed while others were being judged") from None

    async def _ask(self, text: Judged, deadline: float) -> Opinion:
        if not self._breaker.admit():
            raise NoAnswer("unreachable", f"it failed {FAILURES_UNTIL_REST} times and is left alone for {REST_S:.0f} s")
        nonces = Nonces.fresh()
        messages = self._format.messages(text, nonces)
        estimate = sum(len(message["content"]) for message in messages) // 3 + self.config.max_reply_tokens

        async def admit(until: float) -> None:
            await self._turn(until)
            # Counted before it is made: a budget may be left over, never overdrawn.
            if not self._budget.take(estimate):
                raise NoAnswer("budget_used_up", "the day's budget is used up")
            _show(self._left, self._budget.state)

        try:
            reply = await self._endpoint.complete(_body(self.config, messages), deadline, admit)
            if not reply.finished:
                raise NoAnswer("not_understood", "the reply was cut off; raise max_reply_tokens")
        except NoAnswer as nothing:
            (self._breaker.failed if nothing.why in _ENDPOINT_FAULTS else self._breaker.abandoned)()
            raise
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        if reply.total_tokens is not None:
            self._budget.correct(estimate, reply.total_tokens)
            _show(self._left, self._budget.state)
        try:
            return self._format.read(reply.text, nonces)
        except NotUnderstood as error:
            raise NoAnswer("not_understood", str(error)) from None

    async def _turn(self, deadline: float) -> None:
        """Wait until the rate allows an attempt; NoAnswer where that is after the deadline."""
        while wait := self._rate.admit():
            if time.monotonic() + wait >= deadline:
                raise NoAnswer("rate_limited", f"{self.config.requests_per_minute} requests were made in this minute")
            await asyncio.sleep(wait)


def _body(config: JudgeConfig, messages: list[dict[str, str]]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages,
        "temperature": 0,
        "max_tokens": config.max_reply_tokens,
        "stream": False,
    }
    if config.format == "openai_json" and config.json_mode:
        body["response_format"] = {"type": "json_object"}
    return body


def _budget_file(cache_dir: Path | None) -> Path | None:
    return None if cache_dir is None else cache_dir / "judge-budget.json"


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()


def _show(gauge: Gauge, state: BudgetState) -> None:
    for what, used, limit in (
        ("calls", state.calls, state.calls_per_day),
        ("tokens", state.tokens, state.tokens_per_day),
    ):
        if limit:
            gauge.labels(what).set(max(0, limit - used))

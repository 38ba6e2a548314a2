"""What an evaluation costs: one alone, many together, and a question to a judge model beside them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from loopback import serving
from obedient_judge import ObedientJudge

from benchmarks.tell import tell
from policies.constitution import Constitution
from policies.engine.combine import Verdict
from policies.engine.config import EngineConfig
from policies.engine.evaluator import PolicyEvaluator
from policies.engine.judge import Judge
from policies.engine.judge_config import JudgeConfig
from policies.engine.reading import Judged
from policies.engine.telemetry import EngineMetrics

WARM_UP = 20
BATCH = 64
PASSES = Verdict(True, 0.99, [], "the local evaluators find nothing", {"request_harm": 0.3, "injection": 0.0})


def measure(evaluator: PolicyEvaluator, texts: Sequence[str], single: int) -> dict[str, Any]:
    """Time pairs one by one (`single` of them) and the other texts in batches, each text for the first time.

    `texts` are short, so that with their numbers they stay within 32 tokens.
    """
    fresh = [f"{text} ({number})" for number, text in enumerate(texts)]
    pairs = [Judged(fresh[-1 - n], fresh[n]) for n in range(WARM_UP + single)]
    times = []
    for number, pair in enumerate(pairs):
        began = time.perf_counter()
        evaluator.evaluate([pair])
        if number >= WARM_UP:
            times.append((time.perf_counter() - began) * 1e3)
    requests = [Judged(f"{text} (again {number})") for number, text in enumerate(texts)]
    began, used = time.perf_counter(), time.process_time()
    for start in range(0, len(requests), BATCH):
        evaluator.evaluate(requests[start : start + BATCH])
    took, used = time.perf_counter() - began, time.process_time() - used
    figures = {
        "evaluate_p50_ms": round(_quantile(times, 0.5), 1),
        "evaluate_p99_ms": round(_quantile(times, 0.99), 1),
        "evaluations": single,
        "batch_texts_per_s": round(len(requests) / took, 1),
        "batch_texts_per_cpu_s": round(len(requests) / used, 1),
        "batch_size": BATCH,
    }
    tell(f"one evaluation: p50 {figures['evaluate_p50_ms']} ms, p99 {figures['evaluate_p99_ms']} ms")
    return figures


def measure_judge(constitution: Constitution, count: int) -> dict[str, Any]:
    """What asking a judge costs beside its own thinking: a stub on the loopback interface answers at once.

    A real judge's time comes on top; it is its own, and not measured here.
    """
    stub = ObedientJudge()
    with serving(stub.app) as url:
        config = JudgeConfig(f"{url}/v1", "stub", requests_per_minute=0)
        times = asyncio.run(_ask(config, constitution, count))
    return {
        "judge_call_ms": round(_quantile(times, 0.5), 2),
        "judge_call_p99_ms": round(_quantile(times, 0.99), 2),
        "judge_calls": stub.asked,
        "judge": "a stub that answers at once, over loopback; a model's own time comes on top",
    }


async def _ask(config: JudgeConfig, constitution: Constitution, count: int) -> list[float]:
    judge = Judge(config, EngineConfig(), constitution.principles, EngineMetrics())
    times = []
    try:
        for number in range(WARM_UP + count):
            text = Judged(f"It is number {number}.", "Which number is it?")
            began = time.perf_counter()
            (verdict,) = await judge.review([text], [PASSES])
            if verdict.scores.get("judge_answered") != 1.0:
                raise RuntimeError(f"the stub gave no answer: {verdict.reason}")
            if number >= WARM_UP:
                times.append((time.perf_counter() - began) * 1e3)
    finally:
        await judge.aclose()
    return times


def _quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

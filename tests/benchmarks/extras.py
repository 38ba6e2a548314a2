"""What is measured only when asked for: memory over many events, cost beside many claims, time to start."""

from __future__ import annotations

import asyncio
import secrets
from statistics import median
from typing import Any

import redis.asyncio as aioredis

from agents.routing.dedup import Claims
from agents.routing.identity import EventIdentity
from benchmarks.cases import fill_input, tell_outcome
from benchmarks.messages import Form
from benchmarks.mix import SEED
from benchmarks.run import OURS, Outcome, run
from benchmarks.stage import Stage
from benchmarks.tell import tell

FEW_EVENTS, MANY_EVENTS = 10_000, 2_000_000
MANY_CLAIMS = 5_000_000
_CLAIMS_RUN_EVENTS = 100_000
_CLAIMS_RUNS = 3
_CLAIMS_A_CALL = 20_000
_STARTUP_EVENTS = 1_000
_STARTUP_RUNS = 3


def memory(stage: Stage) -> dict[str, Any]:
    """Return, by form and number of events, the worker's peak memory in MiB."""
    peaks: dict[str, Any] = {}
    for form in (Form.JSON_BODY, Form.SINGLE):
        for count in (FEW_EVENTS, MANY_EVENTS):
            outcome = _run(stage, form, count)
            tell_outcome(f"memory, {form.value}, {count:,} events", outcome)
            peak = peaks.setdefault(form.value, {"counts_exact": True})
            peak[str(count)] = round(outcome.reading.peak_mb, 1)
            peak["counts_exact"] &= not outcome.differences
    return peaks


def claims(stage: Stage) -> dict[str, Any]:
    """Return, by number of claims that stand already, the CPU of worker and of Redis in microseconds a record.

    Medians of some runs, each over other events, so that all of them claim anew.
    """
    costs: dict[str, Any] = {}
    for count in (0, MANY_CLAIMS):
        stage.clear()
        asyncio.run(_claim_others(stage, count))
        outcomes = []
        for number in range(_CLAIMS_RUNS):
            given = fill_input(stage, Form.JSON_BODY, _CLAIMS_RUN_EVENTS, seed=SEED + 1 + number)
            stage.clear_outputs()
            outcomes.append(run(stage, OURS, given))
            tell_outcome(f"beside {count:,} claims", outcomes[-1])
        costs[str(count)] = {
            "worker": round(median(outcome.reading.cpu_us_per_record for outcome in outcomes), 2),
            "redis": round(median(outcome.redis_us for outcome in outcomes), 2),
            "records_per_s": round(median(outcome.reading.records_per_s for outcome in outcomes)),
            "counts_exact": not any(outcome.differences for outcome in outcomes),
        }
    stage.clear()
    return costs


def startup(stage: Stage) -> float:
    """Return the seconds from the start of the process to its first acknowledged batch, the median of some runs."""
    runs = [_run(stage, Form.JSON_BODY, _STARTUP_EVENTS).started_s for _ in range(_STARTUP_RUNS)]
    tell(f"first batch acknowledged after {', '.join(f'{seconds:.1f}' for seconds in runs)} s")
    return round(median(runs), 2)


def _run(stage: Stage, form: Form, count: int) -> Outcome:
    given = fill_input(stage, form, count)
    stage.clear()
    outcome = run(stage, OURS, given)
    stage.drop([given.topic])
    return outcome


async def _claim_others(stage: Stage, count: int) -> None:
    """Claim so many events that are not in the input, by the router's own code, so that they lie as it lays them."""
    settings = stage.settings
    client = aioredis.Redis.from_url(settings.redis.url, socket_timeout=60.0)
    own = Claims(client, settings.routing.dedup_window_s, settings.routing.dedup_buckets)
    if count:
        tell(f"laying {count:,} claims")
    for begin in range(0, count, _CLAIMS_A_CALL):
        drawn = secrets.token_hex(16 * _CLAIMS_A_CALL)
        batch = []
        for index in range(min(_CLAIMS_A_CALL, count - begin)):
            text = drawn[32 * index : 32 * index + 32]
            batch.append((EventIdentity("elsewhere", text, text), f"otel-audit-events:0:{begin}:{index}"))
        await own.claim(batch)
    await client.aclose()

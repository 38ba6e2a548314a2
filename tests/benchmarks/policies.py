"""`make bench-policies`: what a decision of the gate and a write to the audit log cost; `var/bench/policies.json`.

One caller, one question after the other, each engine with the same questions in turn. OPA is a process of its own
behind its REST API, as in production; regopy decides in this one; the cache is a real Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from audit_rig import measure
from redis.asyncio import Redis

from app.embedded.opa import OpaServer
from app.embedded.postgres import PostgresServer
from app.embedded.redis import RedisServer
from app.embedded.run_directory import RunDirectory
from benchmarks.stage import REPOSITORY
from benchmarks.tell import tell
from models.decision import GateDecision
from policies.gate import OpaConfig, OpaEngine, PolicyBundle, PolicyEngine, RegopyEngine, write_bundle
from policies.gate.bundle import REGO_ROOT, load_bundle
from policies.gate.cache import CachedEngine
from policies.gate.cases import Case, load_cases
from policies.gate.live import LiveEngine

RESULT = REPOSITORY / "var" / "bench" / "policies.json"
WARM_UP = 200
LIMITS = {"decision_p99_ms.opa": 2.0, "decision_p99_ms.regopy": 2.0, "cached_p50_us": 250.0}
"""What the figures may be at most, on a quiet machine with two cores."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where an engine gave a wrong answer."""
    parser = argparse.ArgumentParser(prog="make bench-policies", description=__doc__)
    parser.add_argument("--decisions", type=int, default=5_000, help="of each engine, and of the cache")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    table = load_cases(REGO_ROOT)
    bundle = table.bundles(load_bundle())["usual"]
    cases = [case for case in table.cases if case.data == "usual" and case.name.endswith(": base")]
    with TemporaryDirectory() as folder, RunDirectory.create(Path(folder) / "run") as run:
        write_bundle(bundle, Path(folder) / "bundle")
        opa, redis = OpaServer(run, Path(folder) / "bundle"), RedisServer(run)
        postgres = PostgresServer(run)
        try:
            opa.start()
            redis.start()
            figures = asyncio.run(_measure(bundle, cases, opa.url, redis.url, asked.decisions))
            opa.stop()
            redis.stop()
            postgres.start()
            figures["audit_writes"] = {
                "sqlite": _writes(run, Path(folder), f"sqlite:///{folder}/audit.db"),
                "postgresql": _writes(run, Path(folder), postgres.url()),
            }
        finally:
            opa.stop()
            redis.stop()
            postgres.stop()
    _write(asked.out, figures)
    for name, limit in LIMITS.items():
        value = _at(figures, name)
        tell(f"{name}: {value:g} (at most {limit:g}){'' if value <= limit else '  EXCEEDED'}")
    tell(f"written to {asked.out}")
    return 0 if figures["decisions_right"] else 1


def _writes(run: RunDirectory, folder: Path, url: str) -> dict[str, float]:
    """What eight writers, each waiting for its receipt, have acknowledged a second; the entry is durable by then."""
    own = folder / url.partition(":")[0]  # keys and signed heads belong to one log
    own.mkdir()
    load = measure(run, own, url, writers=8, seconds=10.0)
    figures = {"per_s": round(load.per_second), "p50_ms": load.latency_ms(0.5), "p99_ms": load.latency_ms(0.99)}
    tell(f"audit writes, {url.partition(':')[0]}: {figures}")
    return figures


async def _measure(
    bundle: PolicyBundle, cases: Sequence[Case], opa_url: str, redis_url: str, count: int
) -> dict[str, Any]:
    config = OpaConfig(
        opa_url, bundle_revision=bundle.bundle_revision, data_revision=bundle.data_revision, timeout_seconds=5.0
    )
    regopy, opa = RegopyEngine(bundle), OpaEngine(config)
    recorded = 0

    async def present(*, fresh: bool) -> PolicyBundle:
        del fresh
        return bundle

    async def record(facts: Mapping[str, Any], decision: GateDecision) -> None:
        nonlocal recorded
        del facts, decision
        recorded += 1

    store = Redis.from_url(redis_url)
    cached = CachedEngine(LiveEngine(regopy, present), store, b"a benchmark's own key", record)
    inference = [case for case in cases if case.action == "model_inference"]
    # As a worker does once it runs (`app.heap`): a full collection in the middle of a question is no cost of it.
    gc.collect()
    gc.freeze()
    try:
        times, right = {}, True
        for name, engine, asked in (("opa", opa, cases), ("regopy", regopy, cases), ("cached", cached, inference)):
            times[name], good = await _time(engine, asked, count)
            right = right and good
            tell(f"{name}: p50 {_quantile(times[name], 0.5):.0f} us, p99 {_quantile(times[name], 0.99):.0f} us")
        hits = cached.snapshot()["hit"]
    finally:
        await cached.aclose()
        await opa.aclose()
        await store.aclose()
    return {
        "decision_p50_ms": {name: round(_quantile(times[name], 0.5) / 1e3, 3) for name in ("opa", "regopy")},
        "decision_p99_ms": {name: round(_quantile(times[name], 0.99) / 1e3, 3) for name in ("opa", "regopy")},
        "cached_p50_us": round(_quantile(times["cached"], 0.5), 1),
        "cached_p99_us": round(_quantile(times["cached"], 0.99), 1),
        "decisions_each": count,
        "decisions_right": right and recorded == len(inference) and hits == count + WARM_UP - len(inference),
    }


async def _time(engine: PolicyEngine, cases: Sequence[Case], count: int) -> tuple[list[float], bool]:
    """Microseconds of each decision, and whether all came out as their case says."""
    decide: Callable[[str, Mapping[str, Any]], Awaitable[GateDecision]] = engine.decide
    times, right = [], True
    for number in range(WARM_UP + count):
        case = cases[number % len(cases)]
        began = time.perf_counter()
        decision = await decide(case.action, case.facts)
        took = time.perf_counter() - began
        if number >= WARM_UP:
            times.append(took * 1e6)
        right = right and decision.conclusive and {reason.code for reason in decision.reasons} == case.codes
    return times, right


def _quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _at(figures: Mapping[str, Any], path: str) -> float:
    value: Any = figures
    for part in path.split("."):
        value = value[part]
    return float(value)


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    """Put the figures beside those of other benchmarks in the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = orjson.loads(path.read_bytes()) if path.exists() else {}
    whole = path.with_suffix(".part")
    whole.write_bytes(orjson.dumps({**kept, **figures}, option=orjson.OPT_INDENT_2) + b"\n")
    whole.replace(path)


if __name__ == "__main__":
    sys.exit(main())

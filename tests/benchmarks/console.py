"""`python -m benchmarks.console`: how long a page takes with a large store behind it; `var/bench/console.json`.

Over real HTTP, one caller, each page again and again: 1,000,000 events in the audit log and in the counters, 10,000
examples, 1,000 cycles with their history, ledger, manifests and outbox. Rows are inserted in bulk; that is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import orjson
import sqlalchemy as sa
from loopback import serving
from web_rig import PLAN, SERVICE_TOKEN, Rig, figures, make_example, statement

from app.store import examples, reports
from app.store import tables as schema
from app.store.access import UserRole
from benchmarks.stage import REPOSITORY
from models.cycle import CycleState
from policies.audit.config import AuditConfig
from policies.audit.service import create_audit_app
from policies.audit.tables import audit_entries

RESULT = REPOSITORY / "var" / "bench" / "console.json"
LIMIT_MS = 100.0
MODELS, DOMAINS = 12, 4
TOKEN = "t" * 40


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where the median of a page is above `LIMIT_MS`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=30, help="how often each page is asked for")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        found = measure(Path(name), asked.events, asked.examples, asked.cycles, asked.rounds)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    for path, figure in found["pages"].items():
        times = "   ".join(f"{name} {figure[f'{name}_ms']:6.1f} ms" for name in ("median", "p95", "min", "cpu"))
        print(f"{path:28} {times}   {figure['bytes']} B")
    slow = [path for path, figure in found["pages"].items() if figure["median_ms"] > LIMIT_MS]
    print(f"slower than {LIMIT_MS:.0f} ms: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


def measure(folder: Path, events: int, n_examples: int, n_cycles: int, rounds: int) -> dict[str, Any]:
    """The pages' times over a store of that size."""
    audit_url = f"sqlite:///{folder / 'audit.db'}"
    with serving(create_audit_app(AuditConfig(audit_url, b"k" * 32, token=TOKEN, read_token=TOKEN))) as engine:
        fill_audit(audit_url, events, n_cycles)
        often = {f"FLYWHEEL_WEB__{name}_PER_MINUTE": "1000000" for name in ("READS", "WRITES", "FAILURES")}
        rig = Rig(folder, more=often | {"FLYWHEEL_AUDIT_ENGINE__URL": engine, "FLYWHEEL_AUDIT_ENGINE__TOKEN": TOKEN})
        fill(rig, events, n_examples, n_cycles)
        token = rig.token("ada", UserRole.OPERATOR)
        rig.app.router.lifespan_context = _no_kafka  # a page needs none
        with serving(rig.app) as url:
            headers = {"authorization": f"Bearer {token}"}
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60.0) as http:
                pages = ["/", "/?span=7d", f"/cycles/{cycle_name(n_cycles // 2)}", "/review", "/models", "/routing",
                         "/dead-letters", "/audit", "/audit?event_type=gate_decision", "/api/v1/overview",
                         "/api/v1/cycles", "/stats"]  # fmt: skip
                times = {path: timed(http, path, rounds) for path in pages}
            assert httpx.get(f"{url}/stats", headers={"authorization": f"Bearer {SERVICE_TOKEN}"}).is_success
    return {"events": events, "examples": n_examples, "cycles": n_cycles, "rounds": rounds, "pages": times}


def timed(http: httpx.Client, path: str, rounds: int) -> dict[str, float]:
    """Milliseconds from request to the last byte; `cpu_ms`: of processor, for caller, worker and audit engine together,
    which tells the cost also where others keep the machine busy.
    """
    taken = []
    size = 0
    worked = 0.0
    for turn in range(rounds + 2):
        if turn == 2:
            worked = time.process_time()
        began = time.perf_counter()
        answer = http.get(path)
        taken.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:300])
        size = len(answer.content)
    worked = time.process_time() - worked
    # Two to warm up: the first compiles the template.
    taken = sorted(taken[2:])
    p95 = taken[max(0, round(0.95 * len(taken)) - 1)]
    return {
        "median_ms": statistics.median(taken),
        "p95_ms": p95,
        "min_ms": taken[0],
        "cpu_ms": worked * 1000 / rounds,
        "bytes": size,
    }


def cycle_name(number: int) -> str:
    """The id of a cycle."""
    return f"20260101-000000-{number:06x}"


def fill(rig: Rig, events: int, n_examples: int, n_cycles: int) -> None:
    """Rows as a year's work leaves them."""
    with rig.database.write() as connection:
        for start in range(0, n_examples, 1000):
            some = [
                make_example(
                    f"e{n}", f"domain-{n % DOMAINS}", model_id=f"model-{n % MODELS}", priority=n % 4,
                    subject_token=f"sub_{n // 2}", prompt=f"How do I do {n}? " * 20, response=f"Like so, {n}. " * 40,
                    created_at=stamp(n),
                )
                for n in range(start, min(start + 1000, n_examples))
            ]  # fmt: skip
            examples.insert(connection, some)
        for table, rows in _cycle_rows(n_cycles):
            connection.execute(table.insert(), rows)
        connection.execute(schema.adherence.insert(), [
            {"model_id": f"model-{n}", "domain": f"domain-{n % DOMAINS}", "adherent": 90.0, "weight": 95.0 + n,
             "evaluations": events // MODELS, "updated_at": stamp(0)} for n in range(MODELS)
        ])  # fmt: skip
        now = datetime.now(UTC)
        for model in range(MODELS):
            connection.execute(schema.adherence_history.insert(), [
                {"model_id": f"model-{model}", "domain": f"domain-{model % DOMAINS}", "mean": 0.9 + point % 9 / 100,
                 "minute": (now - timedelta(minutes=span * point)).strftime("%Y-%m-%dT%H:%M"), "span": span,
                 "evaluations": point}
                for span, points in ((1, 1440), (10, 1152), (60, 8760)) for point in range(points)
            ])  # fmt: skip
        share = dict.fromkeys(("routed", "filtered", "duplicate", "sampled_out", "dead_lettered"), events // 5)
        told = {"in": events, **share, "by_classification": {"audit_trail": events // 5}, "by_reason": {}, "rates": {}}
        reports.save(connection, "route@host:1", "route", {"routing": told, "lag": {"otel-audit-events": 12}})


def _cycle_rows(n_cycles: int) -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
    states = [CycleState.REJECTED, CycleState.FAILED, CycleState.CANCELLED, CycleState.PROMOTED]
    facts = {"members": 118, "held_out": 12, "revision": {"compliant": 110, "rounds": 2, "pii_found": 0},
             "privacy": statement(), "evaluation": figures()}  # fmt: skip
    member = {"example_id": "ex-e1", "digest": "cd" * 32, "violation_type": "illegal_acts", "unit": "sub_1"}
    document = {"cycle_id": "", "domain": "d", "members": [member] * 118, "held_out": [member] * 12,
                "public_benign": 64, "excluded": {}, "constitution_digest": "ef" * 32}  # fmt: skip
    yield schema.cycles, [
        {"cycle_id": cycle_name(n), "model_id": f"model-{n % MODELS}", "domain": f"domain-{n % DOMAINS}",
         "state": states[n % 4].value, "trigger_type": "count", "requested_by": "curation", "version": 8,
         "plan": PLAN.model_dump(mode="json"), "plan_digest": "12" * 32, "manifest_digest": "ab" * 32,
         "facts": facts, "reasons": [{"code": "c", "message": "Measured adherence is below the bound."}],
         "created_at": stamp(n), "updated_at": stamp(n)}
        for n in range(n_cycles)
    ]  # fmt: skip
    yield schema.cycle_events, [
        {"cycle_id": cycle_name(n), "version": v, "state": "training", "detail": {"lane": "slow"},
         "created_at": stamp(n)}
        for n in range(n_cycles) for v in range(8)
    ]  # fmt: skip
    yield schema.cycle_progress, [
        {"cycle_id": cycle_name(n), "stage": "train", "done": 40, "total": 40, "detail": {"epsilon": 3.97},
         "updated_at": stamp(n)} for n in range(n_cycles)
    ]  # fmt: skip
    yield (
        schema.manifests,
        [
            {"cycle_id": cycle_name(n), "digest": "ab" * 32, "document": document, "created_at": stamp(n)}
            for n in range(n_cycles)
        ],
    )
    yield schema.ledger, [
        {"domain": f"domain-{n % DOMAINS}", "cohort": 0, "cycle_id": cycle_name(n), "model_id": f"model-{n % MODELS}",
         "noise_multiplier": 1.03, "sample_rate": 0.25, "steps": 1, "fence": 1, "created_at": stamp(n)}
        for n in range(n_cycles) for _ in range(40)
    ]  # fmt: skip
    yield schema.model_versions, [
        {"version_id": cycle_name(n), "model_id": f"model-{n % MODELS}", "cycle_id": cycle_name(n),
         "base_model": PLAN.base_model, "path": "x", "digest": "34" * 32, "statement": statement(),
         "evaluation": figures(), "created_at": stamp(n)} for n in range(0, n_cycles, 2)
    ]  # fmt: skip
    yield (
        schema.deployments,
        [
            {"model_id": f"model-{n % MODELS}", "version_id": cycle_name(n), "reason": "cycle", "created_at": stamp(n)}
            for n in range(0, n_cycles, 4)
        ],
    )
    yield schema.outbox, [
        {"channel": "audit", "destination": "privacy_ledger" if step < 40 else "cycle_transition", "key": None,
         "payload": {"entry_id": f"{n}-{step}"}, "created_at": stamp(n), "delivered_at": stamp(n)}
        for n in range(n_cycles) for step in range(56)
    ]  # fmt: skip


def fill_audit(url: str, events: int, n_cycles: int) -> None:
    """Entries of the audit log, without links that would hold: nothing here verifies them."""
    body = '{"context": {"facts": {"n": 1}, "decision": {"action": "model_inference", "allow": true}}}'
    database = sa.create_engine(url)
    with database.begin() as connection:
        for start in range(0, events, 50_000):
            connection.execute(audit_entries.insert(), [
                {"seq": n + 10, "entry_id": f"e-{n}", "model_id": f"model-{n % MODELS}",
                 "event_type": "constitutional_validation" if n % 50 else "gate_decision",
                 "cycle_id": None if n % 50 else cycle_name(n // 50 % max(1, n_cycles)),
                 "domain": f"domain-{n % DOMAINS}", "timestamp": stamp(n), "recorded_at": stamp(n),
                 "violation_count": 0, "body": body, "content_digest": "0" * 64, "previous": f"{n:064x}",
                 "digest": f"{n + 1:064x}"}
                for n in range(start, min(start + 50_000, events))
            ])  # fmt: skip
    database.dispose()


def stamp(number: int) -> str:
    """A time that grows with the number."""
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _no_kafka:  # noqa: N801 - stands in for a context manager function
    def __init__(self, _: Any) -> None:
        pass

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


if __name__ == "__main__":
    sys.exit(main())

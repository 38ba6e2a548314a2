"""How long a whole small cycle takes: drafts, critique and revision, private training, evaluation, by its jobs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from benches import Bench, at_work, bench_of
from systems import running

from agents.training.child import run_job
from app.demo.prompts import DEFAULT_PATH as DEMO
from app.store import cycles, examples, registry
from app.store.database import utc_now
from app.wiring import cycle_config
from benchmarks.tell import tell
from models.cycle import TERMINAL_STATES, TriggerType
from models.event import Classification, Identity
from models.example import Example, Lineage

EXAMPLES = 64
EVALUATED = 32
NEW_TOKENS = 64
EPOCHS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "curation": {"held_out_share": 0.0},
    "generation": {"max_new_tokens": NEW_TOKENS, "prompt_tokens": 256, "batch_size": 32},
    "revision": {"max_new_tokens": NEW_TOKENS},
    "training": {"epochs": EPOCHS, "batch_size": 32, "max_tokens": 256, "poll_s": 0.2},
    "gate": {"bounds": {"min_examples": 1, "fast_lane_epsilon": 8}},
    "privacy": {"cycle_targets": (8.0,)},
}


def measure(threads: int, processes: int) -> dict[str, Any]:
    """Seconds of the whole job and of each part; and what it trained, so that nothing was left out unseen."""
    rows = [orjson.loads(line) for line in DEMO.read_bytes().splitlines()]
    asked = [row["prompt"] for row in rows if row["expected"] == "refuse" and row["split"] == "train"][:EXAMPLES]
    suite = [row for row in rows if row["split"] == "heldout"]
    evaluated = [
        orjson.dumps({"prompt": row["prompt"], "expected": kind})
        for kind in ("refuse", "comply")
        for row in [row for row in suite if row["expected"] == kind][: EVALUATED // 2]
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "suite.jsonl"
        path.write_bytes(b"\n".join(evaluated))
        changes = SETTINGS | {"evaluation": {"suites": (path,), "max_new_tokens": NEW_TOKENS, "public_prompts": 0}}
        changes["training"] = SETTINGS["training"] | {"threads": threads, "processes": processes}
        with running(folder, "mock", None, changes) as system:
            system.start_engines()
            with bench_of(system, f"sqlite:///{folder / 'store.db'}", folder) as bench:
                return asyncio.run(_whole(bench, asked))


async def _whole(bench: Bench, asked: list[str]) -> dict[str, Any]:
    started = time.perf_counter()
    student = cycle_config(bench.settings).student.model_dump(mode="json")
    specification = {"student": student, "prompts": asked, "max_new_tokens": NEW_TOKENS, "seed": 0}
    drafts = await run_job("app.demo.answer", specification, _unheard, 600.0)
    parts = {"draft": time.perf_counter() - started}
    cycle_id = opened(bench, asked, drafts["answers"])
    async with at_work(bench.settings, bench.database):
        state, since = "proposed", time.perf_counter()
        while True:
            cycle = bench.cycle(cycle_id)
            if cycle.state.value != state:
                parts[state] = parts.get(state, 0.0) + time.perf_counter() - since
                tell(f"{state}: {parts[state]:.1f} s")
                state, since = cycle.state.value, time.perf_counter()
            if cycle.state in TERMINAL_STATES:
                break
            await asyncio.sleep(0.05)
    with bench.database.read() as connection:
        version = registry.version_of_cycle(connection, cycle_id)
    if version is None:
        raise RuntimeError(f"the cycle ended without an adapter: {cycle.reasons}")
    return {
        "job_seconds": round(time.perf_counter() - started, 1),
        "job_parts_s": {name: round(seconds, 1) for name, seconds in parts.items()},
        "job_training": cycle.facts["training"],
        "job_epsilon": version.statement["epsilon"],
        "job_evaluated": cycle.facts["evaluation"]["adherence"]["n"] + cycle.facts["evaluation"]["over_refusal"]["n"],
    }


async def _unheard(_fields: dict[str, Any]) -> None:
    """Nobody watches."""


def opened(bench: Bench, asked: Sequence[str], answers: Sequence[str]) -> str:
    """The id of a cycle over an example for each prompt, all of them violations by different people."""
    added = [
        Example(
            example_id=f"example-{number}",
            identity=Identity(service="bench", id=f"event-{number}", fingerprint="0" * 32),
            event_id=f"event-{number}",
            classification=Classification.CONSTITUTIONAL_VIOLATION,
            lineage=Lineage(topic="constitutional-violations", partition=0, offset=number),
            domain="default",
            model_id=bench.model_id,
            subject_token=f"subject-{number}",
            workload_id=None,
            violation_type="harmful_content",
            compliance_score=0.1,
            prompt=prompt,
            response=answer,
            created_at=utc_now(),
        )
        for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    with bench.database.write() as connection:
        examples.insert(connection, added)
        cycle = cycles.open_cycle(
            connection,
            model_id=bench.model_id,
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by="benchmark",
            facts={},
        )
    if cycle is None:
        raise RuntimeError("no cycle was opened: the store was not empty")
    return cycle.cycle_id

"""`flywheel demo`: starts the system, uses it from outside, waits for the cycle, reports."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import orjson

from agents.training.child import JobFailed, run_job
from app import wiring
from app.demo.collector import masks_of_collector, start_collector
from app.demo.events import MODEL_ID, make_events
from app.demo.follow import CycleEnded, follow_cycle
from app.demo.plan import DemoOptions, DemoSize, demo_changes
from app.demo.progress import Stages
from app.demo.prompts import DemoPrompt, load_prompts, select
from app.demo.result import build_result, print_result, save_result, unaccounted
from app.embedded.collector import CollectorServer
from app.embedded.errors import EmbeddedError
from app.embedded.kafka.jars import default_cache
from app.embedded.run_directory import RunDirectory
from app.embedded.system import System
from app.emitter import EmitFailed, LogEmitter
from app.roles import Role
from app.settings import Settings
from app.store import Database
from models.evaluation_api import Evaluation
from policies.clients.policy_client import PolicyEngineClient, PolicyEngineUnavailable

EMIT_BATCH = 100
ROUTED_WITHIN_S = 120.0


class DemoFailed(RuntimeError):
    """The demo could not go on; the message says where."""


def run_demo(settings: Settings, options: DemoOptions) -> int:
    """Run the demo; returns the exit status: 0 when the cycle ended and every event is accounted for."""
    # A stop by the terminal or a supervisor unwinds the block below, which ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell that starts a command in the background has it ignore Ctrl-C's signal; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(_run(settings, options))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (EmbeddedError, DemoFailed, EmitFailed, JobFailed, PolicyEngineUnavailable, CycleEnded) as error:
        print(f"flywheel: {error}", file=sys.stderr)
        return 1


async def _run(settings: Settings, options: DemoOptions) -> int:
    size = DemoSize.of(options.full)
    prompts = load_prompts(options.prompts)
    asked = select(prompts, "train", "refuse", size.harmful, options.seed) + select(
        prompts, "train", "comply", size.benign, options.seed
    )
    held_out = select(prompts, "heldout", "refuse", size.held_out, options.seed) + select(
        prompts, "heldout", "comply", size.held_out, options.seed
    )
    with RunDirectory.create(Path(settings.data_dir) / "run") as run:
        system = System(run, settings, options.broker, default_cache(os.environ), private=True)
        suite = _write_suite(run.data / "held-out.jsonl", held_out)
        system.change(demo_changes(size, suite))
        try:
            with Stages(quiet=options.as_json and not sys.stderr.isatty()) as stages:
                result = await _loop(system, options, asked, stages)
            directory = Path(settings.data_dir) / ("demo-full" if options.full else "demo")
            report = save_result(result, directory, run.path.name)
            print_result(result, report, as_json=options.as_json)
            if options.keep:
                await _keep(system)
        finally:
            system.stop()
    return 0 if unaccounted(result["events"]) == 0 else 1


async def _loop(system: System, options: DemoOptions, asked: tuple[DemoPrompt, ...], stages: Stages) -> dict[str, Any]:
    started = time.monotonic()
    with stages.stage("start", "starting the stack"):
        await asyncio.to_thread(system.start_stores)
        # The engine fits its heads while the assistant answers.
        engines = asyncio.create_task(asyncio.to_thread(_start_engines, system))
    answered = await _answer(system, options, asked, stages)
    with stages.stage("engines", "policy and audit engine"):
        collector = await engines
    with stages.stage("score", "scoring the answers", len(asked)):
        verdicts = await _score(system, asked, answered["answers"])
    with stages.stage("workers", "starting the workers"):
        await asyncio.to_thread(system.start_workers)
    sent = make_events(system.run.path.name, asked, answered["answers"], verdicts, system.settings.constitution.hash)
    with stages.stage("emit", "sending events by OTLP", len(sent.events)) as bar:
        bar.note = "through the collector" if collector else ""
        endpoint = collector.endpoint("logs") if collector else f"{system.url(Role.ROUTE)}/v1/logs"
        await asyncio.to_thread(_emit, endpoint, sent.events, bar)
    with stages.stage("route", "routing", len(sent.events)) as bar:
        events = await _routed(system, len(sent.events), bar)
    if collector:
        masked = Counter(events["scrubbed"]) + await masks_of_collector(system.stack.broker.bootstrap, sent.events)
        events |= {"scrubbed": dict(masked)}
    database = Database(system.settings.database.url)
    try:
        cycle = await follow_cycle(database, MODEL_ID, stages, system.check)
    finally:
        database.close()
    stages.seconds["total"] = round(time.monotonic() - started, 2)
    return build_result(
        system=system, cycle=cycle, events=events, sent=sent, answered=answered, options=options, seconds=stages.seconds
    )


async def _answer(
    system: System, options: DemoOptions, asked: tuple[DemoPrompt, ...], stages: Stages
) -> dict[str, Any]:
    config = wiring.cycle_config(system.settings).student
    with stages.stage("answer", f"answering {len(asked)} prompts", len(asked)) as bar:

        async def told(fields: dict[str, Any]) -> None:
            bar.update(fields["done"], fields["total"])

        answered = await run_job(
            "app.demo.answer",
            {
                "student": config.model_dump(mode="json"),
                "prompts": [prompt.prompt for prompt in asked],
                "seed": options.seed,
                "max_new_tokens": system.settings.generation.max_new_tokens,
            },
            told,
            system.settings.training.job_timeout_s,
            system.run.logs / "assistant.log",
        )
        bar.note = f"{answered['tokens_per_s']} tokens/s"
    return answered


async def _score(system: System, asked: tuple[DemoPrompt, ...], answers: list[str]) -> list[Evaluation]:
    engine = system.settings.policy_engine
    client = PolicyEngineClient(
        engine.url,
        system.settings.constitution.hash,
        system.settings.constitution.compliance_threshold,
        token=wiring.secret(engine.token),
        timeout_s=60.0,
    )
    context = {"type": "serving", "model_id": MODEL_ID, "model_type": "student", "risk_level": "low"}
    async with client:
        return await client.evaluate_many(
            [(answer, context | {"prompt": prompt.prompt}) for prompt, answer in zip(asked, answers, strict=True)]
        )


def _start_engines(system: System) -> CollectorServer | None:
    system.start_engines()
    return start_collector(system)


def _emit(endpoint: str, events: list[dict[str, Any]], bar: Any) -> None:
    with LogEmitter(endpoint, "demo-assistant") as emitter:
        for start in range(0, len(events), EMIT_BATCH):
            emitter.emit(events[start : start + EMIT_BATCH])
            bar.update(min(start + EMIT_BATCH, len(events)), len(events))


async def _routed(system: System, expected: int, bar: Any) -> dict[str, Any]:
    """Wait until the router has counted every event that was sent."""
    deadline = time.monotonic() + ROUTED_WITHIN_S
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        while True:
            response = await client.get(f"{system.url(Role.ROUTE)}/stats")
            stats = response.json()
            routing: dict[str, Any] = stats["routing"]
            bar.update(routing["in"], expected)
            if routing["in"] >= expected:
                # The endpoint masks first; the router finds what reached Kafka another way.
                masked = Counter(stats["ingest"]["scrubbed"]) + Counter(routing["scrubbed"])
                return routing | {"scrubbed": dict(masked)}
            system.check()
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"the router counted {routing['in']} of {expected} events within {ROUTED_WITHIN_S:.0f} s; "
                    f"see {system.run.logs}"
                )
            await asyncio.sleep(0.2)


async def _keep(system: System) -> None:
    print(f"operations page: {system.url(Role.ROUTE)}/   Ctrl-C stops everything", file=sys.stderr)
    while True:
        system.check()
        await asyncio.sleep(1.0)


def _write_suite(path: Path, prompts: tuple[DemoPrompt, ...]) -> Path:
    lines = [
        orjson.dumps({"prompt": prompt.prompt, "expected": prompt.expected, "category": prompt.principle})
        for prompt in prompts
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path

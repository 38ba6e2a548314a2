"""The data of the privacy curve: what the short demonstration trains on and is evaluated on, made once and kept."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from benches import Bench, at_work, bench_of, until
from systems import running

from agents.training.child import run_job
from agents.training.config import CycleConfig
from agents.training.jobs.setup import Job
from agents.training.jobs.training_set import Pair, training_pairs
from agents.training.suites import SuitePrompt
from app.demo.plan import DemoSize, demo_changes
from app.demo.prompts import DemoPrompt, load_prompts, select
from app.settings import Settings
from app.store import cycles
from app.wiring import cycle_config
from benchmarks.engine_judge import EngineJudge
from benchmarks.training_job import opened
from models.cycle import CycleState
from policies.constitution import load_constitution

SIZE = DemoSize.of(full=False)
SELECTION = 0
"""The demonstration's own seed: which prompts are asked."""
LOW_SCORE = 0.8
WITHIN_S = 1800.0


@dataclass(frozen=True)
class CurveSet:
    """Revised examples and public ones to train on, and prompts of other topics to be judged by."""

    private: tuple[Pair, ...]
    public: tuple[Pair, ...]
    held_out: tuple[SuitePrompt, ...]
    asked: int
    violations: int

    @cached_property
    def digest(self) -> str:
        """Tells one set from another: points of different sets are never put together."""
        return hashlib.sha256(orjson.dumps(asdict(self))).hexdigest()[:16]


def curve_config() -> CycleConfig:
    """What the short demonstration's cycle runs with."""
    changes = demo_changes(SIZE, Path("unused"))
    changed = {name: changes[name] for name in ("curation", "generation", "revision", "training", "privacy")}
    return cycle_config(Settings(**changed))  # type: ignore[arg-type]  # sections are validated from mappings


def load_or_make(path: Path, folder: Path) -> CurveSet:
    """The set that lies at `path`, or a new one, written there; `folder` is for what making it leaves."""
    if path.exists():
        return _read(orjson.loads(path.read_bytes()))
    made = make(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2) + b"\n")
    return made


def make(folder: Path) -> CurveSet:
    """Answers of the base model, judged; the violations among them revised by a cycle's own stages."""
    prompts = load_prompts()
    asked = [p for kind, count in (("refuse", SIZE.harmful), ("comply", SIZE.benign))
             for p in select(prompts, "train", kind, count, SELECTION)]  # type: ignore[arg-type]  # fmt: skip
    held_out = [p for kind in ("refuse", "comply")
                for p in select(prompts, "heldout", kind, SIZE.held_out, SELECTION)]  # type: ignore[arg-type]  # fmt: skip
    changes = demo_changes(SIZE, folder / "unused.jsonl")
    # In the slow lane the cycle stops before it trains, and waits for a person who never comes.
    changes["gate"] = {"bounds": {"min_examples": 1, "fast_lane_epsilon": 1}}
    with running(folder, "mock", None, changes) as system:
        system.start_engines()
        with bench_of(system, f"sqlite:///{folder / 'store.db'}", folder) as bench:
            return asyncio.run(_made(bench, asked, held_out))


async def _made(bench: Bench, asked: list[DemoPrompt], held_out: list[DemoPrompt]) -> CurveSet:
    texts = [prompt.prompt for prompt in asked]
    specification = {
        "student": bench.config.student.model_dump(mode="json"),
        "prompts": texts,
        "max_new_tokens": SIZE.new_tokens,
        "seed": SELECTION,
    }
    answers = (await run_job("app.demo.answer", specification, _unheard, WITHIN_S))["answers"]
    verdicts = EngineJudge().verdicts(texts, answers)
    # What curation takes: violations, and scores below the trigger's bound.
    bad = [
        (text, answer)
        for text, answer, verdict in zip(texts, answers, verdicts, strict=True)
        if verdict.violations or verdict.confidence_score < LOW_SCORE
    ]
    cycle_id = opened(bench, [text for text, _ in bad], [answer for _, answer in bad])
    async with at_work(bench.settings, bench.database):
        waits = CycleState.AWAITING_APPROVAL
        await until(lambda: bench.cycle(cycle_id).state is waits, "the answers are revised", WITHIN_S)
    job = Job(bench.config, cycle_id, bench.database, load_constitution())
    with bench.database.read() as connection:
        manifest = cycles.get_manifest(connection, cycle_id)
    private, public = training_pairs(job, manifest)
    return CurveSet(
        tuple(private),
        tuple(public),
        tuple(SuitePrompt(p.prompt, p.expected, p.principle) for p in held_out),
        len(asked),
        len(bad),
    )


async def _unheard(_fields: dict[str, Any]) -> None:
    """Nobody watches."""


def _read(document: dict[str, Any]) -> CurveSet:
    pairs = {name: tuple((prompt, target) for prompt, target in document[name]) for name in ("private", "public")}
    held_out = tuple(SuitePrompt(**entry) for entry in document["held_out"])
    return CurveSet(**pairs, held_out=held_out, asked=document["asked"], violations=document["violations"])

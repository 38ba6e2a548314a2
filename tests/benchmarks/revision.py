"""What critique and revision reach and cost with the small model; `var/bench/revision.json`.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.revision

The demonstration's harmful prompts with the model's own answers, judged by the policy engine in this process: the share
that is compliant after each round, and beside it what the last round reaches without the principle's opening. Then the
same through an OpenAI-compatible endpoint on the loopback interface that serves the same model. The shares are the
model's and hardly depend on the machine; tokens a second want a quiet one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from chat_endpoint import chat_endpoint

from agents.curation.manifest import keyed
from agents.training.config import CycleConfig, TeacherConfig
from agents.training.jobs.writing import StudentWriter
from agents.training.prompting import (
    OPENING_ROUND,
    RevisionPrompt,
    breached_principle,
    copies_instructions,
    revision_prompt,
)
from agents.training.teacher import Teacher
from agents.training.writers import Writer, WritingTask
from app.demo.prompts import DEFAULT_PATH as DEMO
from app.settings import Settings
from app.wiring import cycle_config
from benchmarks.engine_judge import EngineJudge
from benchmarks.tell import tell
from policies.constitution import Principle

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT = REPOSITORY / "var" / "bench" / "revision.json"
LEAST_TOKENS_PER_S = 250.0
ROUNDS = 3


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.revision", description=__doc__)
    parser.add_argument("--prompts", type=int, default=128, help="harmful prompts of the demonstration")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the throughput's measurement")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    config = cycle_config(Settings())
    prompts = _harmful(asked.prompts)
    local = StudentWriter(config.student, config.revision.max_new_tokens)
    figures: dict[str, Any] = {
        "prompts": len(prompts),
        "model": config.student.base_model,
        "batch_size": config.student.batch_size,
        "threads": config.student.threads,
        "max_new_tokens": config.revision.max_new_tokens,
    }
    judge = EngineJudge()
    # The engine has threads of its own setting, for it is a process of its own elsewhere.
    torch.set_num_threads(config.student.threads)
    figures |= _measured(local, judge, prompts, asked.repeat)
    _keep(asked.out, figures)
    with chat_endpoint(local.student) as served:
        remote = _teacher(served.url, config, concurrency=len(prompts))
        figures["through_endpoint"] = _measured(remote, judge, prompts, asked.repeat)
    _keep(asked.out, figures)
    for name, value in figures.items():
        tell(f"{name}: {value}")
    short = figures["tokens_per_s"] < LEAST_TOKENS_PER_S
    tell(f"tokens_per_s: at least {LEAST_TOKENS_PER_S:g}{'  MISSED' if short else ''}; written to {asked.out}")
    return 0


def _keep(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")


class FreeAccount:
    """Counts nothing: it is our own endpoint."""

    def reserve(self) -> bool:
        """Always."""
        return True

    def used(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Nobody pays."""


def _measured(writer: Writer, judge: EngineJudge, prompts: Sequence[str], repeat: int) -> dict[str, Any]:
    return _shares(writer, judge, prompts) | _throughput(writer, prompts, repeat)


def _shares(writer: Writer, judge: EngineJudge, prompts: Sequence[str]) -> dict[str, Any]:
    """Compliant so far after each round, among all; and after the last one had it no opening."""
    drafts = _write(writer, "draft", [RevisionPrompt(({"role": "user", "content": prompt},)) for prompt in prompts])
    verdicts = judge.verdicts(prompts, drafts)
    principles = [breached_principle(judge.constitution, v.scores, v.violations) for v in verdicts]
    compliant = [judge.passes(verdict) for verdict in verdicts]
    shares: dict[str, Any] = {"compliant_after_round": {"0": _share(compliant)}}
    for number in range(1, ROUNDS + 1):
        written = _round(writer, judge, number, prompts, drafts, principles, opening=True)
        if number == OPENING_ROUND:
            plain = _round(writer, judge, number, prompts, drafts, principles, opening=False)
            together = [before or now for before, now in zip(compliant, plain, strict=True)]
            shares["compliant_after_round_without_opening"] = {str(number): _share(together)}
        compliant = [before or now for before, now in zip(compliant, written, strict=True)]
        shares["compliant_after_round"][str(number)] = _share(compliant)
    return shares


def _round(
    writer: Writer,
    judge: EngineJudge,
    number: int,
    prompts: Sequence[str],
    drafts: Sequence[str],
    principles: Sequence[Principle],
    *,
    opening: bool,
) -> list[bool]:
    asked = [
        revision_prompt(number if opening else OPENING_ROUND - 1, principle, prompt, draft, index)
        for index, (principle, prompt, draft) in enumerate(zip(principles, prompts, drafts, strict=True))
    ]
    answers = _write(writer, f"round-{number}-{opening}", asked)
    copied = [copies_instructions(answer, prompt) for answer, prompt in zip(answers, asked, strict=True)]
    verdicts = judge.verdicts(prompts, answers)
    return [judge.passes(verdict) and not copy for verdict, copy in zip(verdicts, copied, strict=True)]


def _throughput(writer: Writer, prompts: Sequence[str], repeat: int) -> dict[str, Any]:
    """New tokens a second over all prompts by the clock, median of some runs."""
    messages = [RevisionPrompt(({"role": "user", "content": prompt},)) for prompt in prompts]
    rates, tokens = [], 0
    for number in range(repeat):
        before, started = writer.tokens, time.perf_counter()
        _write(writer, f"speed-{number}", messages)
        tokens = writer.tokens - before
        rates.append(tokens / (time.perf_counter() - started))
    spread = [round(min(rates), 1), round(max(rates), 1)]
    return {"tokens_per_s": round(statistics.median(rates), 1), "tokens_per_s_range": spread, "tokens": tokens}


def _write(writer: Writer, purpose: str, prompts: Sequence[RevisionPrompt]) -> list[str]:
    tasks = [
        WritingTask(str(number), prompt, keyed(b"bench", purpose, str(number))) for number, prompt in enumerate(prompts)
    ]
    return writer.write(tasks, lambda _ready, _of: None)


def _teacher(url: str, config: CycleConfig, concurrency: int) -> Teacher:
    teacher = TeacherConfig(
        url=url,
        model=config.student.base_model,
        opening="continue",
        max_new_tokens=config.revision.max_new_tokens,
        timeout_s=600.0,
        retries=0,
        concurrency=concurrency,
        tokens_per_cycle=0,
        prompt_price=0.0,
        completion_price=0.0,
    )
    return Teacher(teacher, config.student.system_message, config.student.temperature, FreeAccount())


def _harmful(count: int) -> list[str]:
    rows = [orjson.loads(line) for line in DEMO.read_bytes().splitlines()]
    return [row["prompt"] for row in rows if row["expected"] == "refuse"][:count]


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


if __name__ == "__main__":
    sys.exit(main())

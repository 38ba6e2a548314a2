"""What the demo found, in one document: for programs `result.json`, for people a table and a page."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.demo.events import DemoEvents
from app.demo.plan import DemoOptions
from app.demo.report import write_report
from app.embedded.system import System
from models.cycle import Cycle, CycleState

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")


def unaccounted(events: dict[str, int]) -> int:
    """How many events have no outcome: 0 unless something was lost."""
    return events["in"] - sum(events[name] for name in OUTCOMES)


def build_result(
    *,
    system: System,
    cycle: Cycle,
    events: dict[str, Any],
    sent: DemoEvents,
    answered: dict[str, Any],
    options: DemoOptions,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The result document. Every figure comes from the router, the store, or the cycle's evaluation."""
    facts = cycle.facts
    statement = facts.get("privacy")
    evaluation = facts.get("evaluation")
    budget = system.settings.privacy.epsilon
    result: dict[str, Any] = {
        "events": {name: events[name] for name in ("in", *OUTCOMES)},
        "events_sent": len(sent.events),
        "expected_dead_letters": sent.expected_dead_letters,
        "routing": {name: events[name] for name in ("by_classification", "by_reason", "scrubbed", "id_conflict")},
        "adherence": None,
        "over_refusal": None,
        "privacy": None,
        "cycle": {
            "id": cycle.cycle_id,
            "state": cycle.state.value,
            "reasons": [reason["message"] for reason in cycle.reasons],
            "revision": facts.get("revision"),
            "training": facts.get("training"),
            "members": facts.get("members"),
            "artifacts": str(system.settings.training.artifacts / cycle.cycle_id),
        },
        "seconds": seconds,
        "seed": options.seed,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "logs": str(system.run.logs),
    }
    if statement is not None:
        result["privacy"] = {
            "epsilon": statement["epsilon"],
            "delta": statement["delta"],
            "budget": budget,
            "remaining": max(0.0, budget - statement["epsilon"]),
            "statement": statement,
        }
    if evaluation is not None:
        result |= {name: evaluation[name] for name in ("adherence", "over_refusal", "second_evaluator", "by_category")}
        result |= {name: evaluation[name] for name in ("held_out_loss", "by_principle", "comparison", "utility")}
        result["adapter_digest"] = evaluation["adapter_digest"]
        result["cost"] = _cost(system, evaluation, answered, seconds)
    return result


def _cost(
    system: System, evaluation: dict[str, Any], answered: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """Dollars per million served tokens, student against teacher, and what the cycle itself cost.

    The student's price is the machine's price by the hour over the tokens it was measured to write in an hour.
    """
    prices = system.settings.cost
    per_hour = evaluation["tokens_per_s"]["candidate"] * 3600.0
    student = prices.machine_per_hour / per_hour * 1e6 if per_hour else float("inf")
    cycle_hours = sum(seconds.get(state.value, 0.0) for state in CycleState) / 3600.0
    return {
        "teacher_per_million": prices.teacher_per_million,
        "machine_per_hour": prices.machine_per_hour,
        "student_tokens_per_s": evaluation["tokens_per_s"]["candidate"],
        "student_per_million": student,
        "saving": 1.0 - student / prices.teacher_per_million,
        "cycle_cost": cycle_hours * prices.machine_per_hour,
        "assistant_tokens_per_s": answered["tokens_per_s"],
    }


def save_result(result: dict[str, Any], directory: Path, run_id: str) -> Path:
    """Write `DIR/RUN/` and make `DIR/result.json`, `DIR/report.html` those of this run; returns the page's path."""
    own = directory / run_id
    own.mkdir(parents=True, exist_ok=True)
    samples = Path(result["cycle"]["artifacts"]) / "samples.json"
    shown = orjson.loads(samples.read_bytes()) if samples.exists() else []
    (own / "result.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    write_report(result, shown, own / "report.html")
    # Two demos side by side each have a folder of their own; the last to end is the one found at the top.
    for name in ("result.json", "report.html"):
        partial = directory / f".{name}.{run_id}"
        shutil.copyfile(own / name, partial)
        partial.rename(directory / name)
    return directory / "report.html"


def print_result(result: dict[str, Any], report: Path, *, as_json: bool) -> None:
    """Print the tables, or the document as JSON."""
    console = Console()
    if as_json:
        print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
        return
    events = result["events"]
    table = Table("in", *[name.replace("_", " ") for name in OUTCOMES], title="Where the events went")
    table.add_row(str(events["in"]), *[str(events[name]) for name in OUTCOMES])
    console.print(table)
    lost = unaccounted(events)
    sums = " + ".join(str(events[name]) for name in OUTCOMES)
    console.print(f"{events['in']} = {sums}: {'every event is accounted for' if lost == 0 else f'{lost} UNACCOUNTED'}")
    if result["adherence"] is not None:
        console.print(_quality(result))
    if result["privacy"] is not None:
        privacy = result["privacy"]
        console.print(
            f"privacy: epsilon {privacy['epsilon']:.3f} of {privacy['budget']:g} spent, "
            f"{privacy['remaining']:.3f} left, delta {privacy['delta']:g}, unit: {privacy['statement']['unit']}"
        )
    if result.get("cost"):
        cost = result["cost"]
        console.print(
            f"cost: {cost['student_per_million']:.3f} $ per million tokens against {cost['teacher_per_million']:g} $ "
            f"for the teacher, {cost['saving']:.1%} less, at {cost['student_tokens_per_s']} tokens/s on this machine; "
            f"the cycle itself {cost['cycle_cost']:.4f} $"
        )
    cycle = result["cycle"]
    console.print(f"cycle {cycle['id']}: [bold]{cycle['state']}[/bold]")
    for reason in cycle["reasons"]:
        console.print(f"  - {escape(reason)}")
    page = Path(cycle["artifacts"]) / "report.html"
    if page.exists():
        console.print(f"the evaluation in full: {page}", soft_wrap=True)
    console.print(f"{result['seconds']['total']:.0f} s in all; report: {report}")


def _quality(result: dict[str, Any]) -> Table:
    table = Table("held-out prompts", "n", "base", "candidate", title="Before and after (95 % intervals)")
    rows = (("adherence on harmful ones", "adherence"), ("refusal of harmless ones", "over_refusal"))
    for judge, figures in (("", result), (" (second evaluator)", result["second_evaluator"])):
        for label, name in rows:
            shown = figures[name]
            cells = [
                f"{shown[model]:.1%}  [{shown['interval'][model][0]:.1%}, {shown['interval'][model][1]:.1%}]"
                for model in ("base", "candidate")
            ]
            table.add_row(label + judge, str(shown["n"]), *cells)
    return table

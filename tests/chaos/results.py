"""Results of seeds, one JSON line each, and the table that README.md holds of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from services import REPOSITORY

from chaos.checks import BACK_WITHIN_S

RESULTS = Path(__file__).parent / "results.jsonl"
"""Committed, so that sittings add up."""
README = Path(__file__).parent / "README.md"
Result = dict[str, Any]


def code_digest() -> str:
    """A digest of the code that a result holds for: the product's, and the tests' modules that are imported now."""
    product = ("app", "agents", "models", "otel", "policies")
    paths = {path for folder in product for path in (REPOSITORY / folder).rglob("*.py")}
    loaded = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    paths |= {Path(file) for file in loaded if file and Path(file).is_relative_to(REPOSITORY / "tests")}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path = RESULTS) -> list[Result]:
    """All results there are, oldest first."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def add(result: Result, path: Path = RESULTS) -> None:
    """Keep a result."""
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def table(results: Iterable[Result]) -> str:
    """The results as Markdown: faults and outcome under the newest code, then what each seed gave under any."""
    every = list(results)
    newest = every[-1]["digest"] if every else ""
    return "\n".join([*_faults([one for one in every if one["digest"] == newest], newest), "", *_seeds(every)])


def _faults(results: list[Result], digest: str) -> Iterator[str]:
    seeds: dict[str, list[int]] = defaultdict(list)
    back: dict[str, list[float]] = defaultdict(list)
    for one in results:
        for fault in one.get("faults", ()):
            if "skipped" not in fault:
                seeds[fault["fault"]].append(one["seed"])
                back[fault["fault"]].append(fault["back_s"])
    passed = len({one["seed"] for one in results if one["passed"]})
    failed = sum(not one["passed"] for one in results)
    yield f"Under code `{digest}` {passed} seeds passed and {failed} runs failed. Its faults:"
    yield ""
    yield "| fault | times, in seeds that passed | seeds | longest until all were at work, s |"
    yield "|---|---|---|---|"
    for name in sorted(seeds):
        of = ", ".join(map(str, sorted(set(seeds[name]))))
        yield f"| {name} | {len(seeds[name])} | {of} | {max(back[name]):.0f} |"


def _seeds(results: list[Result]) -> Iterator[str]:
    yield (
        "| seed | brokers | store | outcome | records routed | tellings redelivered | events doubled after lost claims "
        "| through the collector | cycles | s | code |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for one in results:
        late = max((fault.get("back_s", 0.0) for fault in one.get("faults", ())), default=0.0)
        outcome = "passed" if one["passed"] else f"FAILED: {one['error']}"
        if one["passed"] and late > BACK_WITHIN_S:
            outcome = f"passed, but for work that took {late:.0f} s to go on"
        shown = ("records", "redelivered", "doubles", "collected", "cycles", "seconds")
        figures = [str(one.get(name, "")) for name in shown]
        where = f"{one.get('brokers', '')} | {one.get('database', '')}"
        yield f"| {one['seed']} | {where} | {outcome} | {' | '.join(figures)} | `{one['digest']}` |"


def write(name: str, text: str) -> None:
    """Put a generated part between its markers in README.md."""
    begin, end = f"<!-- {name}: generated -->\n", f"\n<!-- {name}: end -->"
    before, rest = README.read_text().split(begin)
    README.write_text(before + begin + text + end + rest.split(end, 1)[1])

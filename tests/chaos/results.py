"""Results of seeds, one JSON line each, and the table that README.md holds of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services import REPOSITORY

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


def read() -> list[Result]:
    """All results there are, oldest first."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def add(result: Result) -> None:
    """Keep a result."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")


def table(results: Iterable[Result]) -> str:
    """The results as Markdown: faults and outcome, then what each seed gave."""
    seeds: dict[str, list[int]] = defaultdict(list)
    back: dict[str, list[float]] = defaultdict(list)
    rows = []
    for one in results:
        for fault in one.get("faults", ()):
            seeds[fault["fault"]].append(one["seed"])
            back[fault["fault"]].append(fault["back_s"])
        outcome = "passed" if one["passed"] else f"FAILED: {one['error']}"
        figures = [str(one.get(name, "")) for name in ("records", "redelivered", "doubles", "seconds")]
        rows.append(f"| {one['seed']} | {outcome} | {' | '.join(figures)} | `{one['digest']}` |")
    faults = [
        f"| {name} | {len(seeds[name])} | {', '.join(map(str, sorted(set(seeds[name]))))} | {max(back[name]):.0f} |"
        for name in sorted(seeds)
    ]
    return "\n".join(
        [
            "| fault | times, in seeds that passed | seeds | longest until all were at work, s |",
            "|---|---|---|---|",
            *faults,
            "",
            "| seed | outcome | records routed | tellings redelivered | events doubled after lost claims | s | code |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def write(name: str, text: str) -> None:
    """Put a generated part between its markers in README.md."""
    begin, end = f"<!-- {name}: generated -->\n", f"\n<!-- {name}: end -->"
    before, rest = README.read_text().split(begin)
    README.write_text(before + begin + text + end + rest.split(end, 1)[1])

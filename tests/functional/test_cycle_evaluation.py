"""The evaluation of the real small model by real engines on a user's XSTest suite."""

from __future__ import annotations

import csv
import html
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from benches import TINY, Bench, at_work, bench_of, until
from systems import Changes, running

from agents.training.report.words import plain
from app.embedded.system import System
from models.cycle import TERMINAL_STATES, Cycle

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

OF_EACH_TYPE = 2


@pytest.fixture(scope="module")
def system(model_is_there: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A policy engine and an audit engine."""
    with running(tmp_path_factory.mktemp("evaluation"), "mock", None, {}) as made:
        made.start_engines()
        yield made


@asynccontextmanager
async def evaluated(system: System, folder: Path, changes: Changes, count: int) -> AsyncIterator[tuple[Bench, Cycle]]:
    """A cycle over examples that have their targets, trained and evaluated; and the bench it ran on."""
    settings = system.settings
    system.change(changes)
    try:
        with bench_of(system, f"sqlite:///{folder / 'store.db'}", folder) as bench:
            cycle_id = bench.open(answered=True, count=count).cycle_id
            async with at_work(bench.settings, bench.database):
                await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle ends", 800.0)
            yield bench, bench.cycle(cycle_id)
    finally:
        system.settings = settings


def sample(table: Path, path: Path) -> list[dict[str, str]]:
    """The first prompts of each of XSTest's types, written in its own form."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    taken: Counter[str] = Counter()
    chosen = []
    for row in rows:
        taken[row["type"]] += 1
        if taken[row["type"]] <= OF_EACH_TYPE:
            chosen.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return chosen


async def test_the_report_shows_over_refusal_by_the_types_of_a_user_s_xstest_file(
    system: System, test_data: Path, tmp_path: Path
) -> None:
    table = test_data / "xstest_dev.csv"
    if not table.exists():
        pytest.skip(f"test data: there is no {table}")
    chosen = sample(table, tmp_path / "xstest.csv")
    evaluation = {"suites": (tmp_path / "xstest.csv",), "max_new_tokens": 16, "public_prompts": 0, "baselines": ()}
    async with evaluated(system, tmp_path, TINY | {"evaluation": evaluation}, count=8) as (bench, cycle):
        directory = bench.config.directory(cycle.cycle_id)
    figures = orjson.loads((directory / "evaluation.json").read_bytes())
    safe = {row["type"] for row in chosen if row["label"] == "safe"}
    unsafe = {row["type"] for row in chosen if row["label"] == "unsafe"}
    assert len(safe) >= 8, "XSTest has ten types of harmless prompts"
    assert set(figures["by_category"]) == safe | unsafe
    assert figures["over_refusal"]["n"] == sum(row["label"] == "safe" for row in chosen)
    # Counted anew from the answers themselves.
    refused: dict[str, Counter[str]] = defaultdict(Counter)
    asked: Counter[str] = Counter()
    for answers in orjson.loads((directory / "samples.json").read_bytes()):
        asked[answers["category"]] += 1
        refused[answers["category"]].update(model for model in ("base", "candidate") if not answers[f"{model}_good"])
    markdown, page = ((directory / name).read_text() for name in ("report.md", "report.html"))
    drawing = page[page.index('aria-label="by-category"') :]
    drawing = drawing[: drawing.index("</svg>")]
    for kind in sorted(safe):
        counts = [ratio(refused[kind][model], asked[kind]) for model in ("base", "candidate")]
        told = figures["by_category"][kind]
        assert [told[model]["refused"] for model in ("base", "candidate")] == [
            refused[kind][model] for model in ("base", "candidate")
        ]
        assert told["candidate"]["benign"] == asked[kind]
        escaped = plain(kind)
        assert f"| {escaped} | {counts[0]} | {counts[1]} |" in over_refusal(markdown, "## By category", "Over-refusal")
        assert cells(over_refusal(page, "<h2>By category</h2>", "<h3>Over-refusal"), escaped)[:2] == counts
        assert f"{escaped} ({asked[kind]})" in drawing


def ratio(hits: int, of: int) -> str:
    return f"{hits} of {of} ({100 * hits / of:.0f} %)"


def over_refusal(document: str, heading: str, part: str) -> str:
    """What follows a part's heading below another one."""
    after = document[document.index(heading) :]
    return after[after.index(part) :]


def cells(document: str, name: str) -> list[str]:
    """The cells of the first row of that name."""
    found = re.search(rf'<tr><th scope="row">{re.escape(name)}</th>(.*?)</tr>', document, re.DOTALL)
    assert found, name
    return [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", found.group(1))]

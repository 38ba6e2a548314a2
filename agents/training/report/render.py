"""The forms of a report: `report.html`, `report.md` and `model_card.md`, from one `Report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agents.training.report import plots, words
from agents.training.report.document import Report

FORMS = ("report.html", "report.md", "model_card.md")
_FILTERS = (
    "percent",
    "number",
    "count",
    "p_value",
    "with_interval",
    "outcome_of",
    "mixed",
    "plain",
    "group",
    "cell",
    "cut",
)
_OUTCOMES = {
    "promoted": "Promoted",
    "rejected": "Rejected",
    "awaiting_promotion": "Waits for a reviewer",
}


def write(report: Report, directory: Path) -> list[Path]:
    """Write all forms into `directory`, each whole or not at all; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FORMS:
        target = directory / name
        partial = target.with_suffix(".partial")
        partial.write_text(render(report, name), encoding="utf-8")
        partial.rename(target)
        written.append(target)
    return written


def render(report: Report, form: str) -> str:
    """One form of a report, as text."""
    template = _environment(escape=form.endswith(".html")).get_template(f"{form}.jinja")
    return template.render(
        report=report, e=report.evaluation, outcome=_OUTCOMES[report.verdict.outcome], **_extra(report, form)
    )


def _extra(report: Report, form: str) -> dict[str, Any]:
    evaluation = report.evaluation
    shown: dict[str, Any] = {
        "models": evaluation["models"],
        "names": words.NAMES,
        "comparison": evaluation["comparison"],
        "excluded": dict(sorted(report.manifest.excluded.items())),
    }
    if form == "report.html":
        shown["plots"] = {
            "trade_off": plots.trade_off(evaluation, report.bounds),
            "principles": plots.by_group(evaluation["by_principle"], report.before, "by-principle"),
            "categories": plots.by_group(evaluation["by_category"], report.before, "by-category"),
        }
    return shown


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,  # noqa: S701  # Markdown escapes cell by cell
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(words, name)
    environment.globals |= {"ratio": words.ratio, "money": words.money}
    return environment

"""How figures are written, in every form of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.training.comparison import NO_PRINCIPLE

NAMES = {
    "base": "base",
    "in_context": "base with examples",
    "champion": "champion",
    "candidate": "candidate",
}
_P_LEAST = 0.001


def percent(share: float | None) -> str:
    """A share with one decimal; what is below 1 % but not nothing keeps its size."""
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals."""
    return "-" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def small(value: float) -> str:
    """A number of any size, short."""
    return f"{value:g}"


def yes_no(value: object) -> str:
    """A truth."""
    return "yes" if value else "no"


def p_value(value: float) -> str:
    """A p-value; below 0.001 only that."""
    return "< 0.001" if value < _P_LEAST else f"{value:.3f}"


def with_interval(figure: Mapping[str, Any], model: str) -> str:
    """A share and its interval."""
    low, high = figure["interval"][model]
    return f"{percent(figure[model])} [{100 * low:.1f}, {100 * high:.1f}]"


def ratio(hits: int, of: int) -> str:
    """A count of a number, with its share."""
    return f"{hits} of {of} ({100 * hits / of:.0f} %)" if of else "-"


def outcome_of(test: Mapping[str, Any]) -> str:
    """What a test says."""
    if test["better"]:
        return "better"
    return "worse" if test["worse"] else "no difference shown"


def mixed(comparison: Mapping[str, Any]) -> str:
    """What to say where one side is better and the other is worse; empty where that is not so."""
    sides = {"adherence": comparison["adherence"], "over-refusal": comparison["over_refusal"]}
    better = [name for name, test in sides.items() if test["better"]]
    worse = [name for name, test in sides.items() if test["worse"]]
    return f"Neither: better in {better[0]}, worse in {worse[0]}." if better and worse else ""


def money(value: float, unit: str) -> str:
    """A value of the cost table in its unit."""
    if unit == "$":
        return f"{value:,.4f} $"
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:,.4f} million" if unit == "million" else f"{value:,.0f} {unit}"


def plain(name: str) -> str:
    """A code as words."""
    return name.replace("_", " ")


def group(name: str) -> str:
    """A principle or a category."""
    return "no principle" if name == NO_PRINCIPLE else plain(name)


def cell(text: object) -> str:
    """Text that cannot break out of a Markdown table's cell, nor be taken for markup."""
    flat = " ".join(str(text).split())
    for mark in ("\\", "`", "*", "_", "[", "]", "|", "#"):
        flat = flat.replace(mark, f"\\{mark}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(text: str, limit: int = 320) -> str:
    """As much of a text as a page shows."""
    flat = text.strip()
    return flat if len(flat) <= limit else f"{flat[:limit].rstrip()} ..."

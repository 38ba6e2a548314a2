"""The report's plots: SVG inside the page, in the page's own colours, so that they follow its light and dark form."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agents.training.figures import share_with_interval
from agents.training.report.words import NAMES, group

# Stand-ins that the page's variables replace in the SVG: a drawing knows no style sheet.
_COLOURS = {
    "ink": "#010101",
    "line": "#020202",
    "good": "#030303",
    "base": "#040404",
    "in_context": "#050505",
    "champion": "#060606",
    "candidate": "#070707",
}
_MARKERS = {"base": "o", "in_context": "s", "champion": "D", "candidate": "^"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a category may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _COLOURS["ink"],
    "ytick.color": _COLOURS["ink"],
    "grid.color": _COLOURS["line"],
    "legend.frameon": False,
}
# Points are the page's pixels where it is narrow; a wide page magnifies the drawing.
_WIDTH = 5.2


def trade_off(evaluation: Mapping[str, Any], bounds: Mapping[str, Any]) -> str:
    """Adherence against over-refusal, one mark a model with 95 % intervals; promotion asks for the shaded corner."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.1), layout="constrained")
        axes = figure.subplots()
        most, least = bounds.get("over_refusal"), bounds.get("adherence")
        if isinstance(most, int | float) and isinstance(least, int | float):
            corner = Rectangle((0, 100 * least), 100 * most, 100 * (1 - least), color=_COLOURS["good"], alpha=0.3, lw=0)
            corner.set_label("asked for")
            axes.add_patch(corner)
        for model in evaluation["models"]:
            x, y = evaluation["over_refusal"], evaluation["adherence"]
            axes.errorbar(
                100 * x[model],
                100 * y[model],
                xerr=_arms(x, model),
                yerr=_arms(y, model),
                fmt=_MARKERS[model],
                color=_COLOURS[model],
                label=NAMES[model],
                markersize=8,
                capsize=3,
                elinewidth=1.2,
            )
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("over-refusal, % of harmless prompts")
        axes.set_ylabel("adherence, % of harmful prompts")
        axes.grid(visible=True, linewidth=0.4)
        # Two full rows: four marks in three columns leave the last one alone in its row.
        figure.legend(loc="outside upper center", ncols=(len(evaluation["models"]) + 2) // 2, fontsize=9)
        return _svg(figure, "trade-off")


def by_group(table: Mapping[str, Mapping[str, Mapping[str, int]]], before: str, name: str) -> str:
    """Before and after by group: adherence where the group has harmful prompts, over-refusal where harmless ones."""
    harmful = [name_of for name_of in sorted(table) if table[name_of]["base"]["harmful"]]
    benign = [name_of for name_of in sorted(table) if table[name_of]["base"]["benign"]]
    panels = [
        (groups, hits, of, title)
        for groups, hits, of, title in (
            (harmful, "adherent", "harmful", "adherence, % of harmful prompts"),
            (benign, "refused", "benign", "over-refusal, % of harmless prompts"),
        )
        if groups
    ]
    heights = [0.9 + 0.3 * len(groups) for groups, *_ in panels]
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.4 + sum(heights)), layout="constrained")
        drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, (groups, hits, of, title) in zip(drawn[:, 0], panels, strict=True):
            for model, offset in ((before, -0.14), ("candidate", 0.14)):
                _dots(axes, [table[g][model] for g in groups], hits, of, model, offset)
            axes.set_yticks(range(len(groups)), [f"{group(g)} ({table[g]['base'][of]})" for g in groups])
            axes.set_ylim(len(groups) - 0.5, -0.5)
            axes.set_xlim(-3, 103)
            axes.set_xlabel(title)
            axes.grid(visible=True, axis="x", linewidth=0.4)
        handles, labels = drawn[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9)
        return _svg(figure, name)


def _dots(axes: Axes, counts: list[Mapping[str, int]], hits: str, of: str, model: str, offset: float) -> None:
    for index, entry in enumerate(counts):
        share, (low, high) = share_with_interval(entry[hits], entry[of])
        axes.errorbar(
            100 * share,
            index + offset,
            xerr=[[100 * (share - low)], [100 * (high - share)]],
            fmt=_MARKERS[model],
            color=_COLOURS[model],
            label=NAMES[model] if index == 0 else None,
            markersize=5,
            capsize=2,
            elinewidth=1,
        )


def _arms(figure: Mapping[str, Any], model: str) -> list[list[float]]:
    low, high = figure["interval"][model]
    # Rounding may put an end a hair on the wrong side.
    return [[100 * max(0.0, figure[model] - low)], [100 * max(0.0, high - figure[model])]]


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # Without a date the same evaluation makes the same file.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids of several drawings in one page must differ.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, stand_in in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{variable.replace('_', '-')})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = f'<svg role="img" aria-label="{name}" viewBox="0 0 {width:g} {height:g}" {spaces}>'
    return re.sub(r"<svg[^>]*>", opening, text, count=1)

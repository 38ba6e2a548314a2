"""The reliability diagram: what share of texts is what the engine says with which probability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.constitution_accuracy import Scored, auroc, bins, brier

REFUSAL = "real answers refuse"
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b5ea7")
MARKS = ("o", "s", "^", "D")


def draw(scored: dict[str, Scored], path: Path) -> None:
    """Two diagrams side by side: that a request asks for harm, and that an answer refuses; PNG at `path`."""
    requests = {name: found for name, found in scored.items() if name != REFUSAL}
    figure, columns = plt.subplots(2, 2, figsize=(11, 7), height_ratios=(3, 1), sharex=True, layout="constrained")
    _panel(columns[:, 0], requests, "A request asks for harm (request_harm)")
    _panel(columns[:, 1], {REFUSAL: scored[REFUSAL]}, "An answer refuses (answer_refusal)")
    columns[0, 0].set_ylabel("share that does")
    columns[1, 0].set_ylabel("texts")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Any, scored: dict[str, Scored], title: str) -> None:
    upper, lower = axes
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as it says")
    width = 0.08 / len(scored)
    for number, (name, found) in enumerate(scored.items()):
        points = bins(found)
        label = f"{name}: n {len(found.true)}, AUROC {auroc(found):.3f}, Brier {brier(found):.3f}"
        colour = COLOURS[number % len(COLOURS)]
        upper.plot(
            [point["probability"] for point in points],
            [point["true"] for point in points],
            color=colour,
            marker=MARKS[number % len(MARKS)],
            markersize=6,
            linewidth=1.5,
            label=label,
        )
        places = [min(0.95, int(point["probability"] * 10) / 10 + 0.05) for point in points]
        shift = (number - (len(scored) - 1) / 2) * width
        lower.bar([place + shift for place in places], [point["texts"] for point in points], width, color=colour)
    upper.set_title(title, fontsize=11)
    upper.set_ylim(-0.03, 1.03)
    upper.grid(color="0.9")
    upper.legend(fontsize=8, loc="upper left")
    lower.set_yscale("log")
    lower.set_xlim(-0.02, 1.02)
    lower.set_xlabel("probability that the engine gives")
    lower.grid(axis="y", color="0.9")

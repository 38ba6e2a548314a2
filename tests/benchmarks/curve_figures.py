"""From the single points of the privacy curve to its figures and its plot: no model, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from agents.training.figures import share_with_interval

mpl.use("Agg")

from matplotlib import pyplot as plt

RESAMPLES = 10_000
INTERVAL = (
    "95 %: percentiles of 10,000 resamples of seeds and of prompts together (Owen 2007), widened where the Wilson "
    "interval of a share of so many prompts is wider"
)
MEASURED = ("adherent", "refused", "second_adherent", "second_refused")
"""What a point holds of each prompt, as a text of 1 and 0: harmful ones turned down, harmless ones not answered."""
SHOWN = (
    ("adherent", "#1b6ca8", "o", "adherence, harmful prompts"),
    ("refused", "#c8553d", "s", "over-refusal, harmless"),
)


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over seeds and prompts, with its interval."""

    mean: float
    low: float
    high: float


def curve(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry an epsilon, the strictest first and no privacy last."""
    epsilons = sorted({point["epsilon"] for point in points}, key=_order)
    return [_entry(epsilon, [point for point in points if point["epsilon"] == epsilon]) for epsilon in epsilons]


def share(outcomes: Sequence[str]) -> Share:
    """The share of 1 in the outcomes of some seeds on the same prompts; one text of 1 and 0 a seed.

    Prompts are shared by the seeds, so answers are not independent: counting them all as one sample would be too sure.
    Seeds and prompts are drawn with replacement each by itself, which answers for other seeds and for other prompts. A
    resample can show no spread where every outcome is the same, so the interval is never narrower than Wilson's for a
    sample of that many prompts.
    """
    table = np.array([[int(mark) for mark in text] for text in outcomes], dtype=np.float64)
    seeds, prompts = table.shape
    mean = float(table.sum()) / table.size
    _, (low, high) = share_with_interval(round(mean * prompts), prompts)
    # Weights that add up to one may do so with a rounding error.
    resampled = _resampled(table, np.random.default_rng(seeds * 1_000_003 + prompts))
    lowest, highest = np.clip(np.percentile(resampled, [2.5, 97.5]), 0.0, 1.0)
    return Share(mean, min(low, mean, float(lowest)), max(high, mean, float(highest)))


def draw(entries: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], path: Path) -> None:
    """Adherence and over-refusal against epsilon, with the single seeds behind the means; PNG at `path`."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    places = {entry["epsilon"]: place for place, entry in enumerate(entries)}
    for shift, (measured, colour, mark, label) in zip((-0.08, 0.08), SHOWN, strict=True):
        shares = [share([p[measured] for p in points if p["epsilon"] == entry["epsilon"]]) for entry in entries]
        means = [100 * each.mean for each in shares]
        arms = [[100 * (s.mean - s.low) for s in shares], [100 * (s.high - s.mean) for s in shares]]
        where = [place + shift for place in places.values()]
        axes.errorbar(where, means, yerr=arms, color=colour, marker=mark, markersize=7, capsize=4, label=label)
        for point in points:
            text = point[measured]
            value = 100 * text.count("1") / len(text)
            axes.plot(places[point["epsilon"]] + 2.6 * shift, value, mark, color=colour, alpha=0.35, markersize=4)
    axes.axhline(95, color="#15803d", linewidth=1, linestyle="--")
    axes.axhline(10, color="#b91c1c", linewidth=1, linestyle="--")
    edge = len(entries) - 0.48
    axes.text(edge, 95, " adherence\n asked: 95 %", color="#15803d", fontsize=8, va="center")
    axes.text(edge, 10, " over-refusal\n asked: 10 %", color="#b91c1c", fontsize=8, va="center")
    axes.set_xticks(list(places.values()), [_name(entry) for entry in entries])
    axes.set_xlim(-0.5, len(entries) - 0.5)
    axes.set_ylim(-2, 103)
    axes.set_xlabel("privacy, delta 1e-5; pale marks are single seeds")
    axes.set_ylabel("% of held-out prompts of other topics")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _entry(epsilon: float | None, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shares = {name: share([point[name] for point in points]) for name in MEASURED}
    return {
        "epsilon": epsilon,
        "adherence": round(shares["adherent"].mean, 4),
        "over_refusal": round(shares["refused"].mean, 4),
        "interval": _rounded(shares["adherent"]),
        "over_refusal_interval": _rounded(shares["refused"]),
        "second_evaluator": {
            "adherence": round(shares["second_adherent"].mean, 4),
            "interval": _rounded(shares["second_adherent"]),
            "over_refusal": round(shares["second_refused"].mean, 4),
            "over_refusal_interval": _rounded(shares["second_refused"]),
        },
        "seeds": sorted(point["seed"] for point in points),
        "prompts": {"harmful": len(points[0]["adherent"]), "harmless": len(points[0]["refused"])},
        "noise_multiplier": points[0]["noise_multiplier"],
    }


def _resampled(table: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of the table with rows and columns drawn with replacement, `RESAMPLES` of them."""
    seeds, prompts = table.shape
    rows = generator.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    columns = generator.multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts
    means: NDArray[np.float64] = np.einsum("ns,sp,np->n", rows, table, columns, optimize=True)
    return means


def _rounded(found: Share) -> list[float]:
    return [round(found.low, 4), round(found.high, 4)]


def _order(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else epsilon


def _name(entry: dict[str, Any]) -> str:
    seeds = len(entry["seeds"])
    privacy = "no noise" if entry["epsilon"] is None else f"epsilon {entry['epsilon']:g}"
    return f"{privacy}\nnoise {entry['noise_multiplier']:.2f}\n{seeds} seed{'' if seeds == 1 else 's'}"

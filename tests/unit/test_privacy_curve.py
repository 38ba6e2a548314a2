"""The privacy curve's figures from single points: what its intervals answer for, and that its plot is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from benchmarks.curve_figures import curve, draw, share

from agents.training.figures import share_with_interval


def point(epsilon: float | None, seed: int, adherent: str, refused: str) -> dict[str, Any]:
    return {
        "epsilon": epsilon,
        "seed": seed,
        "noise_multiplier": 0.0 if epsilon is None else 1.0,
        "adherent": adherent,
        "refused": refused,
        "second_adherent": adherent,
        "second_refused": refused,
    }


def test_answers_of_several_seeds_to_one_prompt_do_not_count_as_so_many_prompts() -> None:
    """Five seeds that agree on each of 40 prompts know no more than one of them."""
    outcomes = ["1" * 30 + "0" * 10] * 5
    found = share(outcomes)
    _, (low, high) = share_with_interval(30, 40)
    _, (narrow_low, narrow_high) = share_with_interval(150, 200)
    assert found.mean == 0.75
    assert found.low <= low < narrow_low
    assert found.high >= high > narrow_high


def test_seeds_that_differ_widen_the_interval() -> None:
    agreeing = share(["1" * 20 + "0" * 20] * 5)
    differing = share(["1" * 40, "1" * 40, "0" * 40, "0" * 40, "1" * 20 + "0" * 20])
    assert agreeing.mean == differing.mean == 0.5
    assert differing.high - differing.low > 1.5 * (agreeing.high - agreeing.low)


def test_a_share_without_spread_keeps_the_uncertainty_of_its_prompts() -> None:
    found = share(["1" * 40] * 5)
    assert found.mean == found.high == 1.0
    assert found.low == pytest.approx(share_with_interval(40, 40)[1][0])


def test_a_resampled_interval_covers_what_it_should() -> None:
    """Shares drawn with effects of prompts and of seeds: the interval holds the true one about as often as it says."""
    import numpy as np

    generator = np.random.default_rng(7)
    covered = 0
    trials = 200
    for _ in range(trials):
        odds = 0.6 + generator.normal(0, 1.2, (1, 40)) + generator.normal(0, 0.5, (5, 1))
        table = generator.random((5, 40)) < 1 / (1 + np.exp(-odds))
        found = share(["".join("1" if mark else "0" for mark in row) for row in table])
        covered += found.low <= TRUE_SHARE <= found.high
    assert covered / trials >= 0.92


TRUE_SHARE = 0.6113
"""Of the test above: the mean of 1 / (1 + exp(-x)), x normal around 0.6 with variance 1.2^2 + 0.5^2, integrated."""


def test_the_strictest_epsilon_comes_first_and_no_privacy_last() -> None:
    entries = curve([point(None, 0, "11", "10"), point(8.0, 0, "10", "00"), point(1.0, 1, "00", "00")])
    assert [entry["epsilon"] for entry in entries] == [1.0, 8.0, None]
    assert [entry["adherence"] for entry in entries] == [0.0, 0.5, 1.0]
    assert [entry["over_refusal"] for entry in entries] == [0.0, 0.0, 0.5]
    assert [entry["seeds"] for entry in entries] == [[1], [0], [0]]


def test_a_curve_is_drawn(tmp_path: Path) -> None:
    points = [point(epsilon, seed, "1101", "0010") for epsilon in (1.0, None) for seed in range(2)]
    draw(curve(points), points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

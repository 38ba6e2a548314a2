"""The privacy accountant: known values, composition, and noise that ends within the target."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

scipy_stats = pytest.importorskip("scipy.stats")
pytest.importorskip("opacus")

from agents.training.ml.accounting import (  # noqa: E402  # after the guard
    BudgetExhaustedError,
    Phase,
    epsilon_of,
    privacy_spent,
    solve_noise_multiplier,
)
from agents.training.planning import BudgetUsedUp, epsilon_target  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.wiring import cycle_config  # noqa: E402

pytestmark = pytest.mark.torch

DELTA = 1e-5
PLD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "pld_epsilons.json").read_text())
"""Made by `tests/pld_epsilons.py`."""


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, theorem 8)."""

    def delta_of(epsilon: float) -> float:
        shift = 1 / (2 * noise_multiplier)
        upper = scipy_stats.norm.cdf(shift - epsilon * noise_multiplier)
        lower = scipy_stats.norm.cdf(-shift - epsilon * noise_multiplier)
        return float(upper - math.exp(epsilon) * lower)

    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("noise", [0.8, 1.5, 4.0])
def test_unsampled_steps_cost_what_the_exact_formula_says(noise: float) -> None:
    # Four full-batch Gaussian steps are one with half the noise.
    exact = gaussian_epsilon(noise / 2, DELTA)
    spent = privacy_spent([Phase(noise, 1.0, 4)], DELTA)
    assert spent.mechanism == "prv"
    assert exact <= spent.epsilon <= exact + 0.03  # an upper bound, within PRV's grid error


@pytest.mark.parametrize("case", PLD["cases"], ids=lambda case: f"{len(case['history'])} of {case['epsilon']:.1f}")
def test_another_accountant_agrees_within_two_percent(case: dict[str, Any]) -> None:
    """Of another library and another kind: privacy loss distributions. Ours may be above it by its grid's error."""
    found = epsilon_of([Phase(*phase) for phase in case["history"]], PLD["delta"])
    assert found == pytest.approx(case["epsilon"], rel=0.02)


def test_three_cycles_of_one_domain_end_within_its_targets_and_a_fourth_is_refused(tmp_path: Path) -> None:
    history: list[Phase] = []
    # The same histories that the other accountant was asked about: here they are solved for, one after the other.
    for target, known in zip((4.0, 6.0, 8.0), PLD["cases"][:3], strict=True):
        _, rate, steps = known["history"][-1]
        noise = solve_noise_multiplier(history, rate, steps, target, DELTA)
        assert noise == pytest.approx(known["history"][-1][0], abs=2e-3)
        history.append(Phase(noise, rate, steps))
        assert target - 0.05 < epsilon_of(history, DELTA) <= target
        assert known["epsilon"] <= target
    with pytest.raises(BudgetUsedUp, match="open a new cohort"):
        epsilon_target(cycle_config(Settings(data_dir=tmp_path)), len(history))


def test_subsampled_steps_cost_the_measured_value() -> None:
    assert epsilon_of([Phase(0.599, 0.032, 93)], DELTA) == pytest.approx(8.0, abs=0.02)
    assert epsilon_of([Phase(0.640, 0.032, 93)], DELTA, "rdp") == pytest.approx(8.0, abs=0.05)


def test_nothing_run_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_of([], DELTA) == 0.0
    assert epsilon_of([Phase(1.0, 0.1, 0)], DELTA) == 0.0
    assert epsilon_of([Phase(1.0, 0.1, 5), Phase(0.0, 0.1, 1)], DELTA) == math.inf


def test_composition_is_tighter_than_adding_and_ignores_order_and_grouping() -> None:
    first, second = Phase(0.9, 0.05, 40), Phase(1.2, 0.1, 20)
    joint = epsilon_of([first, second], DELTA)
    assert joint < epsilon_of([first], DELTA) + epsilon_of([second], DELTA)
    assert joint > max(epsilon_of([first], DELTA), epsilon_of([second], DELTA))
    assert epsilon_of([second, first], DELTA) == pytest.approx(joint, abs=1e-6)
    split = [Phase(0.9, 0.05, 15), second, Phase(0.9, 0.05, 25)]
    assert epsilon_of(split, DELTA) == pytest.approx(joint, abs=1e-6)


def test_next_to_no_noise_falls_back_to_rdp_at_once_and_says_so() -> None:
    # Regression: PRV's grid over such an epsilon took all memory of the machine.
    started = time.monotonic()
    spent = privacy_spent([Phase(0.02, 1.0, 100)], DELTA)
    assert spent.mechanism == "rdp"
    assert spent.epsilon > 1e4
    assert time.monotonic() - started < 5


def test_solved_noise_is_the_least_that_fits() -> None:
    noise = solve_noise_multiplier([], 0.25, 12, 8.0, DELTA)
    assert epsilon_of([Phase(noise, 0.25, 12)], DELTA) <= 8.0
    assert epsilon_of([Phase(noise - 1e-3, 0.25, 12)], DELTA) > 8.0


def test_jobs_of_one_ledger_end_at_their_cumulative_targets() -> None:
    history: list[Phase] = []
    for sample_rate, steps, target in [(0.1, 20, 4.0), (0.2, 10, 8.0)]:
        noise = solve_noise_multiplier(history, sample_rate, steps, target, DELTA)
        history.append(Phase(noise, sample_rate, steps))
        assert target - 0.05 < epsilon_of(history, DELTA) <= target
    with pytest.raises(BudgetExhaustedError) as refused:
        solve_noise_multiplier(history, 0.1, 10, 7.5, DELTA)
    assert refused.value.target == 7.5
    assert refused.value.spent == pytest.approx(8.0, abs=0.05)


def test_a_rest_too_small_for_any_noise_is_refused() -> None:
    history = [Phase(0.8, 0.1, 40)]
    spent = epsilon_of(history, DELTA)
    with pytest.raises(BudgetExhaustedError, match="no noise fits"):
        solve_noise_multiplier(history, 0.1, 40, spent + 1e-7, DELTA)


@pytest.mark.parametrize("bad", [(-1.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, -1)])
def test_impossible_phases_are_refused(bad: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="impossible phase"):
        Phase(*bad)

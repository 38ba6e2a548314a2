"""How much privacy a history of private steps has spent, and how much noise the next steps need.

The privacy loss of Poisson-subsampled Gaussian steps is composed numerically (PRV: Gopi, Lee, Wutschitz 2021, by
Opacus' accountant), which is tight; adding the epsilons of separate runs would overstate it. Where the numerics of
PRV fail, Renyi accounting (Mironov, Talwar, Zhang 2019) gives a valid, looser figure, and the result says so.

Everything here holds for parameters fixed in advance of the private outputs they apply to.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from opacus.accountants import create_accountant

Mechanism = Literal["prv", "rdp"]

# Noise multipliers are given to this step, rounded up; beyond the largest one a run learns nothing.
NOISE_RESOLUTION: Final = 1e-4
LARGEST_NOISE: Final = 1e4

# Opacus lays its grid out over all of epsilon: with next to no noise it takes minutes and all memory.
_EPSILON_ERROR: Final = 0.01
_LARGEST_GRID: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Phase:
    """``steps`` steps with one noise multiplier and one Poisson sample rate."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or not 0 < self.sample_rate <= 1 or self.steps < 0:
            raise ValueError(
                f"impossible phase {self}: noise_multiplier and steps must not be negative, "
                "sample_rate must lie in (0, 1]"
            )


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """``(epsilon, delta)`` and the accountant that found it; epsilon is infinite without noise."""

    epsilon: float
    delta: float
    mechanism: Mechanism


class BudgetExhaustedError(RuntimeError):
    """No amount of noise lets the planned steps end within the target."""

    def __init__(self, spent: float, target: float, why: str) -> None:
        self.spent = spent
        self.target = target
        super().__init__(
            f"privacy budget exhausted: epsilon {spent:.4f} of {target:g} is spent, {why}. "
            "Training on this data domain ends here; an operator can open a new cohort"
        )


def privacy_spent(history: Sequence[Phase], delta: float, mechanism: Mechanism = "prv") -> PrivacySpent:
    """The composed privacy cost of ``history`` at ``delta``: an upper bound on epsilon."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it must lie in (0, 1)")
    phases = _merged(history)
    if not phases:
        return PrivacySpent(0.0, delta, mechanism)
    if any(phase.noise_multiplier == 0 for phase in phases):
        return PrivacySpent(math.inf, delta, mechanism)
    if mechanism == "prv":
        epsilon = _prv(phases, delta)
        if epsilon is not None:
            return PrivacySpent(epsilon, delta, "prv")
    return PrivacySpent(_epsilon("rdp", phases, delta), delta, "rdp")


def epsilon_of(history: Sequence[Phase], delta: float, mechanism: Mechanism = "prv") -> float:
    """``privacy_spent(...).epsilon``."""
    return privacy_spent(history, delta, mechanism).epsilon


def solve_noise_multiplier(
    history: Sequence[Phase], sample_rate: float, steps: int, target_epsilon: float, delta: float
) -> float:
    """The least noise multiplier, to 1e-4 and rounded up, with which ``history`` and then ``steps`` steps at
    ``sample_rate`` stay within ``target_epsilon``.

    Opacus' own helper knows no history. Raises ``BudgetExhaustedError``, and ``ValueError`` for no steps.
    """
    if steps < 1:
        raise ValueError(f"cannot plan {steps} steps: at least 1 is needed")
    spent = epsilon_of(history, delta)
    if spent >= target_epsilon:
        raise BudgetExhaustedError(spent, target_epsilon, "nothing is left")

    def fits(units: int) -> bool:
        phase = Phase(units * NOISE_RESOLUTION, sample_rate, steps)
        return epsilon_of([*history, phase], delta) <= target_epsilon

    def surely_fits(units: int) -> bool:
        phase = Phase(units * NOISE_RESOLUTION, sample_rate, steps)
        return epsilon_of([*history, phase], delta, "rdp") <= target_epsilon

    # RDP is a hundred times faster and its answer a few percent above PRV's: it brackets the slow search.
    largest = round(LARGEST_NOISE / NOISE_RESOLUTION)
    high = _least(surely_fits, 0, largest) if surely_fits(largest) else largest
    if not fits(high):
        raise BudgetExhaustedError(spent, target_epsilon, f"and no noise fits {steps} steps into the rest")
    width = max(1, high // 16)
    while high - width > 0 and fits(high - width):
        high, width = high - width, 2 * width
    return _least(fits, max(0, high - width), high) * NOISE_RESOLUTION


def _least(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The least number in ``(low, high]`` that fits, given that ``high`` does and ``low`` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _merged(history: Sequence[Phase]) -> list[Phase]:
    """The history with equal parameters put together: composition does not depend on the order."""
    steps: dict[tuple[float, float], int] = {}
    for phase in history:
        if phase.steps:
            parameters = (phase.noise_multiplier, phase.sample_rate)
            steps[parameters] = steps.get(parameters, 0) + phase.steps
    return [Phase(*parameters, count) for parameters, count in steps.items()]


def _prv(phases: Sequence[Phase], delta: float) -> float | None:
    """Epsilon by PRV; None where its numerics fail, which they do for very little noise."""
    loose = _epsilon("rdp", phases, delta)
    # Grid spacing of Gopi et al., section 5, as Opacus chooses it (delta error: a thousandth of delta).
    spacing = _EPSILON_ERROR / math.sqrt(sum(phase.steps for phase in phases) * math.log(12e3 / delta) / 2)
    if not 2 * loose / spacing <= _LARGEST_GRID:
        return None
    try:
        epsilon = _epsilon("prv", phases, delta)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError):
        return None
    return epsilon if math.isfinite(epsilon) and epsilon >= 0 else None


def _epsilon(mechanism: Mechanism, phases: Sequence[Phase], delta: float) -> float:
    accountant = create_accountant(mechanism=mechanism)
    accountant.history = [(phase.noise_multiplier, phase.sample_rate, phase.steps) for phase in phases]
    with warnings.catch_warnings():
        # RDP warns that its optimum lies at the edge of the orders it tries: a looser bound, still a bound.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))

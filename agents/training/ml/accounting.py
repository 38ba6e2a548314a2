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
NOISE_RESOLUTION: Final = 1e-3
LARGEST_NOISE: Final = 100.0

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
    """The least noise multiplier, to 1e-3 and rounded up, with which ``history`` and then ``steps`` steps at
    ``sample_rate`` stay within ``target_epsilon``.

    Opacus' own helper knows no history. Raises ``BudgetExhaustedError``, and ``ValueError`` for no steps.
    """
    if steps < 1:
        raise ValueError(f"cannot plan {steps} steps: at least 1 is needed")
    spent = epsilon_of(history, delta)
    if spent >= target_epsilon:
        raise BudgetExhaustedError(spent, target_epsilon, "nothing is left")

    def excess(units: int) -> float:
        """Log of epsilon over the target: at most 0 where that much noise fits."""
        phase = Phase(units * NOISE_RESOLUTION, sample_rate, steps)
        return math.log(epsilon_of([*history, phase], delta) / target_epsilon)

    high = low = round(1 / NOISE_RESOLUTION)
    above = below = excess(high)
    while above > 0:
        low, below = high, above
        high *= 2
        if high * NOISE_RESOLUTION > LARGEST_NOISE:
            raise BudgetExhaustedError(spent, target_epsilon, f"and no noise fits {steps} steps into the rest")
        above = excess(high)
    while below <= 0 and low > 1:
        high, above = low, below
        low //= 2
        below = excess(low)
    return _least_fit(excess, low, below, high, above) * NOISE_RESOLUTION


def _least_fit(excess: Callable[[int], float], low: int, below: float, high: int, above: float) -> int:
    """The least number in ``(low, high]`` whose excess is not positive, knowing the excess at both ends.

    An evaluation costs tenths of a second, so the next number to try is interpolated (epsilon is close to a
    power of the noise); every other try halves the interval, which bounds their number.
    """
    interpolate = True
    while high - low > 1:
        middle = (low + high) // 2
        if interpolate and above < below < math.inf:
            share = below / (below - above)
            middle = round(low * (high / low) ** share)
        middle = min(max(middle, low + 1), high - 1)
        interpolate = not interpolate or high - low < 8
        found = excess(middle)
        if found <= 0:
            high, above = middle, found
        else:
            low, below = middle, found
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
    # Grid spacing of Gopi et al., section 5, as Opacus chooses it (delta error: a thousandth of delta).
    spacing = _EPSILON_ERROR / math.sqrt(sum(phase.steps for phase in phases) * math.log(12e3 / delta) / 2)
    widest = _LARGEST_GRID * spacing / 2
    if _unsampled_epsilon(phases, delta) > widest and not _epsilon("rdp", phases, delta) <= widest:
        return None
    try:
        epsilon = _epsilon("prv", phases, delta)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError):
        return None
    return epsilon if math.isfinite(epsilon) and epsilon >= 0 else None


def _unsampled_epsilon(phases: Sequence[Phase], delta: float) -> float:
    """A bound that costs nothing to compute: the phases without sampling, as zCDP (Bun and Steinke 2016)."""
    rho = sum(phase.steps / (2 * phase.noise_multiplier**2) for phase in phases)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def _epsilon(mechanism: Mechanism, phases: Sequence[Phase], delta: float) -> float:
    accountant = create_accountant(mechanism=mechanism)
    accountant.history = [(phase.noise_multiplier, phase.sample_rate, phase.steps) for phase in phases]
    with warnings.catch_warnings():
        # RDP warns that its optimum lies at the edge of the orders it tries: a looser bound, still a bound.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))

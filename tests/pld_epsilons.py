"""Epsilons by Google's dp-accounting, which cannot stand in one environment with the project's other dependencies.

    python -m venv /tmp/pld && /tmp/pld/bin/pip install dp-accounting==0.6.0
    /tmp/pld/bin/python tests/pld_epsilons.py

Writes `tests/data/pld_epsilons.json`, which `tests/unit/agents/test_ml_accounting.py` compares our accountant with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "data" / "pld_epsilons.json"
DELTA = 1e-5
# (noise multiplier, sample rate, steps): three cycles of one domain with targets 4, 6 and 8, then single runs.
CYCLES = [(1.475, 0.32, 10), (1.498, 0.5, 6), (1.072, 0.21, 15)]
HISTORIES = [
    CYCLES[:1],
    CYCLES[:2],
    CYCLES,
    [(0.599, 0.032, 93)],
    [(1.03, 0.4, 17)],
    [(3.14, 0.5, 8)],
    [(1.0, 1.0, 1)],
]


def main() -> None:
    """Compute and write."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    cases: list[dict[str, Any]] = []
    for history in HISTORIES:
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        for noise, rate, steps in history:
            sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, steps))
        cases.append({"history": history, "epsilon": accountant.get_epsilon(DELTA)})
    document = {"by": "dp-accounting 0.6.0, PLDAccountant, add or remove one", "delta": DELTA, "cases": cases}
    OUT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The gate and the scrubber live in one process, whichever is loaded first."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest

GATE = "import policies.gate as gate; gate.RegopyEngine(gate.load_bundle()).decide_now('model_inference', {})"
SCRUBBER = "import otel.table; otel.table.load_table()"


@pytest.mark.parametrize("order", list(permutations([GATE, SCRUBBER])), ids=["gate first", "scrubber first"])
def test_two_copies_of_re2_do_not_end_the_process(order: tuple[str, ...]) -> None:
    program = "\n".join([*order, *order])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

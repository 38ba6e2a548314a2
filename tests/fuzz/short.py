"""How far the short form of a fuzzer goes, in `make test`: to a case, not for a time.

A machine that is faster must not meet cases that nobody has seen: whether a change lands would hang on where it is
tried. `FLYWHEEL_TEST_FUZZ_SECONDS` asks for a time all the same, `FLYWHEEL_TEST_FUZZ_SEED` for other cases.
"""

from __future__ import annotations

import os

_ASKED = os.environ.get("FLYWHEEL_TEST_FUZZ_SECONDS")
SECONDS = 300.0 if _ASKED is None else float(_ASKED)
"""After so long it ends in any case: a machine that slow meets fewer cases, never others."""
SEED = int(os.environ.get("FLYWHEEL_TEST_FUZZ_SEED", "7"))


def most(cases: int) -> int | None:
    """The bound on cases: `cases`, or none where a time is asked for."""
    return cases if _ASKED is None else None

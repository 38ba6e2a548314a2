"""Fuzzes the router's way from bytes to decisions: nothing raises, nothing hangs, everything is accounted for.

    python tests/fuzz_routing.py --seconds 600
    python tests/fuzz_routing.py --seed 7 --only 1234      # one case again

Case N of a seed is always the same. What breaks a property is a finding: its number, its input (base64) and what it
did are printed, and the exit status is 1. A finding becomes a regression case in
`tests/unit/agents/test_routing_fuzz.py`.
"""

from __future__ import annotations

import argparse
import base64
import math
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from fuzz.frame import Hung, watchdog  # noqa: E402
from fuzz_cases import Case, Maker  # noqa: E402
from fuzz_checks import LAST_ERROR, run_case  # noqa: E402
from routing_parts import OUTCOMES  # noqa: E402

from otel.scrub import Scrubber  # noqa: E402
from otel.subject import SubjectTokenizer  # noqa: E402
from otel.table import load_table  # noqa: E402

HANG_S = 2.0
"""A case that takes more CPU time is a finding; by the clock, a busy machine would make findings of its own."""

DEAF_S = 60.0
"""A case that takes so long by the clock ends the run, with a traceback: it waits, or does not even let itself stop."""


@dataclass
class Finding:
    """A case that breaks a property."""

    number: int
    case: Case
    what: str

    @property
    def kind(self) -> str:
        """What findings of one cause have in common."""
        return re.sub(r"\d+|'.*?'|\(.*\)", "", self.what)

    def __str__(self) -> str:
        headers = {name: base64.b64encode(value).decode() for name, value in self.case.headers.items()}
        value = None if self.case.value is None else base64.b64encode(self.case.value[:20_000]).decode()
        return f"case {self.number}: {self.what}\n  value (base64) {value}\n  headers (base64) {headers}"


@dataclass
class Result:
    """What a run came to."""

    cases: int = 0
    records: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    """The first of each kind."""
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)

    def __str__(self) -> str:
        lines = [
            f"{self.cases} cases, {self.records} records in {self.seconds:.0f} s; {len(self.findings)} findings",
            f"slowest {self.slowest[0]:.3f} s of CPU (case {self.slowest[1]})",
            f"outcomes {dict(self.outcomes.most_common())}",
            f"reasons {dict(self.reasons.most_common())}",
        ]
        told = [f"{finding}\n  {self.kinds[finding.kind]} cases of this kind" for finding in self.findings]
        return "\n".join([*lines, *told])


def case_of(seed: int, number: int) -> tuple[Case, random.Random]:
    """Case `number` of `seed`, and the stream that decides how it is run."""
    draw = random.Random(f"{seed}:{number}")
    return Maker(draw).case(), draw


def attempt(case: Case, draw: random.Random, number: int, result: Result, scrubber: Scrubber | None = None) -> None:
    """Run one case and note what came of it."""
    started = time.process_time()
    LAST_ERROR.text = ""
    try:
        with watchdog(HANG_S, DEAF_S):
            report = run_case(case, draw, scrubber)
    except (Exception, Hung) as error:  # noqa: BLE001 - whatever is raised is the finding
        frames = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
        finding = Finding(number, case, f"{type(error).__name__}: {error} ({place})")
        result.kinds[finding.kind] += 1
        if result.kinds[finding.kind] == 1:
            result.findings.append(finding)
    else:
        result.records += report.records_in
        result.outcomes.update({name: getattr(report, name).total() for name in OUTCOMES})
        result.reasons.update(report.dead_lettered)
    result.cases += 1
    result.slowest = max(result.slowest, (time.process_time() - started, number))


def run(
    seconds: float,
    seed: int,
    most_findings: int = 10,
    scrubber: Scrubber | None = None,
    most_cases: int | None = None,
) -> Result:
    """Fuzz for so many seconds or cases, or until so many findings are made."""
    result, started = Result(), time.monotonic()
    number, told, most = 0, started, math.inf if most_cases is None else most_cases
    while time.monotonic() - started < seconds and number < most and len(result.findings) < most_findings:
        case, draw = case_of(seed, number)
        attempt(case, draw, number, result, scrubber)
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{told - started:.0f} s: {result.cases} cases, {len(result.findings)} findings", flush=True)
    result.seconds = time.monotonic() - started
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="which cases")
    parser.add_argument("--only", type=int, help="run this one case of the seed")
    chosen = parser.parse_args(arguments)
    scrubber = Scrubber(load_table(), SubjectTokenizer(b"a key for the fuzzer, 32 bytes....."))
    print(f"seed {chosen.seed}", flush=True)
    if chosen.only is not None:
        result = Result()
        attempt(*case_of(chosen.seed, chosen.only), chosen.only, result, scrubber)
    else:
        result = run(chosen.seconds, chosen.seed, scrubber=scrubber)
    print(result)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())

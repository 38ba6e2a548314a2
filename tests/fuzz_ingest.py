"""Fuzzes `POST /v1/logs`: no crash, no status but those of OTLP/HTTP, nothing personal and nothing altered in Kafka.

    python tests/fuzz_ingest.py --seconds 600
    python tests/fuzz_ingest.py --seed 7 --only 1234      # one case again

Case N of a seed is always the same. What breaks a property is a finding: its number, its input (base64) and what it
did are printed, and the exit status is 1. A finding becomes a regression case in
`tests/functional/test_ingest_fuzz.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import math
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from fuzz_ingest_cases import Post, PostMaker  # noqa: E402
from fuzz_ingest_checks import Rig  # noqa: E402
from fuzz_routing import DEAF_S, HANG_S, Hung, watchdog  # noqa: E402


@dataclass
class Finding:
    """A case that breaks a property."""

    number: int
    post: Post
    what: str

    @property
    def kind(self) -> str:
        """What findings of one cause have in common."""
        return re.sub(r"\d+|'.*?'|\".*?\"|\(.*\)", "", self.what)

    def __str__(self) -> str:
        body = base64.b64encode(self.post.body[:20_000]).decode()
        return f"case {self.number}: {self.what}\n  headers {self.post.headers}\n  body (base64) {body}"


@dataclass
class Result:
    """What a run came to."""

    cases: int = 0
    records: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    """The first of each kind."""
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)

    def __str__(self) -> str:
        lines = [
            f"{self.cases} cases, {self.records} records in Kafka, {self.seconds:.0f} s; {len(self.findings)} findings",
            f"slowest {self.slowest[0]:.3f} s of CPU (case {self.slowest[1]})",
            f"statuses {dict(sorted(self.statuses.items()))}",
        ]
        told = [f"{finding}\n  {self.kinds[finding.kind]} cases of this kind" for finding in self.findings]
        return "\n".join([*lines, *told])


def case_of(seed: int, number: int) -> tuple[Post, random.Random]:
    """Case `number` of `seed`, and the stream that decides how it is run."""
    draw = random.Random(f"ingest:{seed}:{number}")
    return PostMaker(draw).post(), draw


class Fuzzer:
    """Runs cases one after another, in an event loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End the loop."""
        self._runner.close()

    def attempt(self, post: Post, draw: random.Random, number: int, result: Result) -> None:
        """Run one case and note what came of it."""
        started = time.process_time()
        try:
            with watchdog(HANG_S, DEAF_S):
                status, records = self._runner.run(self.rig.run(post, draw))
        except (Exception, Hung) as error:  # noqa: BLE001 - whatever is raised is the finding
            frames = traceback.extract_tb(error.__traceback__)
            place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
            finding = Finding(number, post, f"{type(error).__name__}: {error} ({place})")
            result.kinds[finding.kind] += 1
            if result.kinds[finding.kind] == 1:
                result.findings.append(finding)
        else:
            result.statuses[status] += 1
            result.records += records
        result.cases += 1
        result.slowest = max(result.slowest, (time.process_time() - started, number))

    def run(self, seconds: float, seed: int, most_findings: int = 10, most_cases: int | None = None) -> Result:
        """Fuzz for so many seconds or cases, or until so many findings are made."""
        result, started = Result(), time.monotonic()
        told, most = started, math.inf if most_cases is None else most_cases
        while time.monotonic() - started < seconds and result.cases < most and len(result.findings) < most_findings:
            post, draw = case_of(seed, result.cases)
            self.attempt(post, draw, result.cases, result)
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
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        if chosen.only is None:
            result = fuzzer.run(chosen.seconds, chosen.seed)
        else:
            result = Result()
            fuzzer.attempt(*case_of(chosen.seed, chosen.only), chosen.only, result)
        fuzzer.close()
    print(result)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the fuzzers.

    python -m fuzz TARGET --seconds 600              # any of the targets, or all
    python -m fuzz web --seed 7 --only 1234          # one case again
    python -m fuzz web --replay tests/data/fuzz/web/x.json

Findings are printed and kept in var/fuzz; the exit status is 1 where there are any.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzz import targets
from fuzz.frame import Finding, Result, case_of, replay, run

FOUND = Path("var/fuzz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*targets.NAMES, *targets.OWN_PROGRAMS, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on with each")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="which cases")
    parser.add_argument("--only", type=int, help="run this one case of the seed")
    parser.add_argument("--replay", type=Path, help="run the case in this file")
    chosen = parser.parse_args(arguments)
    names = [*targets.NAMES, *targets.OWN_PROGRAMS] if chosen.target == "all" else [chosen.target]
    return max(_one(name, chosen) for name in names)


def _one(name: str, chosen: argparse.Namespace) -> int:
    print(f"{name}: seed {chosen.seed}", flush=True)
    if name in targets.OWN_PROGRAMS:
        only = [] if chosen.only is None else ["--only", str(chosen.only)]
        return targets.OWN_PROGRAMS[name](["--seconds", str(chosen.seconds), "--seed", str(chosen.seed), *only])
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder, targets.make(name, Path(folder)) as target:
        if chosen.only is not None:
            result: Result = replay(target, case_of(target, chosen.seed, chosen.only))
        elif chosen.replay is not None:
            kept = json.loads(chosen.replay.read_text())
            result = replay(target, kept.get("case", kept))
        else:
            result = run(target, chosen.seconds, chosen.seed, last=FOUND / f"{name}.last.json")
    for finding in result.findings:
        _keep(name, chosen.seed, finding)
    print(f"{name}: {result}", flush=True)
    return 1 if result.findings or result.unreached else 0


def _keep(name: str, seed: int, finding: Finding) -> None:
    path = FOUND / f"{name}-{seed}-{finding.number}.json"
    path.write_text(json.dumps({"found": finding.what[:1000], "case": finding.case}, indent=1))


if __name__ == "__main__":
    sys.exit(main())

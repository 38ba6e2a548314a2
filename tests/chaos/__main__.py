"""`make chaos`: seeds one after another, those without a result for this code; then the table in README.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from chaos import results
from chaos.checks import BACK_WITHIN_S
from chaos.episode import NotStarted, run


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds that are asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds must have a result (default 5)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--faults", type=int, default=8, help="faults a seed (default 8)")
    parser.add_argument(
        "--back-within", type=float, default=BACK_WITHIN_S, help="by when all must be at work again, in s (default 60)"
    )
    asked = parser.parse_args(arguments)
    digest = results.code_digest()
    wanted = range(asked.first, asked.first + asked.seeds)
    here = [one for one in results.read() if (one["digest"], one["count"]) == (digest, asked.faults)]
    known = {one["seed"] for one in here if one["passed"]}
    failed = False
    for seed in wanted:
        if seed not in known:
            failed |= not _run_one(seed, asked.faults, asked.back_within, digest)
    # Of a seed that failed and passed later, both lines are told.
    results.write("results", results.table(results.read()))
    return int(failed)


def _run_one(seed: int, count: int, back_within_s: float, digest: str) -> bool:
    result = {"seed": seed, "count": count, "digest": digest, "passed": True}
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        result |= run(folder, seed, count, back_within_s=back_within_s)
    except NotStarted as error:  # no result: nothing was tested
        print(f"seed {seed}: {error}", flush=True)
        return False
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it was, it is the result
        result |= {"passed": False, "error": " ".join(str(error).split())[:200].replace("|", "/")}
        traceback.print_exc()
        print(f"seed {seed}: the logs are in {folder}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {seed}: {result}", flush=True)
    results.add(result)
    return bool(result["passed"])


if __name__ == "__main__":
    sys.exit(main())

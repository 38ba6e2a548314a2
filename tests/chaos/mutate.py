"""`python -m chaos.mutate`: each protection taken out, each of its faults let fall; then the table in README.md.

With `--tests` it is unit tests that run without the protection, in place of the suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import REPOSITORY

from app.embedded.errors import ProcessExited
from chaos import results
from chaos.at_start import changed
from chaos.catalogue import named
from chaos.episode import run
from chaos.mutants import MUTANTS, Mutant

FOUND = Path(__file__).parent / "mutants.jsonl"
"""Committed; of a protection and what noticed it the last line counts."""
LOG = Path("var") / "chaos-mutants.log"


def main(arguments: list[str] | None = None) -> int:
    """Run what has no result for this code yet, or what is asked for; 1 where a mutant went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m chaos.mutate", description=__doc__)
    parser.add_argument("--only", default="", help="protections and faults whose name holds this text")
    parser.add_argument("--tests", action="store_true", help="run the unit tests of each protection, and no seeds")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args(arguments)
    digest = results.code_digest()
    known = {(one["protection"], one["by"]) for one in results.read(FOUND) if one["digest"] == digest}
    failed = False
    for mutant, by in _wanted(tests=asked.tests):
        wanted = asked.only in f"{mutant.protection}: {by}" and (asked.only or (mutant.protection, by) not in known)
        if wanted and not asked.table:
            failed |= not _run_one(mutant, by, digest)
    results.write("mutants", _table())
    return int(failed)


def _wanted(*, tests: bool) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with each thing that must notice it: the name of a fault, or a file of tests."""
    for mutant in MUTANTS:
        for by in ([mutant.tests] if mutant.tests else []) if tests else mutant.faults:
            yield mutant, by


def _run_one(mutant: Mutant, by: str, digest: str) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        notice = _by_tests if by == mutant.tests else _by_fault
        how = notice(mutant, by, Path(folder))
    result = {"protection": mutant.protection, "by": by, "digest": digest, "noticed": how is not None, "how": how}
    result["seconds"] = round(time.monotonic() - began)
    print(result, flush=True)
    results.add(result, FOUND)
    return how is not None


def _by_fault(mutant: Mutant, fault: str, folder: Path) -> str | None:
    """What failed when the fault fell; None where nothing did."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a") as log, contextlib.redirect_stdout(log):  # what fails tells its logs
        try:
            run(
                folder,
                seed=1,
                count=mutant.times,
                faults=[named(fault)] * mutant.times,
                topology=mutant.topology,
                environment=mutant.environment(folder),
                changes=mutant.changes,
            )
        except (AssertionError, ProcessExited, pytest.fail.Exception) as error:
            return " ".join(str(error).split())[:160].replace("|", "/")
    return None


def _by_tests(mutant: Mutant, tests: str, folder: Path) -> str | None:
    """The first test that failed; None where none did."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/unit/{tests}"]
    environment = {**os.environ, **mutant.environment(folder), **changed(mutant.changes)}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return failed[0].split(" ")[1].rpartition("::")[2] if done.returncode == 1 and failed else None


def _table() -> str:
    last = {(one["protection"], one["by"]): one for one in results.read(FOUND)}
    rows = [
        f"| {protection} | {by} | {one['how'] or 'NOT NOTICED'} | `{one['digest']}` |"
        for (protection, by), one in sorted(last.items())
    ]
    return "\n".join(
        ["| protection taken out | fault, or unit tests | what failed | code |", "|---|---|---|---|", *rows]
    )


if __name__ == "__main__":
    sys.exit(main())

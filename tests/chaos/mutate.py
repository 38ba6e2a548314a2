"""`python -m chaos.mutate`: each protection taken out, each of its faults let fall; then the table in README.md."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from app.embedded.errors import ProcessExited
from chaos import results
from chaos.catalogue import named
from chaos.episode import run
from chaos.mutants import MUTANTS, Mutant

FOUND = Path(__file__).parent / "mutants.jsonl"
"""Committed; of a protection and a fault the last line counts."""
LOG = Path("var") / "chaos-mutants.log"


def main(arguments: list[str] | None = None) -> int:
    """Run what has no result for this code yet, or what is asked for; 1 where a mutant went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m chaos.mutate", description=__doc__)
    parser.add_argument("--only", default="", help="protections and faults whose name holds this text")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args(arguments)
    digest = results.code_digest()
    known = {(one["protection"], one["fault"]) for one in results.read(FOUND) if one["digest"] == digest}
    failed = False
    for mutant in MUTANTS:
        for fault in mutant.faults:
            if asked.table or asked.only not in f"{mutant.protection}: {fault}":
                continue
            if (mutant.protection, fault) not in known or asked.only:
                failed |= not _run_one(mutant, fault, digest)
    results.write("mutants", _table())
    return int(failed)


def _run_one(mutant: Mutant, fault: str, digest: str) -> bool:
    result: dict[str, Any] = {"protection": mutant.protection, "fault": fault, "digest": digest, "noticed": False}
    began = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, LOG.open("a") as log:
        try:
            with contextlib.redirect_stdout(log):  # what fails tells its logs
                run(
                    Path(folder),
                    seed=1,
                    count=mutant.times,
                    faults=[named(fault)] * mutant.times,
                    topology=mutant.topology,
                    environment=mutant.environment(Path(folder)),
                )
        except (AssertionError, ProcessExited, pytest.fail.Exception) as error:
            how = " ".join(str(error).split())[:160].replace("|", "/")
            result |= {"noticed": True, "how": how}
    result["seconds"] = round(time.monotonic() - began)
    print(result, flush=True)
    results.add(result, FOUND)
    return bool(result["noticed"])


def _table() -> str:
    last = {(one["protection"], one["fault"]): one for one in results.read(FOUND)}
    rows = [
        f"| {fault} | {protection} | {one.get('how', 'NOT NOTICED')} | `{one['digest']}` |"
        for (protection, fault), one in last.items()
    ]
    return "\n".join(["| fault | protection taken out | how it was noticed | code |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())

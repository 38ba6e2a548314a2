"""The mutations still fit the code that they change: cheap; `python -m chaos.mutate` runs them."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from services import REPOSITORY

from app.embedded.collector import CONFIG_PATH
from chaos.at_start import changed
from chaos.catalogue import FAULTS
from chaos.mutants import MUTANTS, Mutant
from chaos.site import NO_MODEL


def name(mutant: Mutant) -> str:
    return mutant.protection.replace(" ", "-")


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_a_mutant_changes_what_is_there_into_something_that_compiles(mutant: Mutant) -> None:
    assert mutant.changes or mutant.variables or mutant.collector
    assert set(mutant.faults) <= {fault.name for fault in FAULTS}
    for module, before, after in (*mutant.changes, NO_MODEL):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert source.count(before) == 1, f"{module} holds it {source.count(before)} times: {before}"
        ast.parse(source.replace(before, after))
    assert not mutant.tests or (REPOSITORY / "tests" / "unit" / mutant.tests).exists()
    if mutant.collector:
        assert CONFIG_PATH.read_text().count(mutant.collector[0]) > 0


def test_a_process_runs_the_changed_module() -> None:
    (mutant,) = (one for one in MUTANTS if "finishes the batch in hand" in one.protection)
    program = "from agents.consume import ConsumeConfig; print(ConsumeConfig().drain_timeout_s)"
    command = [sys.executable, "-c", program]
    told = [
        subprocess.run(
            command, env={**os.environ, **more}, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        for more in ({}, changed(mutant.changes))
    ]
    assert told == ["10.0", "0.0"]

"""The policies, as every engine decides them: one table of cases, the same answers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from gate_parts import BUNDLES, TABLE, opa_program

from app.policy_checks import decided_by_opa, rego_tests, strict_check
from app.wiring import principles_by_code
from models.decision import GateDecision
from policies.constitution import load_constitution
from policies.gate.bundle import REGO_ROOT, load_bundle
from policies.gate.cases import Case
from policies.gate.regopy_engine import RegopyEngine

MODULES = BUNDLES["usual"].modules


@pytest.fixture(scope="module")
def opa() -> Path:
    """The OPA program."""
    return opa_program()


@pytest.fixture(scope="module")
def regopy_decisions() -> dict[str, GateDecision]:
    """What regopy decides of each case, by name."""
    engines = {name: RegopyEngine(bundle) for name, bundle in BUNDLES.items()}
    return {case.name: engines[case.data].decide_now(case.action, case.facts) for case in TABLE.cases}


@pytest.fixture(scope="module")
def opa_decisions(opa: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, GateDecision]:
    """What OPA servers decide of each case, by name."""
    decided = decided_by_opa(opa, load_bundle(), TABLE, tmp_path_factory.mktemp("opa"))
    return {case.name: decision for case, decision in decided}


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: case.name)
def test_regopy_decides(case: Case, regopy_decisions: dict[str, GateDecision]) -> None:
    assert case.mismatch(regopy_decisions[case.name]) is None


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: case.name)
def test_opa_agrees(
    case: Case, opa_decisions: dict[str, GateDecision], regopy_decisions: dict[str, GateDecision]
) -> None:
    assert case.mismatch(opa_decisions[case.name]) is None
    told_apart = {"engine", "decision_id"}
    expected = regopy_decisions[case.name].model_dump(exclude=told_apart)
    assert opa_decisions[case.name].model_dump(exclude=told_apart) == expected


def test_decisions_carry_the_revisions(regopy_decisions: dict[str, GateDecision]) -> None:
    for case in TABLE.cases:
        decision, bundle = regopy_decisions[case.name], BUNDLES[case.data]
        assert (decision.bundle_revision, decision.data_revision) == (bundle.bundle_revision, bundle.data_revision)


def test_every_reason_has_a_case() -> None:
    written = {code for source in MODULES.values() for code in re.findall(r'"code": "(\w+)"', source)}
    assert written == {code for case in TABLE.cases for code in case.codes}


def test_every_rule_has_metadata() -> None:
    for name, source in MODULES.items():
        for head in re.finditer(r"(?m)^(?!package )[a-z].*$", source):
            before = source[: head.start()].rsplit("\n\n", 1)[-1]
            assert before.startswith("# METADATA\n# title: "), f"{name}: {head.group(0)}"


def test_the_principles_are_those_of_the_constitution_that_ships() -> None:
    constitution = load_constitution()
    assert load_bundle().data["constitutional_principles"] == principles_by_code(constitution)


def test_rego_tests_pass_and_cover(opa: Path) -> None:
    assert rego_tests(opa, REGO_ROOT) is None
    command = [opa, "test", "--coverage", "--threshold", "95", "acgs", "data"]
    report = subprocess.run(command, cwd=REGO_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert report.returncode == 0, report.stdout[-2000:] + report.stderr
    assert json.loads(report.stdout)["coverage"] >= 95


def test_rego_is_strict_and_formatted(opa: Path) -> None:
    assert strict_check(opa, REGO_ROOT) is None
    command = [opa, "fmt", "--diff", "--fail", "acgs"]
    form = subprocess.run(command, cwd=REGO_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert form.returncode == 0, form.stdout + form.stderr

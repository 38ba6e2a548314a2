"""What `lint` finds in a document that the schema accepts, and in one that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.constitution import DEFAULT_PATH, read_document
from policies.constitution.lint import MOST_ALIKE, lint

PRIVACY = 5


@pytest.fixture
def document() -> dict[str, Any]:
    return read_document(DEFAULT_PATH)


def test_the_document_that_ships_has_nothing_to_mend() -> None:
    assert lint() == []


def _few(d: dict[str, Any]) -> None:
    del d["principles"][0]["exemplars"]["lookalike"][20:]


def _few_deflections(d: dict[str, Any]) -> None:
    del d["answers"]["deflection"][23:]


def _another_opening(d: dict[str, Any]) -> None:
    d["principles"][1]["revision_opening"] = "No opening of the list."


def _two_openings(d: dict[str, Any]) -> None:
    openings = d["principles"][1]["revision_openings"]
    d["principles"][1]["revision_openings"] = [d["principles"][1]["revision_opening"], openings[-1]]


def _greedy_request_rule(d: dict[str, Any]) -> None:
    d["principles"][PRIVACY]["rules"] = {"request": ["(?i)how"]}


def _greedy_answer_rule(d: dict[str, Any]) -> None:
    d["principles"][PRIVACY]["rules"] = {"answer": ["(?i)sorry"]}


def _contradiction(d: dict[str, Any]) -> None:
    d["principles"][2]["exemplars"]["lookalike"][0] = d["principles"][2]["exemplars"]["violating"][0] + " Now!"


def _repetition(d: dict[str, Any]) -> None:
    d["answers"]["compliance"][1] = d["answers"]["compliance"][0].upper() + " Well."


@pytest.mark.parametrize(
    ("spoil", "place", "problem"),
    [
        (_few, "principles.harm.exemplars.lookalike", "only 20 entries, of 24"),
        (_few_deflections, "answers.deflection", "only 23 entries, of 24"),
        (_another_opening, "principles.self_harm.revision_openings", "is not among them"),
        (_two_openings, "principles.self_harm.revision_openings", "only 2, so that every revision begins alike"),
        (_greedy_request_rule, "principles.privacy.rules.request.0", "'(?i)how' holds for "),
        (_greedy_answer_rule, "principles.privacy.rules.answer.0", "of answers.refusal"),
        (_contradiction, "principles.illegal_acts.exemplars.", "which says the opposite"),
        (_repetition, "answers.compliance", "is nearly "),
    ],
)
def test_each_weakness_is_found_alone(
    tmp_path: Path, document: dict[str, Any], spoil: Callable[[dict[str, Any]], None], place: str, problem: str
) -> None:
    spoil(document)
    path = tmp_path / "constitution.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    (finding,) = lint(path)
    assert finding.place.startswith(place)
    assert problem in finding.problem
    assert finding.remedy


def test_what_the_schema_refuses_is_a_finding_with_its_remedy(tmp_path: Path, document: dict[str, Any]) -> None:
    document["principles"][PRIVACY]["severity"] = "dire"
    del document["principles"][0]["text"]
    path = tmp_path / "constitution.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    findings = {finding.place: finding for finding in lint(path)}
    assert findings.keys() == {"principles.privacy.severity", "principles.harm.text"}
    assert findings["principles.harm.text"].remedy == "add it"
    assert "'dire'" in findings["principles.privacy.severity"].problem + findings["principles.privacy.severity"].remedy


def test_a_file_that_cannot_be_read_is_one_finding(tmp_path: Path) -> None:
    (finding,) = lint(tmp_path / "absent.yaml")
    assert "cannot be read" in finding.problem


def test_what_is_found_a_thousand_times_is_told_some_times(tmp_path: Path, document: dict[str, Any]) -> None:
    document["answers"]["deflection"] = ["Let us talk of something else."] * 60
    path = tmp_path / "constitution.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    *alike, last = lint(path)
    assert len(alike) == MOST_ALIKE
    assert all("is nearly" in finding.problem for finding in alike)
    assert last.problem == f"and {60 * 59 // 2 - MOST_ALIKE} more of the kind of these {MOST_ALIKE}"


def test_a_thousand_faults_of_the_schema_are_told_some_times(tmp_path: Path, document: dict[str, Any]) -> None:
    document |= {f"key{number}": 1 for number in range(1000)}
    path = tmp_path / "constitution.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    *alike, last = lint(path)
    assert len(alike) == MOST_ALIKE
    assert last.problem.startswith(f"and {1000 - MOST_ALIKE} more")

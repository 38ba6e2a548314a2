"""From routed events to examples and feedback: a table of what is taken, and why the rest is not."""

from __future__ import annotations

from typing import Any

import pytest

from agents.curation.examples import (
    MAX_NAME_CHARS,
    Feedback,
    NotCuratable,
    example_id,
    feedback_changes,
    to_example,
    to_feedback,
    violation_type,
)
from models.event import Classification, Identity, Verdict
from models.example import ExampleStatus, Lineage

LINEAGE = Lineage(topic="constitutional-violations", partition=2, offset=41, trace_id="a" * 32)
NOW = "2026-01-01T00:00:00.000000Z"


def event(**changes: Any) -> dict[str, Any]:
    """A routed violation; a change to None leaves a field out."""
    whole: dict[str, Any] = {
        "event_id": "e1",
        "event_classification": "constitutional_violation",
        "model_id": "m",
        "prompt": "question",
        "response": "answer",
        "violations": ["harm"],
        "compliance_score": 0.25,
        "subject_id": "sub_1",
        "workload_id": "w",
        "routing_metadata": {"identity": {"service": "svc", "id": "e1", "fingerprint": "f"}},
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


def review(**changes: Any) -> dict[str, Any]:
    said = {"target_event_id": "e0", "verdict": "reject", "reviewer_id": "bob"}
    return event(event_classification="human_feedback", **(said | changes))


def test_an_example_has_all_that_the_event_says() -> None:
    example = to_example(event(), LINEAGE, NOW)
    assert example.identity == Identity(service="svc", id="e1", fingerprint="f")
    assert example.example_id == example_id(example.identity)
    assert example.classification is Classification.CONSTITUTIONAL_VIOLATION
    assert (example.event_id, example.model_id, example.domain) == ("e1", "m", "default")
    assert (example.prompt, example.response) == ("question", "answer")
    assert (example.subject_token, example.workload_id) == ("sub_1", "w")
    assert (example.violation_type, example.compliance_score) == ("harm", 0.25)
    assert (example.lineage, example.created_at) == (LINEAGE, NOW)
    assert (example.status, example.corrected_response) == (ExampleStatus.NEW, None)


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"event_classification": "constitutional_violation"}, "priority", 10),
        ({"event_classification": "model_optimization_trigger"}, "priority", 5),
        ({"domain": "health"}, "domain", "health"),
        ({"domain": "  "}, "domain", "default"),
        ({"domain": 7}, "domain", "default"),
        ({"response": None}, "response", ""),
        ({"subject_id": None}, "subject_token", None),
        ({"subject_id": ""}, "subject_token", None),
        ({"event_id": None}, "event_id", None),
        ({"compliance_score": None}, "compliance_score", None),
        ({"prompt": "  question \n"}, "prompt", "question"),
        ({"prompt": None, "messages": [{"role": "user", "content": "asked"}]}, "prompt", "asked"),
        (
            {
                "prompt": None,
                "messages": [
                    {"role": "system", "content": "rules"},
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "reply"},
                    {"role": "user", "content": "last"},
                    {"role": "assistant", "content": "reply"},
                ],
            },
            "prompt",
            "last",
        ),
        ({"model_id": "x" * MAX_NAME_CHARS}, "model_id", "x" * MAX_NAME_CHARS),
    ],
)
def test_a_field_of_an_example(changes: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(to_example(event(**changes), LINEAGE, NOW), name) == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": None}, "no_prompt"),
        ({"prompt": "  "}, "no_prompt"),
        ({"prompt": 7}, "no_prompt"),
        ({"prompt": None, "messages": []}, "no_prompt"),
        ({"prompt": None, "messages": "text"}, "no_prompt"),
        ({"prompt": None, "messages": ["text", {"role": "assistant", "content": "reply"}]}, "no_prompt"),
        ({"prompt": None, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no_prompt"),
        ({"model_id": None}, "no_model"),
        ({"model_id": ""}, "no_model"),
        ({"model_id": ["m"]}, "no_model"),
        ({"model_id": "x" * (MAX_NAME_CHARS + 1)}, "bad_name"),
        ({"model_id": "a\x00b"}, "bad_name"),
        ({"domain": "a\nb"}, "bad_name"),
    ],
)
def test_what_can_be_no_example(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotCuratable) as refused:
        to_example(event(**changes), LINEAGE, NOW)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("violations", "code"),
    [
        (["harm", "privacy"], "harm"),
        ([{"type": "privacy", "severity": "high"}], "privacy"),
        ([{"severity": "high"}, "", {"type": ""}, "late"], "late"),
        ([], "low_score"),
        ([None, {}], "low_score"),
        (None, "low_score"),
        ("one text", "one text"),
    ],
)
def test_the_class_of_a_violation(violations: Any, code: str) -> None:
    assert violation_type({"violations": violations}) == code


def test_identities_that_differ_in_any_part_are_different_examples() -> None:
    identities = [
        Identity(service=service, id=name, fingerprint=print_)
        for service in ("a", "b")
        for name in ("1", "2")
        for print_ in ("x", "y")
    ]
    ids = [example_id(identity) for identity in identities]
    assert len(set(ids)) == len(ids)
    assert ids == [example_id(identity) for identity in identities]


def test_feedback_has_what_the_review_says() -> None:
    feedback = to_feedback(review(verdict="correct", corrected_response=" better "))
    assert (feedback.target_event_id, feedback.verdict, feedback.reviewer_id) == ("e0", Verdict.CORRECT, "bob")
    assert feedback.corrected_response == "better"
    assert feedback.feedback_id == example_id(Identity(service="svc", id="e1", fingerprint="f"))


def test_ids_too_long_to_index_still_find_each_other() -> None:
    long = "é" * 100_000
    kept = to_example(event(event_id=long), LINEAGE, NOW).event_id
    assert kept is not None
    assert len(kept.encode()) < 2704  # PostgreSQL's bound of an index row
    assert to_feedback(review(target_event_id=long)).target_event_id == kept
    assert to_feedback(review(target_event_id=long + "é")).target_event_id != kept


@pytest.mark.parametrize("claim", [{"signed": True}, {"signature": "x"}, {"correction_signed": True}])
def test_no_event_can_sign_itself(claim: dict[str, Any]) -> None:
    assert to_feedback(review(**claim)).signed is False


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target_event_id": None}, "no_target"),
        ({"target_event_id": " "}, "no_target"),
        ({"target_event_id": 4}, "no_target"),
        ({"verdict": None}, "no_verdict"),
        ({"verdict": "perhaps"}, "no_verdict"),
        ({"verdict": ["reject"]}, "no_verdict"),
    ],
)
def test_what_can_be_no_feedback(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotCuratable) as refused:
        to_feedback(review(**changes))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("verdict", "signed", "corrected", "changes"),
    [
        ("approve", False, None, {"status": "retired"}),
        ("approve", True, "text", {"status": "retired"}),
        ("reject", False, None, {"priority": 30}),
        ("reject", True, "text", {"priority": 30}),
        ("correct", False, "text", {"priority": 30}),  # any producer can claim to be a reviewer
        ("correct", True, None, {"priority": 30}),
        ("correct", True, "text", {"priority": 30, "corrected_response": "text", "correction_signed": True}),
    ],
)
def test_what_a_review_changes(verdict: str, signed: bool, corrected: str | None, changes: dict[str, Any]) -> None:
    feedback = Feedback("f", "e", Verdict(verdict), corrected, "bob", signed)
    assert feedback_changes(feedback, 10) == changes

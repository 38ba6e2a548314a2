"""Rules on wording: refusals, and answers that are no answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.constitution import load_constitution
from policies.engine import rules


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that request.",
        "I can\u2019t help with that, because someone could be hurt.",
        "Unfortunately, I am unable to provide details on this subject.",
        "We cannot support such a plan.",
        "That is not something I can help with.",
        "I must decline, since it is dangerous.",
        "This is against my guidelines.",
        "I understand your anger. However, I won't help you harm him.",
    ],
)
def test_refusals_are_recognised(answer: str) -> None:
    assert rules.refusal_evidence(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Plants cannot grow without light, so put the pot near a window.",
        "I can't recommend this novel enough.",
        "You cannot help him more than by listening.",
        "I'm sorry for your loss. A card is a good idea.",
        "One cannot help but smile at the ending.",
        "I can't help with that officially, but here is a guide to breaking in.",
        "I cannot provide this. However, this is how it is done: wait until dark.",
    ],
)
def test_other_answers_are_not(answer: str) -> None:
    assert rules.refusal_evidence(answer) == 0.0


def test_benign_answers_of_the_constitution_hold_no_refusal_and_revision_openings_do() -> None:
    constitution = load_constitution()
    assert not any(rules.refusal_evidence(pair.answer) for pair in constitution.benign)
    openings = [text for p in constitution.principles for text in p.revision_openings]
    missed = [text for text in openings if rules.refusal_evidence(text + " you could ask for help.") == 0.0]
    assert len(missed) <= len(openings) // 4, missed


def test_a_refusal_deep_inside_a_long_answer_is_no_evidence() -> None:
    assert rules.refusal_evidence("Take the first road on the left. " * 20 + "I can't help with that.") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n\t ",
        "...!?",
        "the " * 40,
        "I think so. " * 12,
        "a" * 80,
        "The city is big and the city is old. " * 6,
    ],
)
def test_degenerate_answers_score_high(answer: str) -> None:
    assert rules.degeneration(answer) >= 0.5


def test_ordinary_answers_are_not_degenerate() -> None:
    for pair in load_constitution().benign:
        assert rules.degeneration(pair.answer) == 0.0
    assert rules.degeneration("Yes.") == 0.0
    assert rules.degeneration("42") == 0.0
    assert (
        rules.degeneration("Row, row, row your boat, gently down the stream, merrily, merrily, life is a dream.") < 0.5
    )


@given(st.text(max_size=2000))
def test_findings_stay_in_range_for_any_text(answer: str) -> None:
    found = rules.inspect(answer)
    assert 0.0 <= found.degenerate <= 1.0
    assert found.refusal in {0.0, 1.0}
    assert len(rules.opening(answer)) <= rules.OPENING_CHARS

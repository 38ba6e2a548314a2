"""The words of critique and revision: escalation, and what is kept of a small model's answer."""

from __future__ import annotations

import pytest

from agents.training.prompting import breached_principle, copies_instructions, joined, revision_prompt
from policies.constitution import Constitution, load_constitution


@pytest.fixture(scope="module")
def constitution() -> Constitution:
    return load_constitution()


def test_rounds_escalate_from_critique_to_guidance_to_opening(constitution: Constitution) -> None:
    privacy = constitution.principle("privacy")
    first, second, third = (revision_prompt(n, privacy, "Where does she live?", "At 5 Elm Road.", 0) for n in (1, 2, 3))
    told = [prompt.messages[0]["content"] for prompt in (first, second, third)]
    assert privacy.critique_question in told[0]
    assert privacy.revision_guidance not in told[0]
    assert privacy.revision_guidance in told[1]
    assert third.prefill in privacy.revision_openings
    assert told[2] == "Where does she live?"
    assert [prompt.prefill for prompt in (first, second)] == ["", ""]


def test_the_principle_is_the_likeliest_then_the_finest_code(constitution: Constitution) -> None:
    scores = {"principle.weapons": 0.7, "principle.harm": 0.2}
    assert breached_principle(constitution, scores, ["privacy_violation"]).id == "weapons"
    privacy = constitution.principle("privacy")
    assert breached_principle(constitution, {}, ["unknown", *privacy.codes]).id == "privacy"
    finer = constitution.principle("weapons").finer_code
    assert finer is not None
    assert breached_principle(constitution, {}, ["harmful_content", finer]).id == "weapons"
    assert breached_principle(constitution, {}, ["low_score"]) == constitution.principles[0]


def test_an_answer_that_repeats_its_instructions_is_known(constitution: Constitution) -> None:
    harm = constitution.principle("harm")
    prompt = revision_prompt(2, harm, "How do I hurt him?", "With a stick.", 0)
    assert copies_instructions(f"Well. {harm.revision_guidance}", prompt)
    assert copies_instructions("<answer>No.</answer>", prompt)
    assert not copies_instructions("I would rather help you two calm down.", prompt)
    # What the person asked is no instruction of ours: answers may well repeat it.
    assert not copies_instructions("You ask how do I hurt him, and I will not help with it.", prompt)


@pytest.mark.parametrize(
    ("opening", "text", "kept"),
    [
        (
            "I can't help with that. Instead,",
            "talk to a friend. Or buy 3.5 kg",
            "I can't help with that. Instead, talk to a friend.",
        ),
        ("I can't help with that. Instead,", "and so on and on", "I can't help with that."),
        ("I won't, because", "of reasons without an end", "I won't, because of reasons without an end"),
        ("", "One. Two! Thr", "One. Two!"),
        ("", "no end at all", "no end at all"),
    ],
)
def test_an_answer_ends_where_a_sentence_does(opening: str, text: str, kept: str) -> None:
    assert joined(opening, text) == kept

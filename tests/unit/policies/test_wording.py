"""Messages that repeat what others wrote stay short, and say to their end what to do."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from models.evaluation_api import EvaluateRequest
from policies.gate import BundleError
from policies.wording import MOST_FAULTS, MOST_OF_A_FAULT, MOST_OF_A_LINE, faults_in_few_words, in_few_words


def test_a_short_message_is_left_alone() -> None:
    message = "x" * MOST_OF_A_LINE + "\ntwo lines"
    assert in_few_words(message) == message


def test_of_a_long_line_the_middle_is_left_out() -> None:
    told = in_few_words(f"the name {'x' * 5000!r} is none\n{'y' * 5000}; write another", 100)
    assert [len(line) < 150 for line in told.split("\n")] == [True, True]
    assert told.startswith("the name 'xxx")
    assert told.endswith("; write another")
    assert "characters left out" in told


def test_a_bundles_error_repeats_nothing_at_length() -> None:
    told = str(BundleError(f"two cases have the name {'x' * 50_000}; rename one"))
    assert len(told) < 1100
    assert told.endswith("; rename one")


def test_of_what_nests_too_deep_the_place_is_not_told_whole() -> None:
    deep = json.loads('{"a":[' * 200 + "1" + "]}" * 200)
    with pytest.raises(ValidationError) as refused:
        EvaluateRequest.model_validate({"content": "text", "context": {f"k{number}": deep for number in range(20)}})
    assert len(refused.value.errors()) > MOST_FAULTS
    told = faults_in_few_words(refused.value.errors())
    assert "Recursion error" in told
    assert len(told) < MOST_FAULTS * (MOST_OF_A_FAULT + 50)

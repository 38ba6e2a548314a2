"""Facts reach the policies digit for digit; what JSON cannot hold proves nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regopy import Interpreter

from policies.gate.facts import MAX_EXACT_INTEGER, FactsError, encode, encode_input

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def read_by_regopy(text: str) -> Any:
    interpreter = Interpreter()
    interpreter.set_input_term(f'{{"value":{text}}}')
    # Within a list, for an expression that is false has no result.
    return interpreter.query("[input.value]").results[0].expressions[0][0]


@settings(max_examples=80, deadline=None)
@given(JSON_VALUES)
def test_values_survive(value: Any) -> None:
    text = encode(value)
    assert json.loads(text) == value
    assert read_by_regopy(text) == value


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_floats_keep_every_digit_and_no_exponent(value: float) -> None:
    text = encode(value)
    assert "e" not in text
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [0.9499996, 8.0000001, 1.00001e-5, 1e-5, 123456789.125])
def test_regopy_does_not_round_floats(value: float) -> None:
    assert read_by_regopy(encode(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 5e-324, MAX_EXACT_INTEGER + 1, -(2**70), 2**64 + 8])
def test_numbers_that_no_reader_holds_become_null(value: float) -> None:
    assert encode({"n": value}) == '{"n":null}'


@pytest.mark.parametrize(
    ("facts", "place"),
    [
        ({"a": {"b": {1, 2}}}, "/a/b is a set"),
        ({"a": [0, b"x"]}, "/a/1 is a bytes"),
        ({"a": {3: 1}}, "key 3 at /a"),
        ({"a": "\ud800"}, "text at /a"),
        ({"action": "model_rollback"}, "must not contain 'action'"),
    ],
)
def test_unreadable_facts_are_named(facts: dict[str, Any], place: str) -> None:
    with pytest.raises(FactsError, match=place):
        encode_input("model_inference", facts)


def test_facts_that_hold_themselves_are_refused() -> None:
    facts: dict[str, Any] = {}
    facts["again"] = facts
    with pytest.raises(FactsError, match="nested deeper"):
        encode_input("model_inference", facts)


def test_action_stands_beside_the_facts() -> None:
    assert json.loads(encode_input("model_inference", {"user": {"id": "a"}})) == {
        "action": "model_inference",
        "user": {"id": "a"},
    }

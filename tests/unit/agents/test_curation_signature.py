"""What the feedback endpoint signs is what curation takes; nothing else passes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agents.curation.signature import FIELD, is_signed, sign

KEY = b"k" * 32
SIGNED = ("event_id", "source", "target_event_id", "verdict", "corrected_response", "reviewer_id", "domain")
TEXTS = st.none() | st.text(max_size=20)
REVIEWS = st.fixed_dictionaries({}, optional=dict.fromkeys(SIGNED, TEXTS))


@given(REVIEWS, st.sampled_from(SIGNED), TEXTS)
def test_a_changed_field_is_noticed(review: dict[str, Any], name: str, value: str | None) -> None:
    signed = review | {FIELD: sign(KEY, review)}
    assert is_signed(KEY, signed)
    changed = signed | {name: value}
    assert is_signed(KEY, changed) is (value == review.get(name))


@given(REVIEWS)
def test_what_the_router_adds_does_not_matter_and_keys_do(review: dict[str, Any]) -> None:
    signed = review | {FIELD: sign(KEY, review)}
    assert is_signed(KEY, signed | {"routing_metadata": {"topic": "t"}, "processing_timestamp": "now"})
    assert not is_signed(b"x" * 32, signed)
    assert not is_signed(None, signed)
    assert not is_signed(KEY, review)


def test_fields_cannot_be_shifted_into_each_other() -> None:
    one = {"verdict": "correct", "corrected_response": "a", "reviewer_id": "b"}
    assert sign(KEY, one) != sign(KEY, {"verdict": "correct", "corrected_response": "a,b", "reviewer_id": None})
    for wrong in (7, b"v1.x", ["v1"], "v1.é", ""):
        assert not is_signed(KEY, one | {FIELD: wrong})

"""Signatures of reviews that came through the authenticated feedback endpoint.

Any producer can write `source: human_review` to Kafka. A correction becomes a training target as it stands only when
the endpoint signed it: HMAC-SHA256 (RFC 2104) over what the review says, which the router leaves as it is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

import orjson

FIELD: Final = "feedback_signature"
_VERSION: Final = "v1"
_SIGNED: Final = ("event_id", "source", "target_event_id", "verdict", "corrected_response", "reviewer_id", "domain")


def sign(key: bytes, review: Mapping[str, Any]) -> str:
    """The signature of a review, over every field that says what is to be done, absent ones included."""
    said = [_VERSION, *(review.get(name) for name in _SIGNED)]
    return f"{_VERSION}.{hmac.new(key, orjson.dumps(said), hashlib.sha256).hexdigest()}"


def is_signed(key: bytes | None, review: Mapping[str, Any]) -> bool:
    """Whether `review` carries the signature of exactly what it says."""
    given = review.get(FIELD)
    if key is None or not isinstance(given, str):
        return False
    try:
        expected = sign(key, review)
    except (orjson.JSONEncodeError, TypeError):
        return False
    return hmac.compare_digest(given.encode(), expected.encode())

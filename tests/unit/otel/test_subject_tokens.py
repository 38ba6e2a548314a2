"""Keyed tokens for persons."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from otel.subject import SubjectTokenizer, is_no_subject, is_token

KEY = b"0123456789abcdef0123456789abcdef"


def test_token_is_hmac_sha256_cut_to_128_bits() -> None:
    expected = hmac.new(KEY, b"ada@example.com", hashlib.sha256).hexdigest()[:32]
    assert SubjectTokenizer(KEY).token("ada@example.com") == f"sub_{expected}"


def test_tokens_are_stable_differ_by_value_and_by_key() -> None:
    one, other = SubjectTokenizer(KEY), SubjectTokenizer(KEY[::-1])
    assert one.token("u-1") == one.token(" u-1 ") == SubjectTokenizer(KEY).token("u-1")
    assert len({one.token("u-1"), one.token("u-2"), other.token("u-1")}) == 3


def test_a_token_passes_unchanged_and_a_lookalike_does_not() -> None:
    tokenizer = SubjectTokenizer(KEY)
    token = tokenizer.token("u-1")
    assert is_token(token)
    assert tokenizer.token(token) == token
    for lookalike in (token[:-1], token + "0", token.upper(), "sub_bob", f"{token}\n@example.com"):
        assert not is_token(lookalike)
        assert tokenizer.token(lookalike) != lookalike


@pytest.mark.parametrize(
    "value", ["", "  ", "[EMAIL]", "[US_SSN]", "***", "redacted", "[REDACTED]", "Anonymous", "<EMAIL>", "null"]
)
def test_bare_masks_name_nobody(value: str) -> None:
    assert is_no_subject(value)


@pytest.mark.parametrize("value", ["u-1", "0", "ada@example.com", "[EMAIL] 2", "anonymous-7", "nonesuch"])
def test_ids_name_somebody(value: str) -> None:
    assert not is_no_subject(value)


def test_a_short_key_is_refused_and_the_key_never_shown() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        SubjectTokenizer(b"x" * 15)
    assert "0123456789abcdef" not in repr(SubjectTokenizer(KEY))

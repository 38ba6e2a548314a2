"""Signed heads: what they are signed with, and what is no signature of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.audit import ChainHead, SignedHead
from policies.audit.errors import UnusableKey
from policies.audit.seal import KeyRing, SigningKey, head_digest, head_line, key_id, public_key, seed

EXAMPLE = Path(__file__).resolve().parents[3] / "models" / "examples" / "SignedHead.sealed.json"
# RFC 8032, section 7.1, test 1.
RFC_SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
SEALED_AT = "2026-03-02T09:16:00.000000Z"


@pytest.fixture
def key() -> SigningKey:
    return SigningKey(seed(RFC_SEED))


@pytest.fixture
def head(key: SigningKey) -> SignedHead:
    return key.seal(ChainHead(seq=7, digest="ab" * 32), SEALED_AT, None)


def test_the_key_is_the_rfcs(key: SigningKey) -> None:
    assert key.public.hex() == RFC_PUBLIC
    assert public_key(f" {RFC_PUBLIC}\n") == key.public


def test_a_head_names_the_one_before_it(key: SigningKey, head: SignedHead) -> None:
    following = key.seal(ChainHead(seq=9, digest="cd" * 32), SEALED_AT, head)
    assert head.previous == "0" * 64
    assert following.previous == head_digest(head)
    assert following.key_id == key_id(key.public)
    assert KeyRing([key.public]).problem(following) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"digest": "ac" * 32},
        {"sealed_at": "2016-03-02T09:16:00.000000Z"},
        {"previous": "1" * 64},
        {"signature": "0" * 128},
    ],
)
def test_a_changed_head_is_not_signed(key: SigningKey, head: SignedHead, change: dict[str, object]) -> None:
    assert KeyRing([key.public]).problem(head.model_copy(update=change)) == "its signature does not fit it"


def test_a_head_of_another_key_is_not_trusted(key: SigningKey, head: SignedHead) -> None:
    other = SigningKey(b"\x01" * 32)
    problem = KeyRing([other.public]).problem(head)
    assert problem is not None
    assert key_id(key.public) in problem
    assert key_id(other.public) in problem
    forged = other.seal(ChainHead(seq=7, digest="ab" * 32), SEALED_AT, None)
    renamed = forged.model_copy(update={"key_id": key_id(key.public)})
    assert KeyRing([key.public]).problem(renamed) == "its signature does not fit it"


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, RFC_SEED + "00"])
def test_what_is_no_key_is_refused_and_a_secret_not_repeated(text: str) -> None:
    with pytest.raises(UnusableKey, match="64 hex digits") as refusal:
        seed(text)
    assert not text or text not in str(refusal.value)
    with pytest.raises(UnusableKey, match="public key"):
        public_key(text)
    with pytest.raises(UnusableKey, match="3 bytes"):
        SigningKey(b"abc")


def test_a_head_signed_once_is_trusted_for_ever(key: SigningKey) -> None:
    """The example is on the wire: its form and its signature must go on to hold."""
    head = SignedHead.model_validate_json(EXAMPLE.read_bytes())
    assert KeyRing([key.public]).problem(head) is None
    assert SignedHead.model_validate_json(head_line(head)) == head

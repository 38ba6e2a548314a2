"""Signed heads: a signature over the chain's newest entry vouches for every entry up to it.

Whoever can write to the database can compute a chain anew; whoever cannot sign cannot make it agree with the heads
that were signed before. Signatures are Ed25519 (RFC 8032).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models.audit import ChainHead, SignedHead
from policies.audit.chain import GENESIS, sha256_hex
from policies.audit.errors import UnusableKey
from policies.audit.redact import canonical_json

KEY_BYTES = 32
_UNSIGNED = "0" * 128


class SigningKey:
    """An Ed25519 key, made from its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            msg = f"the audit log's signing key has {len(seed)} bytes; it is a seed of {KEY_BYTES}, as 64 hex digits"
            raise UnusableKey(msg)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()
        """The public key's 32 bytes."""

    def seal(self, head: ChainHead, sealed_at: str, previous: SignedHead | None) -> SignedHead:
        """Sign a head as the one that follows `previous` in the checkpoint file. `sealed_at` is RFC 3339 in UTC."""
        unsigned = SignedHead(
            seq=head.seq,
            digest=head.digest,
            sealed_at=sealed_at,
            previous=GENESIS if previous is None else head_digest(previous),
            key_id=key_id(self.public),
            signature=_UNSIGNED,
        )
        signature = self._key.sign(_message(unsigned)).hex()
        return unsigned.model_copy(update={"signature": signature})


class KeyRing:
    """The public keys whose signatures count: the one in use, and those that were in use before it."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self._keys = {key_id(public): Ed25519PublicKey.from_public_bytes(public) for public in public_keys}

    def problem(self, head: SignedHead) -> str | None:
        """Why the signature of a head does not count; None where it does."""
        key = self._keys.get(head.key_id)
        if key is None:
            known = ", ".join(self._keys) or "none"
            return f"it is signed by the unknown key {head.key_id} (known: {known})"
        try:
            key.verify(bytes.fromhex(head.signature), _message(head))
        except InvalidSignature:
            return "its signature does not fit it"
        return None


class HeadChain:
    """Tells which of a sequence of signed heads can be trusted. `fault` names the first that cannot.

    `previous` is what the first head must name as the one before it; None where that is not known.
    """

    def __init__(self, keys: KeyRing, previous: str | None) -> None:
        self._keys = keys
        self._previous = previous
        self._seq = -1
        self.fault: str | None = None

    @property
    def empty(self) -> bool:
        """Whether there was none that can be trusted."""
        return self._seq < 0

    def trusts(self, head: SignedHead | None, where: str) -> bool:
        """Whether the next head counts; None stands for a line that is none, and `where` says which it was."""
        if head is None:
            self.fail(f"{where} is no signed head")
            self._previous = None
            return False
        where = f"{where} (the head of entry {head.seq})"
        if self._previous not in {None, head.previous}:
            self.fail(f"{where} does not follow the head before it: some between them were taken out or changed")
        self._previous = head_digest(head)
        problem = self._keys.problem(head)
        if problem is None and head.seq <= self._seq:
            problem = f"it stands after the head of entry {self._seq}"
        if problem is not None:
            self.fail(f"{where} cannot be trusted: {problem}")
            return False
        self._seq = head.seq
        return True

    def fail(self, what: str) -> None:
        """Take a fault down, where there was none before."""
        self.fault = self.fault or what


def key_id(public: bytes) -> str:
    """What signed heads name a public key by: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def public_key(text: str) -> bytes:
    """A public key from its 64 hex digits. Raises UnusableKey."""
    return _bytes(text, "public key", text)


def seed(text: str) -> bytes:
    """A signing key's seed from its 64 hex digits. Raises UnusableKey, without repeating it."""
    return _bytes(text, "signing key", f"a text of {len(text)} characters")


def head_line(head: SignedHead) -> str:
    """A signed head as the checkpoint file holds it, without the line's end."""
    return canonical_json(head.model_dump())


def head_digest(head: SignedHead) -> str:
    """What the next signed head names this one by."""
    return sha256_hex(head_line(head))


def _message(head: SignedHead) -> bytes:
    fields: dict[str, Any] = head.model_dump(exclude={"signature"})
    return canonical_json(fields).encode()


def _bytes(text: str, what: str, shown: str) -> bytes:
    try:
        found = bytes.fromhex(text.strip())
    except ValueError:
        found = b""
    if len(found) != KEY_BYTES:
        msg = f"the audit log's {what} is {2 * KEY_BYTES} hex digits, not {shown}; `flywheel audit key` prints one"
        raise UnusableKey(msg)
    return found

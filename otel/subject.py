"""Keyed tokens in place of the ids of persons.

A token is stable for a key: events of one person can still be counted, capped and forgotten, and nobody
without the key can tell whose they are or test a guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

TOKEN_PREFIX: Final = "sub_"  # noqa: S105 - a public prefix
TOKEN_HEX_DIGITS: Final = 32
_MIN_KEY_BYTES: Final = 16
_TOKEN: Final = re.compile(r"sub_[0-9a-f]{32}")
_BARE_MASK: Final = re.compile(
    r"(?:\[[A-Z][A-Z0-9_]*\]|<[A-Z][A-Z0-9_]*>|[*•xX]{3,}|\[?redacted\]?|<redacted>|anonymous|unknown|none|null|n/a|-)?",
    re.IGNORECASE,
)


class SubjectTokenizer:
    """Turns a subject's id into `sub_` and 128 bits of HMAC-SHA256 in hex (RFC 2104)."""

    __slots__ = ("_inner",)

    def __init__(self, key: bytes) -> None:
        """`key`: at least 16 bytes, the same in every process for the privacy ledger's whole life.

        Raises ValueError when it is shorter.
        """
        if len(key) < _MIN_KEY_BYTES:
            raise ValueError(
                f"the subject key has {len(key)} bytes; at least {_MIN_KEY_BYTES} are needed. "
                "Make one with `openssl rand -hex 32` and keep it: a new key makes every subject a new person"
            )
        self._inner = hmac.new(key, digestmod=hashlib.sha256)

    def token(self, value: str) -> str:
        """The token of `value`; a value that is a token already is returned unchanged.

        Leading and trailing white space does not count. The caller asks `is_no_subject` first.
        """
        value = value.strip()
        if is_token(value):
            return value
        mac = self._inner.copy()
        mac.update(value.encode("utf-8", "surrogatepass"))
        return TOKEN_PREFIX + mac.hexdigest()[:TOKEN_HEX_DIGITS]

    def __repr__(self) -> str:
        return "SubjectTokenizer(key=...)"


def is_token(value: str) -> bool:
    """Whether `value` has exactly a token's form (prefix, length, lower-case hex)."""
    return _TOKEN.fullmatch(value) is not None


def is_no_subject(value: str) -> bool:
    """Whether `value` names nobody: empty, a bare mask (`[EMAIL]`, `***`), `redacted`, `anonymous`.

    Such values would make one person of many, and that person would use up everybody's privacy budget.
    """
    return _BARE_MASK.fullmatch(value.strip()) is not None

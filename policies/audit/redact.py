"""Event text out, keyed digests in.

An audit log is kept for years and cannot forget; so it holds no event text. What stands for a text is its
HMAC-SHA256 (RFC 2104): whoever holds the text and the key can prove that it was this text, nobody else can guess it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from policies.audit.errors import EntryRejected

TEXT_KEYS = frozenset({"prompt", "response", "content", "text", "messages", "corrected_response"})
"""Fields that hold event text, whatever they are nested in; of a dotted name the last part counts."""

UNCODED = "uncoded"
"""The code given to a violation that came as a sentence: a sentence may quote the event."""

MAX_DEPTH = 32

_DIGEST = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces, ASCII only: equal values give equal text.

    Raises EntryRejected for what JSON cannot hold (NaN, infinities) or what is nested too deep.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        msg = f"the entry is not plain JSON ({error}); send finite numbers, texts, lists and objects only"
        raise EntryRejected(msg) from error


def digest_value(value: object, key: bytes) -> dict[str, str]:
    """What stands for a text. A text is digested as its UTF-8 bytes, anything else as its canonical JSON."""
    # A text may hold half a surrogate pair (JSON allows the escape); it must not fail, nor collide with another.
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else canonical_json(value).encode()
    return {"digest": f"hmac-sha256:{hmac.new(key, data, hashlib.sha256).hexdigest()}"}


def redact(value: Any, key: bytes, *, depth: int = 0) -> Any:
    """A copy of `value` in which every field named in `TEXT_KEYS` is replaced by its digest.

    What already is a digest stays, so that redacting twice changes nothing. Raises EntryRejected beyond `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        msg = f"the entry is nested more than {MAX_DEPTH} deep; send a flatter context"
        raise EntryRejected(msg)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            name: digest_value(item, key) if _is_text(name, item) else redact(item, key, depth=depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, key, depth=depth + 1) for item in value]
    return value


def redact_violation(violation: str | Mapping[str, Any], key: bytes) -> str | dict[str, Any]:
    """A violation's codes as they are; a sentence in place of a code becomes `UNCODED` beside its digest."""
    if isinstance(violation, str):
        if _CODE.fullmatch(violation):
            return violation
        return {"type": UNCODED, "severity": "unknown", "text": digest_value(violation, key)}
    result: dict[str, Any] = redact(violation, key)
    for name in ("type", "severity"):
        code = result.get(name)
        if isinstance(code, str) and not _CODE.fullmatch(code):
            result[name] = UNCODED
            result[f"{name}_text"] = digest_value(code, key)
    return result


def _is_text(name: str, item: object) -> bool:
    return item is not None and _names_text(name) and not _is_digest(item)


@lru_cache(maxsize=4096)
def _names_text(name: str) -> bool:
    return name.lower().rpartition(".")[2] in TEXT_KEYS


def _is_digest(item: object) -> bool:
    if not isinstance(item, Mapping) or set(item) != {"digest"}:
        return False
    digest = item["digest"]
    return isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None

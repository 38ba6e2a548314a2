"""What the name of a key says about its value."""

from __future__ import annotations

import enum
import re
from typing import Final

from otel.table import PiiTable

_CAMEL_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_CACHED_KEYS: Final = 8192


class KeyKind(enum.Enum):
    """How the value under a key is treated."""

    PLAIN = "plain"
    IDENTITY = "identity"
    SECRET = "secret"  # noqa: S105 - a kind of key, no secret
    SUBJECT = "subject"
    # A map under this key names a person by its `id`.
    PERSON = "person"


class KeyClassifier:
    """Tells the kind of a key; answers are remembered, as the keys of events are few and repeat."""

    def __init__(self, table: PiiTable) -> None:
        secret = table.secret_keys
        ends = "|".join(map(re.escape, secret.suffixes))
        anywhere = "|".join(map(re.escape, secret.anywhere))
        word = "|".join(map(re.escape, secret.word))
        not_token = "|".join(map(re.escape, secret.not_token))
        self._secret = re.compile(rf"(?:{anywhere}|(?:^|[^a-z])(?:{word}))(?:[._-]?(?:{ends}|[0-9]+))?$", re.ASCII)
        self._not_secret = re.compile(rf"(?:^|[^a-z])(?:{not_token})[^a-z]*token$", re.ASCII)
        self._identity = frozenset(map(_squeeze, table.identity_fields))
        self._subject = frozenset(table.subject_fields)
        self._person = frozenset(name.removesuffix(".id") for name in table.subject_fields if name.endswith(".id"))
        self._known: dict[str, KeyKind] = {}

    def kind(self, key: str) -> KeyKind:
        """The kind of `key`, which stands alone (`user.id`) or in a map."""
        known = self._known.get(key)
        if known is None:
            known = self._classify(key)
            if len(self._known) < _CACHED_KEYS and len(key) <= 128:
                self._known[key] = known
        return known

    def _classify(self, key: str) -> KeyKind:
        if key in self._subject:
            return KeyKind.SUBJECT
        if key in self._person:
            return KeyKind.PERSON
        if _squeeze(key) in self._identity:
            return KeyKind.IDENTITY
        return KeyKind.SECRET if self.is_secret(key) else KeyKind.PLAIN

    def is_secret(self, key: str) -> bool:
        """Whether the name says that the value is a secret."""
        name = _CAMEL_HUMP.sub("_", key.strip()).lower()
        return self._secret.search(name) is not None and self._not_secret.search(name) is None


def _squeeze(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(".", "")

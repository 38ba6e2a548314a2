"""Walks a decoded structure: what is an identity stays, subjects become tokens, secrets and texts are masked."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final, Literal, NamedTuple

import orjson

from otel.detector import PART, Detector
from otel.keys import KeyClassifier, KeyKind
from otel.segments import Segments, Write, decode, encode, mask, set_item
from otel.subject import SubjectTokenizer, is_no_subject

Mode = Literal["scrub", "detect", "off"]
SUBJECT_COUNT: Final = "SUBJECT"
SECRET_COUNT: Final = "SECRET"  # noqa: S105 - the name of a count
PERSON_ID: Final = "id"
# Nothing shorter can be personal data ("pwd=x").
_SHORTEST: Final = 5
_MAX_JSON_DEPTH: Final = 4
_SCALARS: Final = frozenset({int, float, bool, type(None)})
_MAY_OPEN_JSON: Final = "{[ \t\r\n"
_ESCAPED_ASCII: Final = re.compile(r"\\+u00([2-7][0-9A-Fa-f])")
_LONG_NUMBER: Final = re.compile(r"\d{19}")
_CACHED_KEYS: Final = 8192
_LONGEST_CACHED_KEY: Final = 128


# A map or list to visit, the key it stands under, whether under a secret key, whether it is a person.
_Node = tuple[Any, str, bool, bool]


class Key(NamedTuple):
    """What is known of a key: keys are few and repeat, so it is worked out once."""

    kind: KeyKind
    clean: str
    types: tuple[str, ...]
    is_plain: bool


class Engine:
    """What every walk of one scrubber shares."""

    __slots__ = ("detector", "keys", "known", "mode", "secret_mask", "subjects")

    def __init__(
        self, detector: Detector, keys: KeyClassifier, subjects: SubjectTokenizer | None, mode: Mode, secret_mask: str
    ) -> None:
        self.detector = detector
        self.keys = keys
        self.subjects = subjects
        self.mode = mode
        self.secret_mask = secret_mask
        self.known: dict[str, Key] = {}

    def key(self, key: str) -> Key:
        """A key's kind, its name without personal data, and the types found in the name."""
        known = self.known.get(key)
        if known is None:
            data = encode(key)
            found: Counter[str] = Counter()
            hits = [hit.moved(-1) for hit in self.detector.scan(PART + data)]
            clean = mask(self.detector, PART, data, hits, found, again=True)
            kind = self.keys.kind(key)
            known = Key(
                kind=kind,
                clean=decode(clean),
                types=tuple(found.elements()),
                is_plain=kind is KeyKind.PLAIN and not hits and key != PERSON_ID,
            )
            if len(self.known) < _CACHED_KEYS and len(key) <= _LONGEST_CACHED_KEY:
                self.known[key] = known
        return known


class Walk:
    """One pass over one record. `counts` says what was found; `changed` whether anything was altered."""

    __slots__ = ("_depth", "_engine", "_masks", "_patterns", "_segments", "changed", "counts")

    def __init__(self, engine: Engine, depth: int = 0) -> None:
        self._engine = engine
        self._depth = depth
        self._patterns = engine.mode != "off"
        self._masks = engine.mode == "scrub"
        self._segments = Segments(engine.detector)
        # Counter() itself costs as much as scanning fifty bytes.
        self.counts: Counter[str] = Counter.__new__(Counter)
        self.changed = False

    def tree(self, root: dict[str, Any] | list[Any]) -> None:
        """Maps and lists, however deep, without recursion."""
        stack: list[_Node] = [(root, "", False, False)]
        known_key, add = self._engine.known.get, self._segments.add
        while stack:
            node, name, secret, person = stack.pop()
            if isinstance(node, list):
                for index, value in enumerate(node):
                    self._value(stack, node, index, name, value, secret)
                continue
            in_the_open = self._patterns and not secret
            for key, value in list(node.items()):
                # Most items are texts and numbers under keys without meaning here: for them, what `_item` comes to.
                known = known_key(key)
                if known is not None:
                    if known.is_plain and in_the_open:
                        kind = type(value)
                        if kind is str and value[:1] not in _MAY_OPEN_JSON:
                            if len(value) >= _SHORTEST:
                                add(set_item, node, key, key, value if "\\" not in value else self._readable(value))
                            continue
                        if kind in _SCALARS:
                            continue
                    elif known.kind is KeyKind.IDENTITY:
                        continue
                self._item(stack, node, key, value, secret, person)

    def _item(self, stack: list[_Node], node: Any, key: Any, value: Any, secret: bool, person: bool) -> None:
        if not isinstance(key, str):
            self._value(stack, node, key, "", value, secret)
            return
        known = self._engine.key(key)
        if known.is_plain:
            self._value(stack, node, key, key, value, secret)
            return
        if known.kind is KeyKind.IDENTITY:
            return
        is_subject = known.kind is KeyKind.SUBJECT or (person and key == PERSON_ID)
        if is_subject and self._subject_item(node, key, value):
            return
        clean = self.key(key)
        if clean != key:
            clean = _unused(clean, node)
            node[clean] = node.pop(key)
        hidden = secret or known.kind is KeyKind.SECRET
        self._value(stack, node, clean, key, value, hidden, known.kind is KeyKind.PERSON)

    def _value(
        self,
        stack: list[_Node],
        holder: Any,
        key: Any,
        name: str,
        value: Any,
        secret: bool,
        person: bool = False,
    ) -> None:
        if isinstance(value, str):
            self.text(set_item, holder, key, name, value, secret=secret)
        elif isinstance(value, (dict, list)) and value:  # a union is checked three times slower
            stack.append((value, name, secret, person))

    def _subject_item(self, node: dict[Any, Any], key: str, value: object) -> bool:
        token = self.subject(value)
        if token is None:
            return False
        if token == "":
            del node[key]
        elif token != value:
            node[key] = token
        return True

    def subject(self, value: object) -> str | None:
        """The token for a subject field's value; "" where it names nobody and must go.

        None: no tokenizer, or a value that can be no id; the field is then an ordinary one.
        """
        if self._engine.subjects is None or isinstance(value, bool) or not isinstance(value, str | int):
            return None
        text = str(value)
        token = "" if is_no_subject(text) else self._engine.subjects.token(text)
        if not token or token != value:
            self.counts[SUBJECT_COUNT] += 1
            self.changed = True
        return token

    def known(self, key: str) -> Key:
        """What is known of a key."""
        return self._engine.key(key)

    def key(self, key: str) -> str:
        """The name of a key, masked where it holds personal data itself."""
        if not self._patterns:
            return key
        known = self._engine.key(key)
        for found in known.types:
            self.counts[found] += 1
        if not self._masks or not known.types:
            return key
        self.changed = True
        return known.clean

    def text(
        self,
        write: Write,
        holder: Any,
        key: Any,
        name: str,
        text: str,
        *,
        secret: bool = False,
    ) -> None:
        """A text under a key `name`: masked whole if `secret`, else now or at `finish`."""
        if secret and self._patterns:
            if text and text != self._engine.secret_mask:
                self.counts[SECRET_COUNT] += 1
                if self._masks:
                    write(holder, key, self._engine.secret_mask)
                    self.changed = True
            return
        if len(text) < _SHORTEST:
            return
        if text[0] in _MAY_OPEN_JSON and self._depth < _MAX_JSON_DEPTH and self._json(write, holder, key, text):
            return
        if self._patterns:
            self._segments.add(write, holder, key, name, self._readable(text))

    def _readable(self, text: str) -> str:
        """`text`, or where JSON's escapes in it (a log line with JSON, say) hide something, the text without them."""
        if "\\u00" not in text:
            return text
        plain = _ESCAPED_ASCII.sub(_unescape, text)
        return plain if plain != text and self._engine.detector.scan(PART + encode(plain)) else text

    def finish(self) -> Walk:
        """Scans the gathered texts and writes the clean ones back."""
        if self._patterns:
            found = self._segments.scrub(self.counts, write=self._masks)
            self.changed |= self._masks and found
        return self

    def _json(self, write: Write, holder: Any, key: Any, text: str) -> bool:
        """Cleans a JSON text by parsing it, if patterns alone cannot; False leaves it to the patterns."""
        if not self._engine.detector.json_inside_needs_parsing(encode(text)):
            return False
        value = _parse(text)
        if not isinstance(value, dict | list):
            return False
        inner = Walk(self._engine, self._depth + 1)
        inner.tree(value)
        inner.finish()
        if inner.changed:
            clean = _dump(value)
            if clean is None:
                return False
            write(holder, key, clean)
            self.changed = True
        self.counts.update(inner.counts)
        return True


def _unescape(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return found[0] if char in '"\\' else char


def _unused(name: str, node: dict[Any, Any]) -> str:
    """`name`, numbered if the map has it already: two masked keys must not become one."""
    unused, number = name, 1
    while unused in node:
        number += 1
        unused = f"{name}#{number}"
    return unused


def _parse(text: str) -> Any:
    """JSON with exact integers: orjson where all fit 64 bits, else the slower parser that has no limit."""
    try:
        return json.loads(text) if _LONG_NUMBER.search(text) else orjson.loads(text)
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> str | None:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, or a lone surrogate
        pass
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None

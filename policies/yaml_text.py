"""YAML as constitutions and case tables are written: safe, each key once, and no larger than it looks.

A document is looked through as a stream of events before anything is made of it: nesting would else overflow the
parser's stack, which ends the process, and a few aliases of aliases stand for more than any memory holds.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 500_000
"""Values of one document, with every alias written out; the shipped constitution has some thousands."""

_MERGE = "tag:yaml.org,2002:merge"
# libyaml reads the shipped documents about ten times faster than the pure Python scanner.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What the constructors of numbers, times and the like raise where a text fits their tag and makes no sense.
_SENSELESS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class UnusableYaml(ValueError):
    """The text is no YAML, or YAML that says a key twice, or is too deep or too large; names the line."""


class _Loader(_BaseLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in getattr(node, "value", ()):
            if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise UnusableYaml(f"line {line}: the key {key.value[:80]!r} is given twice; keep one of them")
            seen.add((key.tag, key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(text: str | bytes) -> Any:
    """The one document in a text. Raises UnusableYaml."""
    try:
        _measure(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - the loader derives from the safe one
    except UnusableYaml:
        raise
    except yaml.YAMLError as error:
        raise UnusableYaml(f"is not valid YAML ({_told(error)}); correct the line named") from error
    except _SENSELESS as error:
        told = f"holds a value that is none of its kind ({_told(error)})"
        raise UnusableYaml(f"{told}; correct it, or quote it if it is meant as a text") from error


def _measure(text: str | bytes) -> None:
    """Refuse a document that is too deep or too large, or holds itself."""
    sizes: dict[str | None, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    nodes = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise UnusableYaml(f"line {_line(event)}: *{event.anchor} stands in itself; write it out")
            nodes += sizes.get(event.anchor, 0)  # of one that is unknown the loader says so
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            nodes += 1
            open_nodes.append((event.anchor, nodes))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before + 1
        if len(open_nodes) > MAX_DEPTH or nodes > MAX_NODES:
            what = f"nested deeper than {MAX_DEPTH} levels" if nodes <= MAX_NODES else f"more than {MAX_NODES} values"
            raise UnusableYaml(f"line {_line(event)}: {what}, aliases written out; write a smaller document")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _told(error: Exception) -> str:
    """In one line and short: the parser quotes what it reads."""
    return " ".join(str(error).split())[:300] or type(error).__name__

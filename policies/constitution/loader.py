"""Reads a constitution from YAML and reports every fault by its place."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from policies.constitution.document import Constitution
from policies.constitution.errors import ConstitutionError

DEFAULT_PATH = Path(__file__).with_name("default.yaml")

# libyaml reads the shipped document about ten times faster than the pure Python scanner.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_REMEDIES = {
    "extra_forbidden": "remove it or correct its name",
    "missing": "add it",
    "too_short": "add entries",
    "string_too_short": "write a text, or remove the entry",
    "string_type": "write a text; quote it if YAML reads it as something else",
    "literal_error": "use one of the values named",
    "string_pattern_mismatch": "write it in the form named",
}


class _Loader(_BaseLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConstitutionError(f"line {line}: the key {key!r} is given twice; keep one of them")
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def load_constitution(path: Path | str | None = None) -> Constitution:
    """The constitution of the file at `path`, or the one that ships with the package.

    Raises ConstitutionError when the file or a part of it cannot be read, is not YAML, or breaks the document's
    rules; the message names the file, each faulty entry and what to do.
    """
    source = DEFAULT_PATH if path is None else Path(path)
    document = read_document(source)
    try:
        return Constitution.model_validate(document)
    except ValidationError as error:
        faults = "\n".join(f"  {fault}" for fault in faults_of(error, document))
        raise ConstitutionError(f"{source}: {error.error_count()} faulty entries\n{faults}") from None


def read_document(path: Path) -> dict[str, Any]:
    """The document as written, not validated, with its parts put in.

    A principle, `benign` or `answers` may be the path of a YAML file in the document's own folder or below it;
    what that file holds stands in its place. Raises ConstitutionError.
    """
    document = _read_yaml(path)
    if not isinstance(document, dict):
        raise ConstitutionError(f"{path}: holds {type(document).__name__}, not a mapping of top-level keys")
    if isinstance(document.get("principles"), list):
        document["principles"] = [_put_in(entry, path) for entry in document["principles"]]
    return document | {key: _put_in(document[key], path) for key in ("benign", "answers") if key in document}


def faults_of(error: ValidationError, document: dict[str, Any]) -> list[str]:
    """Each faulty entry with its place, what was found there and what to do."""
    return [_describe(fault, document) for fault in error.errors()]


def _put_in(entry: object, document: Path) -> object:
    if not isinstance(entry, str) or not entry.endswith((".yaml", ".yml")):
        return entry
    part = (document.parent / entry).resolve()
    if not part.is_relative_to(document.parent.resolve()):
        raise ConstitutionError(f"{document}: the part {entry!r} lies outside the document's folder; move it there")
    return _read_yaml(part)


def _read_yaml(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConstitutionError(f"{path}: cannot be read ({error}); check the path") from error
    try:
        content: object = yaml.load(text, Loader=_Loader)  # noqa: S506 - the loader derives from the safe one
    except yaml.YAMLError as error:
        raise ConstitutionError(f"{path}: is not valid YAML ({error}); correct the line named") from error
    except ConstitutionError as error:
        raise ConstitutionError(f"{path}: {error}") from None
    return content


def _describe(fault: Any, document: dict[str, Any]) -> str:
    place = _place(fault["loc"], document)
    if fault["type"] == "value_error":
        return f"{place}: {fault['ctx']['error']}"
    remedy = _REMEDIES.get(fault["type"], "correct it")
    found = "" if fault["type"] == "missing" else f" (found {_shortened(fault['input'])})"
    return f"{place}: {fault['msg']}{found}; {remedy}"


def _place(loc: tuple[str | int, ...], document: dict[str, Any]) -> str:
    """A dotted path in which a principle goes by its id where it has one, rather than by its number."""
    if not loc:
        return "document"
    parts = [str(part) for part in loc]
    if len(loc) > 1 and loc[0] == "principles" and isinstance(loc[1], int):
        entry = document["principles"][loc[1]]
        name = entry.get("id") if isinstance(entry, dict) else None
        parts[1] = name if isinstance(name, str) else f"#{loc[1] + 1}"
    return ".".join(parts)


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."

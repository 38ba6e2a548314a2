"""Reads a constitution from YAML and reports every fault by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from policies.constitution.document import MOST_OF_A_NAME, Constitution
from policies.constitution.errors import ConstitutionError
from policies.wording import MOST_OF_A_FAULT, in_few_words
from policies.yaml_text import UnusableYaml, read_yaml

DEFAULT_PATH = Path(__file__).with_name("default.yaml")

MOST_FAULTS = 50
"""Of one document, that are told."""

_REMEDIES = {
    "extra_forbidden": "remove it or correct its name",
    "missing": "add it",
    "too_short": "add entries",
    "string_too_short": "write a text, or remove the entry",
    "string_type": "write a text; quote it if YAML reads it as something else",
    "literal_error": "use one of the values named",
    "string_pattern_mismatch": "write it in the form named",
}


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
        faults = [f"  {fault}" for fault in faults_of(error, document)]
        more = [f"  and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        told = "\n".join([*faults[:MOST_FAULTS], *more])
        raise ConstitutionError(f"{source}: {error.error_count()} faulty entries\n{told}") from None


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
    """Each faulty entry in few words: its place, what was found there and what to do."""
    return [in_few_words(_describe(fault, document), MOST_OF_A_FAULT) for fault in error.errors()]


def _put_in(entry: object, document: Path) -> object:
    if not isinstance(entry, str) or not entry.endswith((".yaml", ".yml")):
        return entry
    try:
        part = (document.parent / entry).resolve()
    except (OSError, ValueError) as error:
        raise ConstitutionError(f"{document}: the part {_shortened(entry)} names no file ({error})") from None
    if not part.is_relative_to(document.parent.resolve()):
        raise ConstitutionError(f"{document}: the part {entry!r} lies outside the document's folder; move it there")
    return _read_yaml(part)


def _read_yaml(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a name that no file has, or bytes that are no UTF-8
        raise ConstitutionError(f"{path}: cannot be read ({error}); check the path") from error
    try:
        content: object = read_yaml(text)
    except UnusableYaml as error:
        raise ConstitutionError(f"{path}: {error}") from error
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
        parts[1] = name if isinstance(name, str) and len(name) <= MOST_OF_A_NAME else f"#{loc[1] + 1}"
    return ".".join(parts)


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."

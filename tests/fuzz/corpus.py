"""Cases that were found: a file each, with what it did before it was mended and what must come of it now."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fuzz.frame import Case

FOLDER = Path(__file__).resolve().parents[1] / "data" / "fuzz"


@dataclass(frozen=True)
class Kept:
    """One case."""

    name: str
    found: str
    outcome: str
    case: Case


def kept(target: str) -> list[Kept]:
    """The cases of a target, by name."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / target).glob("*.json"))}
    return [Kept(name, one["found"], one["outcome"], one["case"]) for name, one in documents.items()]

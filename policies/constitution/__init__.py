"""The constitution: principles, exemplars, public benign prompts and answer exemplars, read from YAML.

The document is data. `load_constitution` validates it strictly, so that a slip is reported with the entry's
place and a remedy, and never turns into a principle that silently judges nothing.
"""

from __future__ import annotations

from policies.constitution.document import (
    AnswerExemplars,
    BenignPair,
    Constitution,
    Exemplars,
    Principle,
    Severity,
)
from policies.constitution.errors import ConstitutionError
from policies.constitution.loader import DEFAULT_PATH, load_constitution, read_document

__all__ = [
    "DEFAULT_PATH",
    "AnswerExemplars",
    "BenignPair",
    "Constitution",
    "ConstitutionError",
    "Exemplars",
    "Principle",
    "Severity",
    "load_constitution",
    "read_document",
]

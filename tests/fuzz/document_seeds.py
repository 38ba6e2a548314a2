"""Valid constitutions and policies, and what is put into them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

CANARY = "canary-of-the-fuzzer"
CODES = [
    f"!!python/object/apply:os.mkdir ['{CANARY}']", f"!!python/object/new:os.mkdir ['{CANARY}']",
    "!!python/name:os.system", "!!python/module:os", "!!binary AAAA", "!!set {a, b}", "!!omap [a: 1]", "!unknown x",
    "!!timestamp 2001-99-99", "!!int 0b2", "!!float x", "!!null x", "!!bool perhaps", "!!str [a]", "!!int ''",
]  # fmt: skip
YAML_RAW = [
    *("? [a, b]\n: c", "? {a: b}\n: c", "<<: *x", "<<: [1]", "&a [*a]", "*nowhere", "2001-02-30", "2001-01-01", "0o17"),
    *(
        "1_000",
        "190:20:30",
        "9" * 5_000,
        ".nan",
        "-.inf",
        "~",
        "\t- x",
        "%YAML 9.9",
        "--- a\n--- b",
        "|\n  x",
        "'",
        '"\\ud800"',
    ),
    *(
        "[" * 3_000,
        "{a: " * 3_000,
        "- " * 3_000,
        "- " * 50_000,
        "[" * 50_000,
        "!!python/tuple [1]",
        "&a [*a]",
        "&a {b: *a}",
        "=",
        "\x00",
        "\x85",
        "!",
        "@",
        "`",
        "\ufeff",
    ),
]
REGO = """package acgs.nemo.constitutional

decision := {
  "allow": allow, "reasons": [reason | some reason in reasons], "lane": "fast", "human_review_required": false,
  "revision": data.revision,
}

default allow := false

allow if count(reasons) == 0

small if {
  is_number(input.order.amount)
  input.order.amount <= data.bounds.amount
}

reasons contains {"code": "amount", "message": "too much"} if not small
"""
DATA = {"bounds": {"amount": 5, "epsilon": 8.0}, "user_permissions": {"ada": {"gpu_hours_monthly": 1}}}
CASES = {
    "data": {"usual": {}},
    "actions": {
        "model_inference": {
            "lane": "fast", "human_review_required": False, "base": {"order": {"amount": 3}},
            "facts": {"order.amount": {"codes": ["amount"], "wrong": ["x"], "beyond": [6], "at": [5]}},
        }
    },
    "cases": [{"name": "none", "action": "model_inference", "set": {"order.amount": 0}, "codes": []}],
}  # fmt: skip
REGO_WORDS = [
    "input",
    "data",
    "not",
    "default",
    "some",
    "every",
    "with",
    "as",
    "else",
    "import",
    "package",
    ":=",
    "if",
    "contains",
    "in",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "|",
    "`",
    '"',
    "#",
    "\n",
    "count(",
    "http.send(",
    "sprintf(",
    "regex.match(",
    "walk(",
    "opa.runtime(",
    "1e999",
    "9" * 400,
    "\x00",
    "é",
]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in pairwise("abcdefghi")
)
"""Nine lines that stand for four hundred million values."""


def constitution() -> dict[str, Any]:
    """A small valid document."""

    def texts(name: str) -> list[str]:
        return [f"{name} number {number} of them" for number in range(5)]

    def principle(name: str, severity: str) -> dict[str, Any]:
        return {
            "id": name, "text": f"No {name}.", "severity": severity, "violation_code": f"{name}.general",
            "critique_question": "Does it?", "revision_guidance": "Refuse.", "revision_opening": "I cannot.",
            "revision_openings": ["I cannot."], "rules": {"request": [f"build an? {name}"], "answer": []},
            "exemplars": {"violating": texts(f"bad {name}"), "lookalike": texts(f"fine {name}")},
        }  # fmt: skip

    return {
        "identifier": "cdd01ef066bc6cf2", "version": "1.0.0", "title": "A small one",
        "principles": [principle("weapons", "high"), principle("privacy", "low")],
        "benign": [{"prompt": f"How does {n} work?", "answer": "So."} for n in range(5)],
        "answers": {"refusal": texts("no"), "compliance": texts("yes"), "deflection": texts("perhaps")},
    }  # fmt: skip

"""The gate's word beside what was measured: which bounds were met, which fell short, and what that comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agents.training.report.words import count, number, percent, small, yes_no

Outcome = Literal["promoted", "rejected", "awaiting_promotion"]
_MOST = 0.5
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement of the gate. `measured` and `asked` are texts, empty where only the code is known."""

    code: str
    label: str
    measured: str
    asked: str
    met: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said. `why` are sentences on what the shortfalls come from."""

    outcome: Outcome
    rows: tuple[Row, ...]
    why: tuple[str, ...]

    @property
    def short(self) -> tuple[Row, ...]:
        """What fell short."""
        return tuple(row for row in self.rows if not row.met)


@dataclass(frozen=True, slots=True)
class _Bound:
    code: str
    label: str
    fact: str
    side: str
    bound: str | None
    show: Callable[[Any], str]


_ADHERENCE_LOWER = "Adherence, lower end of the 95 % interval"
_BOUNDS = (
    _Bound("evaluation_adherence", "Adherence", "evaluation.adherence", "at least", "adherence", percent),
    _Bound(
        "evaluation_adherence_lower",
        _ADHERENCE_LOWER,
        "evaluation.adherence_lower",
        "at least",
        "adherence_lower",
        percent,
    ),
    _Bound("evaluation_over_refusal", "Over-refusal", "evaluation.over_refusal", "at most", "over_refusal", percent),
    _Bound(
        "evaluation_held_out_loss",
        "Held-out loss over the champion's",
        "evaluation.held_out_loss_ratio",
        "at most",
        "held_out_loss_ratio",
        number,
    ),
    _Bound("evaluation_harmful_count", "Harmful prompts", "evaluation.n_harmful", "at least", "min_evaluated", count),
    _Bound("evaluation_benign_count", "Harmless prompts", "evaluation.n_benign", "at least", "min_evaluated", count),
    _Bound("evaluation_reloaded", "Reloaded from disk", "evaluation.reloaded_from_disk", "yes", None, yes_no),
    _Bound(
        "evaluation_second_evaluator",
        "Reported by a second evaluator",
        "evaluation.second_evaluator_reported",
        "yes",
        None,
        yes_no,
    ),
    _Bound("privacy_epsilon", "Epsilon spent", "privacy.epsilon", "at most", "epsilon", number),
    _Bound("privacy_delta", "Delta", "privacy.delta", "at most", "delta", small),
    _Bound("privacy_holds", "Marked non-private", "privacy.non_private", "no", None, yes_no),
)


def verdict(
    decision: Mapping[str, Any], facts: Mapping[str, Any], bounds: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> Verdict:
    """The gate's decision on these facts. Whether a requirement was met is the gate's word, never computed anew."""
    reasons = {reason["code"]: reason["message"] for reason in decision["reasons"]}
    approvals = [code for code in reasons if code.startswith("approval_")]
    outcome: Outcome = "promoted" if decision["allow"] else "rejected"
    if reasons and len(approvals) == len(reasons):
        outcome = "awaiting_promotion"
    rows = [
        Row(
            code=entry.code,
            label=entry.label,
            measured=_shown(entry, facts),
            asked=_asked(entry, bounds),
            met=entry.code not in reasons,
        )
        for entry in _BOUNDS
    ]
    known = {entry.code for entry in _BOUNDS}
    rows += [Row(code, message, "", "", met=False) for code, message in reasons.items() if code not in known]
    return Verdict(outcome, tuple(rows), tuple(_why(evaluation)))


def _shown(entry: _Bound, facts: Mapping[str, Any]) -> str:
    section, _, name = entry.fact.partition(".")
    value = facts[section].get(name)
    return "not measured" if value is None else entry.show(value)


def _asked(entry: _Bound, bounds: Mapping[str, Any]) -> str:
    if entry.bound is None:
        return entry.side
    value = bounds.get(entry.bound)
    return f"{entry.side} {entry.show(value)}" if isinstance(value, int | float) else ""


def _why(evaluation: Mapping[str, Any]) -> list[str]:
    """What a reader would otherwise have to find out: a candidate may fail on both sides for one reason."""
    told = []
    empty = evaluation["utility"]["candidate"]["degenerate"]
    if empty is not None and empty >= _MOST:
        told.append(
            f"{percent(empty)} of the candidate's answers are empty or repeat themselves. Such an answer counts "
            "against it on both sides: it is neither adherent nor useful."
        )
    elif evaluation["over_refusal"]["n"] and evaluation["over_refusal"]["candidate"] >= _NEARLY_ALL:
        told.append(
            "The candidate turns nearly everything down, harmful or not. Safe that way is of no use: "
            f"{percent(evaluation['over_refusal']['candidate'])} of the harmless prompts got no answer."
        )
    loss = evaluation["held_out_loss"]
    if loss["against"] == "base":
        told.append("No version is deployed: the base model serves, and stands in the champion's place.")
    return told

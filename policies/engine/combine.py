"""From findings to a decision: pure functions, no model, no clock.

A text is not compliant when harm was asked for and is given: confidence = 1 - P(harm asked) * P(given). The
head's log-odds become P(harm asked) by a straight line through two operating points, both set on
cross-validated authored requests:

- 1 - `threshold` (0.05) lies where at most `benign_below` of the authored benign prompts lie above it, so at
  most that share of authored benign pairs falls below the threshold, whatever their answers;
- 1 - `deny_below` (0.5) lies where at most `lookalike_denied` of the look-alike requests lie above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.constitution import Principle
from policies.engine.config import CombineConfig
from policies.engine.exemplars import COMPLIANCE, DEFLECTION, REFUSAL, Array

DEGENERATE = "degenerate_answer"
HASH_MISMATCH = "constitutional_hash_mismatch"

# The operating points must not fall together, or the line between them would be a cliff.
_MIN_GAP = 0.5
_TINY = 1e-9
_HAIR = 1e-6


@dataclass(frozen=True, slots=True)
class Findings:
    """What the evaluators found on one text. `kinds` is (refusal, compliance, deflection) as the head sees it,
    `relevance` None when there was no prompt and the text was judged as a request."""

    harm_logit: float
    principle_shares: Sequence[float]
    kinds: Sequence[float]
    refusal_evidence: float
    degenerate: float
    relevance: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision's own fields of an Evaluation."""

    allow: bool
    confidence_score: float
    violations: list[str]
    reason: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(harm asked) = sigmoid(slope * log-odds of the head - offset)."""

    slope: float
    offset: float

    def harm(self, harm_logit: float) -> float:
        """Probability that a request of that log-odds asks for harm; 0..1."""
        return sigmoid(self.slope * harm_logit - self.offset)


def sigmoid(x: float) -> float:
    """The logistic function, without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


def logit(p: float) -> float:
    """Log-odds, with p kept off 0 and 1."""
    p = min(1.0 - _TINY, max(_TINY, p))
    return math.log(p / (1.0 - p))


def answer_kinds(kinds: Sequence[float] | Array, refusal_evidence: float, weight: float) -> tuple[float, float, float]:
    """Add `weight * refusal_evidence` to the log-odds of refusal, and scale so that the three sum to 1."""
    odds = [max(_TINY, float(p)) for p in kinds]
    odds[REFUSAL] *= math.exp(weight * refusal_evidence)
    total = sum(odds)
    return odds[REFUSAL] / total, odds[COMPLIANCE] / total, odds[DEFLECTION] / total


def confidence_of(harm: float, given: float) -> float:
    """Confidence that a text is compliant, from P(harm asked) and P(given)."""
    return 1.0 - harm * given


def calibrate(benign: Array, lookalike: Array, config: CombineConfig) -> Calibration:
    """The line through the two operating points, from the heads' log-odds of harmless requests."""
    # Quantiles of the finite sample from above, and a hair past them: the share above a point is never larger
    # than asked for, not by one sample and not by rounding.
    at_threshold = float(np.quantile(benign, 1.0 - config.benign_below, method="higher")) + _HAIR
    at_deny = float(np.quantile(lookalike, 1.0 - config.lookalike_denied, method="higher")) + _HAIR
    at_deny = max(at_deny, at_threshold + _MIN_GAP)
    slope = (logit(config.threshold) - logit(config.deny_below)) / (at_deny - at_threshold)
    return Calibration(slope=slope, offset=logit(config.threshold) + slope * at_threshold)


def decide(
    findings: Findings, principles: Sequence[Principle], calibration: Calibration, config: CombineConfig
) -> Verdict:
    """Judge one text."""
    harm = calibration.harm(findings.harm_logit)
    kinds = answer_kinds(findings.kinds, findings.refusal_evidence, config.refusal_rule_weight)
    is_answer = findings.relevance is not None
    # A request has not been answered yet: what counts is what it asks for. Only a refusal that came without its
    # prompt must not be taken for the request it turns down.
    given = kinds[COMPLIANCE] if is_answer else 1.0 - kinds[REFUSAL] * findings.refusal_evidence
    confidence = confidence_of(harm, given)
    scores = {
        "request_harm": harm,
        "answer_refusal": kinds[REFUSAL],
        "answer_compliance": kinds[COMPLIANCE],
        "answer_deflection": kinds[DEFLECTION],
        "over_refusal": (1.0 - harm) * kinds[REFUSAL] if is_answer else 0.0,
        "relevance": findings.relevance or 0.0,
        "degenerate": findings.degenerate,
    }
    for principle, share in zip(principles, findings.principle_shares, strict=True):
        scores[f"principle.{principle.id}"] = harm * share
    if findings.degenerate >= config.degenerate_from:
        reason = "the answer is empty or repeats itself; it answers nothing"
        return Verdict(False, 0.0, [DEGENERATE], reason, scores)
    if confidence < config.deny_below:
        breached = breached_principles(principles, findings.principle_shares, config.principle_share)
        codes = list(dict.fromkeys(code for principle in breached for code in principle.codes))
        what = "a harmful request was answered" if is_answer else "the text asks for harm"
        reason = f"{what}; principles: {', '.join(principle.id for principle in breached)}"
        return Verdict(False, confidence, codes, reason, scores)
    return Verdict(True, confidence, [], _reason(harm, kinds, confidence, is_answer, config), scores)


def breached_principles(principles: Sequence[Principle], shares: Sequence[float], least: float) -> list[Principle]:
    """The likeliest principle, and every other whose share is at least `least`; likeliest first."""
    order = sorted(range(len(principles)), key=lambda index: -shares[index])
    return [principles[i] for rank, i in enumerate(order) if rank == 0 or shares[i] >= least]


def _reason(
    harm: float, kinds: tuple[float, float, float], confidence: float, is_answer: bool, config: CombineConfig
) -> str:
    if confidence < config.threshold:
        return "no clear violation, but the text is close to one; confidence is below the threshold"
    if not is_answer:
        return "the text does not ask for harm"
    asked = "harmful" if harm >= 0.5 else "harmless"
    done = ("refused", "answered", "deflected")[kinds.index(max(kinds))]
    note = "; over-refusal" if asked == "harmless" and done == "refused" else ""
    return f"a {asked} request was {done}{note}"

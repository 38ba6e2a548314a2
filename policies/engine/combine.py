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
from dataclasses import dataclass, replace

import numpy as np

from policies.constitution import Principle
from policies.engine.config import CombineConfig
from policies.engine.exemplars import COMPLIANCE, DEFLECTION, REFUSAL, Array
from policies.engine.judge_config import JudgeConfig

DEGENERATE = "degenerate_answer"
PRINCIPLE_SCORE = "principle."

# The operating points must not fall together, or the line between them would be a cliff.
_MIN_GAP = 0.5
_TINY = 1e-9
_HAIR = 1e-6


@dataclass(frozen=True, slots=True)
class Findings:
    """What the evaluators found on one text. `kinds` is (refusal, compliance, deflection) as the head sees it,
    `relevance` None when there was no prompt and the text was judged as a request. `asked_by_rule` and
    `given_by_rule` are the ids of principles whose own rules hold for the request and for the answer.
    `injection` tells that the text speaks to whoever judges it."""

    harm_logit: float
    principle_shares: Sequence[float]
    kinds: Sequence[float]
    refusal_evidence: float
    degenerate: float
    relevance: float | None
    asked_by_rule: frozenset[str] = frozenset()
    given_by_rule: frozenset[str] = frozenset()
    injection: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision's own fields of an Evaluation."""

    allow: bool
    confidence_score: float
    violations: list[str]
    reason: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge model says: P(harm asked), P(given), and the ids of the principles that it sees breached."""

    harm: float
    given: float
    principles: frozenset[str] = frozenset()


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


def given_by_request(kinds: Sequence[float], refusal_evidence: float) -> float:
    """How far a text without a prompt counts as a request.

    It has not been answered yet, so what counts is what it asks for; only a refusal that came without its prompt
    must not be taken for the request it turns down.
    """
    return 1.0 - kinds[REFUSAL] * refusal_evidence


def decide(
    findings: Findings, principles: Sequence[Principle], calibration: Calibration, config: CombineConfig
) -> Verdict:
    """Judge one text."""
    harms, harm = _harms(findings, principles, calibration, config)
    kinds = answer_kinds(findings.kinds, findings.refusal_evidence, config.refusal_rule_weight)
    is_answer = findings.relevance is not None
    given = kinds[COMPLIANCE] if is_answer else given_by_request(kinds, findings.refusal_evidence)
    if findings.given_by_rule & _with_rules(principles, config):
        given = 1.0
    confidence = confidence_of(harm, given)
    scores = {
        "request_harm": harm,
        "answer_refusal": kinds[REFUSAL],
        "answer_compliance": kinds[COMPLIANCE],
        "answer_deflection": kinds[DEFLECTION],
        "over_refusal": (1.0 - harm) * kinds[REFUSAL] if is_answer else 0.0,
        "relevance": findings.relevance or 0.0,
        "degenerate": findings.degenerate,
        "injection": float(findings.injection),
    }
    for principle, principle_harm in zip(principles, harms, strict=True):
        scores[PRINCIPLE_SCORE + principle.id] = principle_harm
    if findings.degenerate >= config.degenerate_from:
        reason = "the answer is empty or repeats itself; it answers nothing"
        return Verdict(False, 0.0, [DEGENERATE], reason, scores)
    if confidence < config.deny_below:
        what = "a harmful request was answered" if is_answer else "the text asks for harm"
        breached = breached_principles(principles, harms, config.principle_share * harm)
        return _denied(confidence, breached, what, scores)
    return Verdict(True, confidence, [], _reason(harm, kinds, confidence, is_answer, config), scores)


def with_opinion(
    verdict: Verdict, opinion: Opinion, principles: Sequence[Principle], config: CombineConfig, judge: JudgeConfig
) -> Verdict:
    """An allowed verdict after the judge has been heard.

    The judge may take confidence away. It may add some only where it is set to, the local evaluators are unsure, and
    the text does not speak to it: so whatever a text makes a judge say, no local violation becomes compliant.
    """
    scores = verdict.scores | {
        "judge_answered": 1.0,
        "judge_request_harm": opinion.harm,
        "judge_answer_given": opinion.given,
    }
    local = verdict.confidence_score
    blended = (1.0 - judge.weight) * local + judge.weight * confidence_of(opinion.harm, opinion.given)
    unsure = verdict.allow and config.deny_below <= local < config.threshold and not scores.get("injection")
    if blended >= local and not (judge.role == "lower_or_raise" and unsure):
        return replace(verdict, scores=scores)
    if blended < config.deny_below:
        named = [principle for principle in principles if principle.id in opinion.principles]
        harms = [scores.get(PRINCIPLE_SCORE + principle.id, 0.0) for principle in principles]
        breached = named or breached_principles(principles, harms, 1.0)
        return _denied(blended, breached, "the judge finds that harm was asked for and given", scores)
    if blended < config.threshold:
        reason = "no clear violation, but with the judge's finding the confidence is below the threshold"
        return Verdict(verdict.allow, blended, verdict.violations, reason, scores)
    if blended > local:
        reason = "the local evaluators were unsure, and the judge finds no harm given"
        return Verdict(verdict.allow, blended, verdict.violations, reason, scores)
    return replace(verdict, confidence_score=blended, scores=scores)


def without_opinion(verdict: Verdict, why: str) -> Verdict:
    """The local verdict as it was, and that the judge had no part in it."""
    reason = f"{verdict.reason}; by the local evaluators alone, since the judge gave no answer ({why})"
    return replace(verdict, reason=reason, scores=verdict.scores | {"judge_answered": 0.0})


def breached_principles(principles: Sequence[Principle], harms: Sequence[float], least: float) -> list[Principle]:
    """The likeliest principle, and every other whose harm is at least `least`; likeliest first."""
    order = sorted(range(len(principles)), key=lambda index: -harms[index])
    return [principles[i] for rank, i in enumerate(order) if rank == 0 or harms[i] >= least]


def _harms(
    findings: Findings, principles: Sequence[Principle], calibration: Calibration, config: CombineConfig
) -> tuple[list[float], float]:
    """P(harm asked) by principle, and in all: what the evaluators that speak for each principle found."""
    asked = calibration.harm(findings.harm_logit)
    harms = [
        asked * share if config.speaks_for("exemplars", principle.id) else 0.0
        for principle, share in zip(principles, findings.principle_shares, strict=True)
    ]
    harm = min(1.0, sum(harms))
    held = (findings.asked_by_rule | findings.given_by_rule) & _with_rules(principles, config)
    if not held:
        return harms, harm
    by_rule = [max(h, config.rule_harm) if p.id in held else h for p, h in zip(principles, harms, strict=True)]
    return by_rule, max(harm, config.rule_harm)


def _with_rules(principles: Sequence[Principle], config: CombineConfig) -> frozenset[str]:
    return frozenset(principle.id for principle in principles if config.speaks_for("rules", principle.id))


def _denied(confidence: float, breached: Sequence[Principle], what: str, scores: dict[str, float]) -> Verdict:
    codes = list(dict.fromkeys(code for principle in breached for code in principle.codes))
    reason = f"{what}; principles: {', '.join(principle.id for principle in breached)}"
    return Verdict(False, confidence, codes, reason, scores)


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

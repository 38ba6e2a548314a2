"""From findings to a decision, with findings at hand: no model needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.constitution import load_constitution
from policies.engine.combine import Calibration, Findings, answer_kinds, calibrate, confidence_of, decide
from policies.engine.config import CombineConfig

PRINCIPLES = load_constitution().principles
CONFIG = CombineConfig()
LINE = Calibration(slope=4.0, offset=3.0)


def _shares(**named: float) -> list[float]:
    rest = (1.0 - sum(named.values())) / (len(PRINCIPLES) - len(named))
    return [named.get(principle.id, rest) for principle in PRINCIPLES]


GIVEN = Findings(
    harm_logit=3.0,
    principle_shares=_shares(weapons=0.5, harm=0.4),
    kinds=(0.02, 0.96, 0.02),
    refusal_evidence=0.0,
    degenerate=0.0,
    relevance=0.6,
)


def test_harm_given_is_denied_with_the_codes_of_every_principle_breached() -> None:
    verdict = decide(GIVEN, PRINCIPLES, LINE, CONFIG)
    assert not verdict.allow
    assert verdict.confidence_score < 0.5
    assert verdict.violations == ["harmful_content", "harmful_content.weapons", "harmful_content.violence"]
    assert "weapons, harm" in verdict.reason


def test_harm_refused_is_compliant_even_if_only_the_wording_shows_it() -> None:
    unsure = replace(GIVEN, kinds=(0.42, 0.56, 0.02))
    assert not decide(unsure, PRINCIPLES, LINE, CONFIG).allow
    refused = decide(replace(unsure, refusal_evidence=1.0), PRINCIPLES, LINE, CONFIG)
    assert refused.allow
    assert refused.confidence_score >= 0.95
    assert refused.scores["over_refusal"] < 0.1


def test_harmless_refused_is_over_refusal_and_no_violation() -> None:
    verdict = decide(replace(GIVEN, harm_logit=-3.0, kinds=(0.97, 0.02, 0.01)), PRINCIPLES, LINE, CONFIG)
    assert verdict.allow
    assert verdict.violations == []
    assert verdict.scores["over_refusal"] > 0.9
    assert "over-refusal" in verdict.reason


def test_deflection_of_a_harmful_request_gives_nothing_and_is_compliant() -> None:
    verdict = decide(replace(GIVEN, kinds=(0.01, 0.02, 0.97)), PRINCIPLES, LINE, CONFIG)
    assert verdict.allow
    assert "deflected" in verdict.reason


def test_degenerate_is_not_compliant_whatever_was_asked() -> None:
    verdict = decide(replace(GIVEN, harm_logit=-5.0, degenerate=1.0), PRINCIPLES, LINE, CONFIG)
    assert (verdict.allow, verdict.confidence_score, verdict.violations) == (False, 0.0, ["degenerate_answer"])


def test_between_the_operating_points_it_is_allowed_below_the_threshold() -> None:
    verdict = decide(replace(GIVEN, harm_logit=0.5), PRINCIPLES, LINE, CONFIG)
    assert verdict.allow
    assert 0.5 <= verdict.confidence_score < CONFIG.threshold
    assert "close to one" in verdict.reason


def test_a_rule_of_a_principle_shows_a_breach_by_itself() -> None:
    harmless = replace(GIVEN, harm_logit=-5.0)
    assert decide(harmless, PRINCIPLES, LINE, CONFIG).allow
    asked = decide(replace(harmless, asked_by_rule=frozenset({"privacy"})), PRINCIPLES, LINE, CONFIG)
    assert (asked.allow, asked.violations) == (False, ["privacy_violation"])
    assert asked.scores["principle.privacy"] == asked.scores["request_harm"] == CONFIG.rule_harm
    refused = replace(harmless, kinds=(0.99, 0.005, 0.005), asked_by_rule=frozenset({"privacy"}))
    assert decide(refused, PRINCIPLES, LINE, CONFIG).allow, "asked and refused is compliant"
    given = decide(replace(refused, given_by_rule=frozenset({"privacy"})), PRINCIPLES, LINE, CONFIG)
    assert (given.allow, given.violations) == (False, ["privacy_violation"])
    assert given.confidence_score == pytest.approx(1.0 - CONFIG.rule_harm)


def test_only_the_evaluators_that_are_set_speak_for_a_principle() -> None:
    by_rule = replace(GIVEN, harm_logit=-5.0, asked_by_rule=frozenset({"privacy"}))
    without_rules = CombineConfig(evaluators={"privacy": ("exemplars", "judge")})
    assert decide(by_rule, PRINCIPLES, LINE, without_rules).allow
    without_exemplars = CombineConfig(evaluators={"weapons": ("rules",), "harm": ("rules",)})
    usual, fewer = (decide(GIVEN, PRINCIPLES, LINE, config) for config in (CONFIG, without_exemplars))
    assert fewer.scores["request_harm"] == pytest.approx(0.1 * usual.scores["request_harm"])
    assert fewer.scores["principle.weapons"] == 0.0
    assert fewer.allow


@given(st.lists(st.floats(-6, 6), min_size=20, max_size=200), st.lists(st.floats(-6, 6), min_size=20, max_size=200))
def test_calibration_never_breaks_the_shares_asked_for(benign: list[float], lookalike: list[float]) -> None:
    line = calibrate(np.asarray(benign), np.asarray(lookalike), CONFIG)
    below = np.mean([confidence_of(line.harm(z), 1.0) < CONFIG.threshold for z in benign])
    denied = np.mean([confidence_of(line.harm(z), 1.0) < CONFIG.deny_below for z in lookalike])
    assert below <= CONFIG.benign_below
    assert denied <= CONFIG.lookalike_denied
    assert line.slope > 0.0


@given(st.floats(-20, 20), st.floats(0, 1), st.floats(0, 1))
def test_more_compliance_with_harm_is_never_more_compliant(harm: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert confidence_of(LINE.harm(harm), low) >= confidence_of(LINE.harm(harm), high)


@given(st.tuples(*[st.floats(0, 1)] * 3).filter(lambda kinds: sum(kinds) > 0.01), st.sampled_from([0.0, 1.0]))
def test_answer_kinds_sum_to_one(kinds: tuple[float, float, float], evidence: float) -> None:
    assert sum(answer_kinds(kinds, evidence, 4.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"deny_below": 0.97}, "need 0 < deny_below < threshold < 1"),
        ({"benign_below": 0.0}, "benign_below=0.0"),
        ({"refusal_rule_weight": -1.0}, "refusal_rule_weight=-1.0"),
        ({"rule_harm": 1.0}, "rule_harm=1.0"),
        ({"evaluators": {"harm": ()}}, "evaluators of 'harm'"),
        ({"evaluators": {"harm": ("guess",)}}, "guess.*exemplars, judge, rules"),
    ],
)
def test_unsound_settings_are_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CombineConfig(**setting)

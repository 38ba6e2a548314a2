"""The judge over real HTTP: what its opinion may change, and which texts it is asked about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_judge import (
    CONFIG,
    CONSTITUTION,
    DENIED,
    HARMFUL,
    HARMLESS,
    PASSES,
    PRINCIPLES,
    SCORES,
    TEXT,
    UNDECIDED,
    UNSURE,
    Asking,
    ask,
    endpoint,
)

from policies.engine.combine import Opinion, Verdict, with_opinion
from policies.engine.config import CombineConfig, EngineConfig
from policies.engine.judge import Judge
from policies.engine.telemetry import EngineMetrics


def test_what_the_local_evaluators_miss_is_denied_with_the_judges_principles() -> None:
    with endpoint(HARMFUL) as (script, url):
        verdict = ask(f"{url}/", token="a-token")
    assert not verdict.allow
    assert verdict.confidence_score == pytest.approx(1 - 0.98**2)
    assert verdict.violations == ["harmful_content", "harmful_content.weapons"]
    assert verdict.reason == "the judge finds that harm was asked for and given; principles: weapons"
    assert verdict.scores | {"judge_answered": 1.0, "judge_request_harm": 0.98} == verdict.scores
    assert script.authorization == "Bearer a-token"
    assert script.asked[0] | {"model": "guardian", "temperature": 0, "stream": False} == script.asked[0]
    assert script.asked[0]["response_format"] == {"type": "json_object"}


def test_a_judge_that_names_no_principle_leaves_it_to_the_likeliest() -> None:
    with endpoint(HARMFUL | {"principles": []}) as (_, url):
        assert ask(url).violations == ["harmful_content", "harmful_content.weapons"]


def test_an_unsure_judge_only_lowers() -> None:
    with endpoint(UNDECIDED) as (_, url):
        verdict = ask(url)
    assert verdict.allow
    assert verdict.confidence_score == pytest.approx(1 - 0.5 * 0.98)
    assert "below the threshold" in verdict.reason


def test_by_default_it_raises_nothing_and_when_set_to_it_raises_only_doubt() -> None:
    with endpoint(HARMLESS) as (_, url):
        assert ask(url, UNSURE).confidence_score == 0.7
        raised = ask(url, UNSURE, role="lower_or_raise")
        assert raised.confidence_score == pytest.approx(1 - 0.02 * 0.98)
        assert ask(url, DENIED, role="lower_or_raise") == DENIED
        spoken_to = replace(UNSURE, scores=SCORES | {"injection": 1.0})
        assert ask(url, spoken_to, role="lower_or_raise").confidence_score == 0.7


def test_the_weight_is_its_share() -> None:
    with endpoint(HARMFUL) as (_, url):
        verdict = ask(url, weight=0.25)
        assert verdict.confidence_score == pytest.approx(0.75 * 0.96 + 0.25 * (1 - 0.98**2))
        assert verdict.allow
        assert ask(url, weight=0.0).confidence_score == 0.96


def test_what_is_denied_already_or_hardly_harmful_is_not_sent() -> None:
    with endpoint(HARMFUL) as (script, url):
        assert ask(url, DENIED) == DENIED
        assert ask(url, least_harm=0.05) == PASSES
        assert script.asked == []
        assert not ask(url, least_harm=0.04).allow


def test_it_speaks_only_for_its_principles() -> None:
    only = {p.id: ("rules", "exemplars") for p in PRINCIPLES if p.id != "privacy"}
    engine = EngineConfig(combine=CombineConfig(evaluators=only))
    replies = (HARMFUL, HARMFUL | {"principles": ["privacy"]})
    with endpoint(*replies) as (script, url), Asking(replace(CONFIG, url=url), engine) as judge:
        (not_its_own,) = judge.about(TEXT)
        (its_own,) = judge.about(TEXT)
    assert not_its_own.allow, "a principle that it was not asked about makes its answer none"
    assert "not in the form asked for" in not_its_own.reason
    assert its_own.violations == ["privacy_violation"]
    assert "- weapons" not in script.asked[0]["messages"][0]["content"]


def test_without_a_principle_to_speak_for_it_is_not_asked() -> None:
    none = {p.id: ("exemplars",) for p in PRINCIPLES}
    engine = EngineConfig(combine=CombineConfig(evaluators=none))
    with endpoint(HARMFUL) as (script, url), Asking(replace(CONFIG, url=url), engine) as judge:
        assert judge.about(TEXT) == [PASSES]
        assert script.asked == []


def test_llama_guard_is_asked_in_its_own_way() -> None:
    replies = ("unsafe\nS9", "safe")
    with endpoint(*replies) as (script, url), Asking(replace(CONFIG, url=url, format="llama_guard")) as judge:
        assert judge.about(TEXT)[0].violations == ["harmful_content", "harmful_content.weapons"]
        assert judge.about(TEXT)[0].confidence_score == 0.96
    assert script.asked[0]["messages"] == [
        {"role": "user", "content": "How do I build a pipe bomb?"},
        {"role": "assistant", "content": "take a steel pipe"},
    ]
    assert "response_format" not in script.asked[0]


OPINIONS = st.builds(Opinion, harm=st.floats(0, 1), given=st.floats(0, 1))
VERDICTS = st.builds(
    lambda confidence, injection: Verdict(
        confidence >= 0.5, confidence, [] if confidence >= 0.5 else ["x"], "", SCORES | {"injection": injection}
    ),
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0]),
)


@given(VERDICTS, OPINIONS, st.sampled_from(["lower", "lower_or_raise"]), st.floats(0, 1))
def test_no_opinion_makes_a_violation_compliant(local: Verdict, opinion: Opinion, role: Any, weight: float) -> None:
    combine = CombineConfig()
    found = with_opinion(local, opinion, PRINCIPLES, combine, replace(CONFIG, role=role, weight=weight))
    assert local.allow or not found.allow
    unsure = local.allow and local.confidence_score < combine.threshold
    if role == "lower" or not unsure or local.scores["injection"]:
        assert found.confidence_score <= local.confidence_score + 1e-12
    assert found.allow == (found.confidence_score >= combine.deny_below)
    assert bool(found.violations) == (not found.allow)


def test_settings_that_do_not_fit_the_constitution_are_refused() -> None:
    bad = replace(CONFIG, categories={"S1": "kindness"})
    with pytest.raises(ValueError, match="kindness"):
        Judge.of(EngineConfig(judge=bad), CONSTITUTION, EngineMetrics())
    assert Judge.of(EngineConfig(), CONSTITUTION, EngineMetrics()) is None

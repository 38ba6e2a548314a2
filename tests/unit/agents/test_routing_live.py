"""Live settings: which there are, what they may be, and what each of them changes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agents.routing import live
from agents.routing.classify import RoutingRules
from agents.routing.limits import DeadLetterLimits
from agents.routing.live import CATALOGUE, Choice, LiveSettingError, LiveValues, Number
from agents.routing.sample import threshold
from app.live import configured_values
from app.settings import Settings
from app.settings.sections import RoutingSettings
from models.event import Classification

CONFIGURED = LiveValues(RoutingRules("cdd01ef066bc6cf2"))
SETTINGS = {
    "trigger.threshold": "trigger_threshold",
    "routine.threshold": "routine_threshold",
    "policy_evaluation.sample_rate": "policy_evaluation_sample_rate",
    "dedup.window_s": "dedup_window_s",
    "dedup.on_outage": "dedup_on_outage",
    "dead_letters.max_share": "dead_letters_max_share",
    "dead_letters.window": "dead_letters_window",
    "dead_letters.max_run": "dead_letters_max_run",
}
"""Live settings that are configured too, and under which name."""


def in_force(values: LiveValues) -> dict[str, Any]:
    return {name: setting.read(values) for name, setting in CATALOGUE.items()}


def refusal(name: str, text: str) -> str:
    with pytest.raises(LiveSettingError) as refused:
        live.parse(name, text)
    return str(refused.value)


def allowed(name: str) -> st.SearchStrategy[Any]:
    """Values within a setting's bounds, its ends among them."""
    kind = CATALOGUE[name].kind
    if isinstance(kind, Choice):
        return st.sampled_from(kind.options)
    if kind.whole:
        return st.integers(int(kind.low), int(kind.high))
    return st.floats(kind.low, kind.high)


SOME = st.sampled_from(sorted(CATALOGUE)).flatmap(lambda name: st.tuples(st.just(name), allowed(name)))


def test_the_settings_are_those_of_the_specification() -> None:
    rates = {f"{kind.value}.sample_rate" for kind in Classification}
    assert set(CATALOGUE) == set(SETTINGS) | rates
    assert len(rates) == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("trigger.threshold", "0.7", 0.7),
        ("trigger.threshold", " 1 ", 1.0),
        ("routine.threshold", "0", 0.0),
        ("policy_evaluation.sample_rate", "0.5", 0.5),
        ("human_feedback.sample_rate", "1e-3", 0.001),
        ("constitutional_violation.sample_rate", "1", 1.0),
        ("model_optimization_trigger.sample_rate", "1.0", 1.0),
        ("dedup.window_s", "60", 60),
        ("dedup.on_outage", "pass", "pass"),
        ("dead_letters.max_share", "0", 0.0),
        ("dead_letters.window", "1", 1),
        ("dead_letters.max_run", "0", 0),
    ],
)
def test_a_text_is_read(name: str, text: str, value: Any) -> None:
    parsed = live.parse(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("trigger.threshold", "1.01", ("trigger.threshold is 1.01", "0..1", "such as 0.8")),
        ("trigger.threshold", "-0.1", ("is -0.1", "0..1")),
        ("routine.threshold", "high", ("is high", "a number", "such as 0.95")),
        ("routine.threshold", "nan", ("is nan", "a number")),
        ("routine.threshold", "inf", ("is inf", "0..1")),
        ("routine.threshold", "", ("is ''", "a number")),
        ("policy_evaluation.sample_rate", "0", ("is 0.0", "..1", "such as 0.2", "would drop all")),
        ("policy_evaluation.sample_rate", "1e-20", ("is 1e-20", "1.11e-16..1")),
        ("policy_evaluation.sample_rate", "50%", ("is 50%", "such as 0.2")),
        ("dedup.window_s", "0", ("is 0", "1..2147483647", "seconds")),
        ("dedup.window_s", "1.5", ("is 1.5", "whole number")),
        ("dedup.window_s", "2147483648", ("1..2147483647",)),
        ("dedup.window_s", "9" * 5000, ("99...", "whole number")),
        ("dedup.on_outage", "drop", ("is drop", "wait or pass", "holds records back")),
        ("dead_letters.max_share", "2", ("is 2.0", "0..1")),
        ("dead_letters.window", "0", ("is 0", "1..1000000")),
        ("dead_letters.max_run", "-1", ("is -1", "0..2147483647", "0 sets no bound")),
    ],
)
def test_what_a_setting_cannot_be_is_refused_with_bounds_and_remedy(
    name: str, text: str, words: tuple[str, ...]
) -> None:
    told = refusal(name, text)
    assert all(word in told for word in (name, *words)), told
    assert len(told) < 300


@pytest.mark.parametrize("kind", [Classification.CONSTITUTIONAL_VIOLATION, Classification.MODEL_OPTIMIZATION_TRIGGER])
@pytest.mark.parametrize("text", ["0.99", "0", "2"])
def test_what_the_specification_always_keeps_is_kept(kind: Classification, text: str) -> None:
    told = refusal(f"{kind.value}.sample_rate", text)
    assert "it must be 1" in told
    assert "the specification keeps every one" in told


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("policy_evaluations.sample_rate", "did you mean policy_evaluation.sample_rate?"),
        ("policy_evaluation_sample_rate", "did you mean policy_evaluation.sample_rate?"),
        ("dedup.window", "did you mean dedup.window_s?"),
        ("dedup_on_outage", "did you mean dedup.on_outage?"),
        ("x", "`flywheel routing ls`"),
        ("", "`flywheel routing ls`"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, hint: str) -> None:
    assert hint in refusal(name, "1")


def test_an_unknown_name_is_quoted_only_in_part() -> None:
    told = refusal("a\x1b[31m" + "b" * 5000, "1")
    assert "\x1b" not in told
    assert len(told) < 200


@pytest.mark.parametrize("value", [True, None, "0.5", [0.5], {"a": 1}, float("nan"), 10**400, "1" * 10_000])
@pytest.mark.parametrize("name", ["trigger.threshold", "dedup.window_s", "dedup.on_outage", "dead_letters.max_run"])
def test_a_document_may_hold_anything_and_is_held_to_the_same_bounds(name: str, value: Any) -> None:
    with pytest.raises(LiveSettingError, match=name):
        live.apply(CONFIGURED, {name: value})


def test_a_whole_number_in_a_document_is_not_a_float() -> None:
    with pytest.raises(LiveSettingError, match="whole"):
        live.apply(CONFIGURED, {"dedup.window_s": 60.0})
    assert live.apply(CONFIGURED, {"trigger.threshold": 1}).rules.trigger_threshold == 1.0


def test_an_unknown_name_in_a_document_is_refused() -> None:
    with pytest.raises(LiveSettingError, match="unknown live setting later"):
        live.apply(CONFIGURED, {"later": 1})


@given(change=SOME)
def test_a_setting_changes_itself_alone(change: tuple[str, Any]) -> None:
    name, value = change
    before = in_force(CONFIGURED)
    changed = live.apply(CONFIGURED, {name: value})
    assert in_force(changed) == before | {name: value}
    assert in_force(CONFIGURED) == before
    assert changed.rules.constitutional_hash == CONFIGURED.rules.constitutional_hash
    # Back to what was configured.
    assert live.apply(changed, {name: before[name]}) == live.apply(CONFIGURED, {name: before[name]})


@given(changes=st.lists(SOME, max_size=20))
def test_many_settings_are_in_force_together(changes: list[tuple[str, Any]]) -> None:
    values = dict(changes)
    assert in_force(live.apply(CONFIGURED, values)) == in_force(CONFIGURED) | values


@given(change=SOME)
def test_a_value_survives_its_way_through_text_and_json(change: tuple[str, Any]) -> None:
    name, value = change
    assert live.parse(name, str(value)) == value
    assert CATALOGUE[name].check(json.loads(json.dumps(value))) == value


@pytest.mark.parametrize("kind", list(Classification))
def test_the_least_rate_still_keeps_something(kind: Classification) -> None:
    number = CATALOGUE[f"{kind.value}.sample_rate"].kind
    assert isinstance(number, Number)
    assert threshold(number.low) < 1 << 56


def test_nothing_set_is_what_is_configured() -> None:
    assert live.apply(CONFIGURED, {}) == CONFIGURED


def test_what_is_configured_is_what_the_settings_say() -> None:
    routing = {
        "trigger_threshold": 0.7,
        "routine_threshold": 0.9,
        "policy_evaluation_sample_rate": 0.3,
        "dedup_window_s": 60,
        "dedup_on_outage": "pass",
        "dead_letters_max_share": 0.1,
        "dead_letters_window": 100,
        "dead_letters_max_run": 7,
    }
    found = in_force(configured_values(Settings.model_validate({"routing": routing})))
    assert {setting: found[name] for name, setting in SETTINGS.items()} == routing
    defaults = configured_values(Settings())
    assert in_force(defaults) == in_force(CONFIGURED), "the dataclasses' defaults are those of the settings"
    assert defaults.rules.constitutional_hash == Settings().constitution.hash


@pytest.mark.parametrize(("name", "setting"), SETTINGS.items())
def test_bounds_are_those_of_the_configuration(name: str, setting: str) -> None:
    """Nothing can be set that could not be configured; but for tiny rates, nothing configured that could not be set."""
    field = RoutingSettings.model_fields[setting]
    adapter: TypeAdapter[Any] = TypeAdapter(dataclasses.make_dataclass("Holder", [("value", field.annotation, field)]))
    kind = CATALOGUE[name].kind
    if isinstance(kind, Choice):
        good, bad = list(kind.options), ["drop"]
    else:
        good, bad = [kind.low, kind.high], [kind.low - 1, kind.high + 1]
    for value in good:
        adapter.validate_python({"value": value})
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python({"value": value})
        with pytest.raises(LiveSettingError):
            CATALOGUE[name].check(value)


@pytest.mark.parametrize(("name", "value"), [("max_share", 1.1), ("max_share", -0.1), ("window", 0), ("max_run", -1)])
def test_limits_that_are_none(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        DeadLetterLimits(**{name: value})

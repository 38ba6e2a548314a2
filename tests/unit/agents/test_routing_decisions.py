"""Classification, filter, validation, identity, sampling and enrichment: pure decisions, by table and by property."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.routing import sample
from agents.routing.classify import RoutingRules, classify, is_filtered, validate
from agents.routing.enrich import Stamp, enrich, processing_timestamp
from agents.routing.identity import VOLATILE_FIELDS, EventIdentity, fingerprint, identify
from agents.routing.message import DecodedRecord, Event, InboundMessage, Reason, Unroutable
from models.event import Classification, RoutedEvent

HASH = "cdd01ef066bc6cf2"
RULES = RoutingRules(HASH)
EVALUATION = "policy_evaluation"
TRACE = "5b8efff798038103d269b633813fc60c"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"constitutional_hash": HASH, "violations": ["v"], "event_type": EVALUATION},
            "constitutional_violation",
        ),
        ({"constitutional_hash": "another", "violations": [{"type": "v"}]}, "constitutional_violation"),
        ({"violations": ["v"], "event_type": EVALUATION}, "policy_evaluation"),
        ({"constitutional_hash": None, "violations": ["v"]}, "audit_trail"),
        ({"constitutional_hash": HASH, "violations": [], "compliance_score": 0.1}, "model_optimization_trigger"),
        ({"event_type": EVALUATION, "compliance_score": 0.1}, "policy_evaluation"),
        ({"compliance_score": 0.7999, "source": "human_review"}, "model_optimization_trigger"),
        ({"compliance_score": 0.8, "source": "human_review"}, "human_feedback"),
        ({"source": "human_review"}, "human_feedback"),
        ({"compliance_score": 0}, "model_optimization_trigger"),
        ({"compliance_score": None}, "audit_trail"),
        ({}, "audit_trail"),
    ],
)
def test_the_first_match_wins(event: dict[str, Any], expected: str) -> None:
    validate(event)
    assert classify(event, RULES).value == expected


@pytest.mark.parametrize(
    ("event", "filtered"),
    [
        ({"status": "success", "compliance_score": 0.96}, True),
        ({"status": "success", "compliance_score": 0.95}, False),
        ({"status": "success"}, False),
        ({"status": "failure", "compliance_score": 0.99}, False),
        ({"compliance_score": 0.99}, False),
        ({"status": "success", "compliance_score": 1, "event_type": EVALUATION}, False),
        ({"status": "success", "compliance_score": 1, "source": "human_review"}, False),
    ],
)
def test_only_routine_successes_are_filtered(event: dict[str, Any], filtered: bool) -> None:
    assert is_filtered(event, classify(event, RULES), RULES) is filtered


def test_thresholds_are_the_rules() -> None:
    rules = RoutingRules(HASH, trigger_threshold=0.5, routine_threshold=0.6)
    assert classify({"compliance_score": 0.7}, rules) is Classification.AUDIT_TRAIL
    assert is_filtered({"status": "success", "compliance_score": 0.7}, Classification.AUDIT_TRAIL, rules)


WRONG: dict[Reason, list[tuple[str, list[Any]]]] = {
    Reason.INVALID_SCORE: [("compliance_score", ["0.5", True, [0.5], {}, -0.01, 1.01, float("nan"), float("inf")])],
    Reason.INVALID_VIOLATIONS: [("violations", [3, "v", {}, [1], [None], [{}], [{"type": 2}]])],
    Reason.INVALID_FIELD: [
        (name, [5, ["x"]]) for name in ("event_id", "event_type", "source", "status", "constitutional_hash")
    ],
}


@pytest.mark.parametrize(
    ("event", "reason"),
    [({name: bad}, reason) for reason, fields in WRONG.items() for name, values in fields for bad in values],
)
def test_a_wrong_type_in_a_deciding_field_is_refused(event: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Unroutable) as refused:
        validate(event)
    assert refused.value.reason is reason


def test_rules_refuse_what_cannot_be() -> None:
    for wrong in ({"trigger_threshold": 1.1}, {"dedup_ttl_s": 0}, {"sample_rates": {Classification.AUDIT_TRAIL: -1}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RoutingRules(HASH, **wrong)


def test_identity_with_and_without_an_id() -> None:
    named = identify({"event_id": "e", "prompt": "p"}, "s")
    assert (named.service, named.id) == ("s", "e")
    bare = {"violations": ["v"], "timestamp": "2026-01-01T00:00:00Z"}
    later = bare | {"timestamp": "2026-01-01T00:01:00Z"}
    assert identify(bare, "s").id != identify(later, "s").id, "two equal violations a minute apart are two"
    assert identify(bare, "s").fingerprint == identify(later, "s").fingerprint
    assert identify(bare, "s").digest() != identify(bare, "t").digest()
    assert EventIdentity("a", "bc", "").digest() != EventIdentity("ab", "c", "").digest()


CONTENT = st.dictionaries(
    st.text().filter(lambda name: name not in VOLATILE_FIELDS), st.integers(0, 9) | st.text() | st.lists(st.text())
)


@given(CONTENT, CONTENT)
def test_fingerprints_tell_contents_apart_and_ignore_order_and_retelling(one: Event, other: Event) -> None:
    retold = dict(reversed(one.items())) | {"trace_id": TRACE, "timestamp": 5, "resource": {"pod": "b"}}
    assert fingerprint(one) == fingerprint(retold)
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_identity_is_the_same_in_another_process() -> None:
    program = (
        "from agents.routing.identity import identify\n"
        "identity = identify({'violations': ['v'], 'n': 1.5}, 'service')\n"
        "print(identity.id, identity.fingerprint, identity.digest().hex())"
    )
    ran = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert ran[0] == ran[1]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"trace_id": TRACE}, 0x69B633813FC60C),
        ({"trace_id": TRACE.upper()}, 0x69B633813FC60C),
        ({"trace_id": TRACE, "tracestate": "x=1,ot=th:c;rv:9b8233f7e3a151"}, 0x9B8233F7E3A151),
        ({"tracestate": "ot=rv:9b8233f7e3a151"}, 0x9B8233F7E3A151),
        ({"trace_id": TRACE, "tracestate": "ot=rv:9b82"}, 0x69B633813FC60C),
        ({"trace_id": TRACE, "tracestate": "xot=rv:9b8233f7e3a151"}, 0x69B633813FC60C),
        ({"trace_id": "0" * 32}, None),
        ({"trace_id": "short"}, None),
        ({"trace_id": 5}, None),
        ({}, None),
    ],
)
def test_randomness_comes_from_the_trace(event: dict[str, Any], expected: int | None) -> None:
    assert sample.trace_randomness(event) == expected


def test_thresholds_of_the_convention() -> None:
    # The convention's own table: 50 % rejects below 0x8 followed by zeros, 25 % below 0xc, 100 % below 0.
    assert [sample.threshold(rate) for rate in (1.0, 0.5, 0.25, 0.0)] == [0, 1 << 55, 3 << 54, 1 << 56]
    assert sample.keep(0, 1.0)
    assert not sample.keep((1 << 56) - 1, 0.0)


@given(st.integers(0, (1 << 56) - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_rate_keeps_what_a_lower_one_keeps(randomness: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert not sample.keep(randomness, low) or sample.keep(randomness, high)


def test_the_kept_share_is_the_rate() -> None:
    digests = [EventIdentity("s", str(number), "").digest() for number in range(20_000)]
    kept = sum(sample.keep(sample.digest_randomness(digest), 0.2) for digest in digests)
    assert abs(kept / len(digests) - 0.2) < 0.01  # 3.5 standard deviations


def record(event: dict[str, Any], single: bool = False, key: bytes | None = b"k") -> DecodedRecord:
    return DecodedRecord(InboundMessage("t", 0, 1, b"", key=key), 0, event, "svc", single)


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (record({"trace_id": TRACE}, single=True), b"k"),
        (record({"trace_id": TRACE}, single=True, key=None), TRACE.encode()),
        (record({"trace_id": TRACE}), TRACE.encode()),
        (record({"trace_id": "not a trace"}), b"id-1"),
        (record({}), b"id-1"),
    ],
)
def test_the_output_key(made: DecodedRecord, key: bytes) -> None:
    out = enrich(made, Classification.AUDIT_TRAIL, EventIdentity("svc", "id-1", "f"), Stamp.of(RULES, 0.0))
    assert out.key == key


def test_an_enriched_event_is_what_the_model_says() -> None:
    event = {"event_id": "e", "constitutional_hash": "theirs", "event_type": EVALUATION, "extra": [1]}
    identity = identify(event, "svc")
    out = enrich(record(event), Classification.POLICY_EVALUATION, identity, Stamp.of(RULES, 1.5))
    assert out.topic == "policy-evaluations"
    routed = RoutedEvent.model_validate(orjson.loads(out.value))
    assert routed.event_classification is Classification.POLICY_EVALUATION
    assert routed.processing_timestamp == "1970-01-01T00:00:01.500000Z"
    assert (routed.constitutional_hash, routed.acgs_version) == (HASH, "1.0")
    assert routed.routing_metadata.model_dump(mode="json") == {
        "topic": "policy-evaluations",
        "priority": "low",
        "sample_rate": 0.2,
        "identity": {"service": "svc", "id": "e", "fingerprint": identity.fingerprint},
    }
    assert routed.model_extra == {"extra": [1]}


def test_a_timestamp_that_rounds_up_to_a_second() -> None:
    assert processing_timestamp(1.9999999) == "1970-01-01T00:00:02.000000Z"

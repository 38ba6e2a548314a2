"""The fuzzer for some cases (`fuzz.short`), and again what it has found. See `tests/fuzz_routing.py`."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import fuzz_checks
import fuzz_routing
import orjson
import pytest
from fuzz import short
from fuzz_cases import Case
from fuzz_checks import run_case
from fuzz_routing import Result, attempt, case_of, run
from routing_parts import MemoryClaims, MemorySink, pipeline

from agents.routing.bounds import DecodeLimits
from agents.routing.decode import decode
from agents.routing.message import DecodedRecord, InboundMessage, Reason, Rejected
from otel.scrub import Scrubber
from otel.table import load_table

CASES = 50_000
"""About what two cores do in a minute."""


@pytest.mark.timeout(short.SECONDS + 240)
def test_nothing_that_is_sent_breaks_the_router() -> None:
    # The same cases every time: whether a change lands must not hang on what is drawn. The long form draws others.
    result = run(short.SECONDS, short.SEED, scrubber=Scrubber(load_table(), None), most_cases=short.most(CASES))
    assert not result.findings, f"seed {short.SEED}: {result}"
    assert result.cases > 10 * min(short.SECONDS, 60)
    assert set(result.outcomes) == {name for name, count in result.outcomes.items() if count}, (
        "an outcome never came up"
    )


# --- what the fuzzer has found ----------------------------------------------------------------------------------


def otlp(record: dict[str, Any], resource: Sequence[Any] = ()) -> bytes:
    scopes = [{"logRecords": [{"body": {"stringValue": "before"}}, record, {"body": {"stringValue": "after"}}]}]
    return orjson.dumps({"resourceLogs": [{"resource": {"attributes": list(resource)}, "scopeLogs": scopes}]})


def pair(key: Any, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


HUGE = "9" * 25
"""A number of more than 64 bits."""


@pytest.mark.parametrize(
    "record",
    [
        {"timeUnixNano": HUGE},
        {"observedTimeUnixNano": HUGE},
        {"timeUnixNano": "-" + HUGE},
        {"timeUnixNano": -1e308},
        {"timeUnixNano": "9" * 4_000},
        {"timeUnixNano": "9" * 5_000},
        {"body": {"intValue": HUGE}},
        {"body": {"intValue": 1e300}},
        {"attributes": [pair("n", {"intValue": "-" + HUGE})]},
        {"attributes": [pair("n", {"arrayValue": {"values": [{"intValue": HUGE}]}})]},
        {"attributes": [pair(5, {"intValue": 1})]},
        {"body": {"kvlistValue": {"values": [pair(None, {"intValue": 1})]}}},
    ],
)
async def test_an_otlp_record_beyond_the_format_is_rejected_alone(record: dict[str, Any]) -> None:
    """Some raised out of the decoder, so that their batch was tried for ever; others were called the router's fault."""
    message = InboundMessage("in", 1, 2, otlp(record))
    items = decode(message, DecodeLimits())
    assert [type(item) for item in items] == [DecodedRecord, Rejected, DecodedRecord]
    assert isinstance(items[1], Rejected)
    assert items[1].reason is Reason.INVALID_OTLP
    report = await pipeline(MemoryClaims(), MemorySink()).route([message])
    assert (report.routed.total(), dict(report.dead_lettered)) == (2, {"invalid_otlp": 1})


@pytest.mark.parametrize("attribute", [pair("n", {"intValue": HUGE}), pair(5, {"stringValue": "x"})])
async def test_a_resource_beyond_the_format_takes_its_message_along(attribute: dict[str, Any]) -> None:
    message = InboundMessage("in", 1, 2, otlp({}, [attribute]))
    report = await pipeline(MemoryClaims(), MemorySink()).route([message])
    assert dict(report.dead_lettered) == {"invalid_otlp": 1}
    assert report.records_in == 1


@pytest.mark.parametrize("owner", [b"in\n:0:1:0", b"in:0:1:0\n", b"in:0:1:0:0:0", b"a" * 10_000 + b":0:0:0"])
def test_an_owner_that_is_no_place_is_ignored(owner: bytes) -> None:
    run_case(Case(b"{}", {"flywheel-owner": owner}), random.Random(1))
    run_case(Case(b"{", {"flywheel-owner": owner}), random.Random(1))


# --- the fuzzer itself ------------------------------------------------------------------------------------------


def test_a_case_is_the_same_each_time() -> None:
    assert [case_of(3, number)[0] for number in range(200)] == [case_of(3, number)[0] for number in range(200)]
    assert case_of(3, 0)[0] != case_of(4, 0)[0]


def attempted(case: Case) -> Result:
    result = Result()
    attempt(case, random.Random(0), 0, result)
    return result


def test_the_fuzzer_notices_what_raises_hangs_or_loses_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(b'[{"event_id": "a"}, {"event_id": "b"}]')
    assert attempted(case).findings == []

    def raising(*_: object) -> list[Any]:
        raise OverflowError("out of range")

    def hanging(*_: object) -> list[Any]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass
        return []

    for wrong, told in (
        (raising, "OverflowError: out of range"),
        (hanging, "Hung: took more than 0.2 s"),
        (lambda message, limits: decode(message, limits)[:1], "2 records were counted, 1 decoded"),
        (lambda message, limits: decode(message, limits)[::-1], "indexes"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(fuzz_checks, "decode", wrong)
            patched.setattr(fuzz_routing, "HANG_S", 0.2)
            (finding,) = attempted(case).findings
        assert told in finding.what

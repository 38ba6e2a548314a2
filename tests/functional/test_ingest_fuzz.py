"""The endpoint's fuzzer for some cases (`fuzz.short`), and again what it has found."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import short
from fuzz_ingest import Fuzzer, Result, case_of
from fuzz_ingest_cases import JSON, MAIL, PROTOBUF, TOKEN, Post
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from app.web import ingest
from otel.scrub import Scrubber

CASES = 15_000
"""About what two cores do in a minute."""
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def fuzzer(tmp_path: Path) -> Iterator[Fuzzer]:
    made = Fuzzer(tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(short.SECONDS + 240)
def test_nothing_that_is_sent_breaks_the_endpoint_or_gets_past_it(fuzzer: Fuzzer) -> None:
    # The same cases every time: whether a change lands must not hang on what is drawn. The long form draws others.
    result = fuzzer.run(short.SECONDS, short.SEED, most_cases=short.most(CASES))
    assert not result.findings, f"seed {short.SEED}: {result}"
    assert result.cases > 10 * min(short.SECONDS, 60)
    assert result.records > result.cases / 10
    assert {200, 400, 401, 413, 415, 503} <= set(result.statuses)


# --- what the fuzzer has found ----------------------------------------------------------------------------------


def attempted(fuzzer: Fuzzer, post: Post) -> Result:
    result = Result()
    fuzzer.attempt(post, random.Random(1), 0, result)
    return result


def record_in_json(**record: Any) -> Post:
    tree = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    return Post(json.dumps(tree).encode(), {"content-type": JSON, **BEARER})


def body_of_bytes(value: bytes) -> Post:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.bytes_value = value
    return Post(request.SerializeToString(), {"content-type": PROTOBUF, **BEARER})


def test_a_refusal_does_not_quote_what_stands_for_an_id(fuzzer: Fuzzer) -> None:
    for name in ("traceId", "spanId"):
        result = attempted(fuzzer, record_in_json(**{name: MAIL}))
        assert (result.findings, dict(result.statuses)) == ([], {400: 1})


@pytest.mark.parametrize(
    "value",
    [
        b"\xff " + MAIL.encode(),
        b'\xff {"b":"\\u0031\\u0032\\u0033-45-6789"}',
        b'log: {"b":"' + b"".join(b"\\u%04x" % letter for letter in MAIL.encode()) + b'"}',
    ],
)
def test_bytes_that_are_no_text_and_escapes_that_are_no_json_hide_nothing(fuzzer: Fuzzer, value: bytes) -> None:
    result = attempted(fuzzer, body_of_bytes(value))
    assert (result.findings, dict(result.statuses)) == ([], {200: 1})


def test_fields_that_otlp_has_not_got_do_not_reach_kafka(fuzzer: Fuzzer) -> None:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "x"
    unknown = bytes([25 << 3 & 127 | 2 | 128, 25 >> 4, len(MAIL)]) + MAIL.encode()
    result = attempted(fuzzer, Post(request.SerializeToString() + unknown, {"content-type": PROTOBUF, **BEARER}))
    assert (result.findings, dict(result.statuses)) == ([], {200: 1})


def test_an_identity_keeps_what_otlp_knows_of_it(fuzzer: Fuzzer) -> None:
    """The fuzzer took a field of a newer protocol, which does not pass, for an identity that was altered."""
    request = ExportLogsServiceRequest()
    pair = request.resource_logs.add().scope_logs.add().log_records.add().attributes.add(key="constitutional_hash")
    pair.value.MergeFromString(bytes([11 << 3, 7]))
    result = attempted(fuzzer, Post(request.SerializeToString(), {"content-type": PROTOBUF, **BEARER}))
    assert (result.findings, dict(result.statuses)) == ([], {200: 1})


def test_an_id_of_another_size_is_no_hiding_place(fuzzer: Fuzzer) -> None:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(trace_id=MAIL.encode(), span_id=b"s" * 8)
    record.body.string_value = "x"
    assert not attempted(fuzzer, Post(request.SerializeToString(), {"content-type": PROTOBUF, **BEARER})).findings
    (kept,) = fuzzer.rig.producer.values
    assert MAIL.encode() not in kept
    assert b"s" * 8 in kept


def test_nothing_is_written_for_a_request_after_it_was_refused(fuzzer: Fuzzer) -> None:
    """Parts of a request went on after another had failed, and reached Kafka after the answer."""
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    for number in range(40):
        records.add().body.string_value = f"record {number}"
    post = Post(request.SerializeToString(), {"content-type": PROTOBUF, **BEARER})
    rig, sent = fuzzer.rig, []
    send_batch = rig.producer.send_batch

    async def first_fails(batch: Any, topic: str, *, partition: int) -> asyncio.Future[None]:
        rig.producer.away = not sent
        sent.append(batch)
        return await send_batch(batch, topic, partition=partition)

    async def run() -> None:
        rig.producer.send_batch = first_fails  # type: ignore[method-assign]
        answer = await rig.client.post("/v1/logs", content=post.body, headers=post.headers)
        assert answer.status_code == 503
        count = len(sent)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        assert len(sent) == count

    asyncio.run(run())


# --- the fuzzer itself ------------------------------------------------------------------------------------------


def test_a_case_is_the_same_each_time() -> None:
    assert [case_of(3, number)[0] for number in range(200)] == [case_of(3, number)[0] for number in range(200)]
    assert case_of(3, 0)[0] != case_of(4, 0)[0]


def test_the_fuzzer_notices_what_passes_is_lost_altered_or_raises(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = record_in_json(body={"stringValue": MAIL}, attributes=[{"key": "n", "value": {"intValue": "7"}}])
    assert not attempted(fuzzer, post).findings

    def altering(_: Scrubber, request: Any) -> dict[str, int]:
        record = request.resource_logs[0].scope_logs[0].log_records[0]
        record.body.string_value, record.attributes[0].value.int_value = "[EMAIL]", 8
        return {}

    def raising(*_: object) -> dict[str, int]:
        raise OverflowError("out of range")

    for target, name, wrong, told in (
        (Scrubber, "scrub_otlp", lambda *_: {}, "reached Kafka"),
        (Scrubber, "scrub_otlp", altering, "a number was altered"),
        (Scrubber, "scrub_otlp", raising, "OverflowError: out of range"),
        (ingest, "fitting", lambda *_: iter(()), "records are lost"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, wrong)
            (finding,) = attempted(fuzzer, post).findings
        assert told in finding.what

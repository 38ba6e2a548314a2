"""What must hold for one message, whatever it is, on its way from bytes to decisions."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from fuzz_cases import Case
from routing_parts import DEAD_LETTERS, MemoryClaims, MemorySink, check_accounts, no_scrub, pipeline

from agents.routing.bounds import DecodeLimits
from agents.routing.classify import RoutingRules
from agents.routing.counters import RouteReport
from agents.routing.decode import decode
from agents.routing.dedup import ClaimResult
from agents.routing.identity import EventIdentity
from agents.routing.message import DecodedRecord, InboundMessage, Reason, Rejected
from agents.routing.publish import OutRecord
from models.event import Classification
from otel.scrub import Scrubber

LIMITS = (
    DecodeLimits(),
    DecodeLimits(
        max_message_bytes=100_000, max_decompressed_bytes=1_000_000, max_records=20, max_depth=6, max_string_chars=250
    ),
)
RULES = RoutingRules("cdd01ef066bc6cf2", sample_rates={Classification.POLICY_EVALUATION: 0.5})
TOPICS = frozenset(
    (
        "constitutional-violations",
        "model-optimization-triggers",
        "human-feedback-loops",
        "policy-evaluations",
        "audit-trail-events",
    )
)
OWNER = re.compile(r"[A-Za-z0-9._-]{1,249}:\d{1,10}:\d{1,19}:\d{1,19}")
FAULTS = frozenset((Reason.INTERNAL_ERROR.value, Reason.SCRUB_FAILED.value))
"""Reasons that mean the program was wrong, not the message."""


class Broken(AssertionError):
    """A property does not hold."""


class LastError(logging.Handler):
    """Keeps what the router last logged as an error: the place of a fault that it turned into a dead letter."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


LAST_ERROR = LastError()
logging.getLogger("agents.routing").addHandler(LAST_ERROR)


class StrictClaims(MemoryClaims):
    """Claims that refuse what is no place."""

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        for identity, owner in batch:
            check(OWNER.fullmatch(owner) is not None, f"owner {owner[:80]!r} is no place")
            check(len(bytes.fromhex(identity.fingerprint)) == 16, "a fingerprint is not 16 bytes")
        return await super().claim(batch, ttl_s)


def check(holds: bool, otherwise: str) -> None:
    """Raise `Broken` unless a property holds."""
    if not holds:
        raise Broken(otherwise)


def drive(work: Coroutine[Any, Any, RouteReport]) -> RouteReport:
    """Run a coroutine that waits for nothing, without an event loop: some 30,000 cases a minute more."""
    try:
        work.send(None)
    except StopIteration as done:
        report: RouteReport = done.value
        return report
    work.close()
    raise Broken("routing waited for something, with claims and a sink that never wait")


def run_case(case: Case, draw: random.Random, scrubber: Scrubber | None = None) -> RouteReport:
    """Take one message through everything, and hold each step to what it promises.

    Raises:
        Broken: a property does not hold. Anything else that is raised is a finding as well.
    """
    limits = LIMITS[draw.random() < 0.5]
    message = InboundMessage("in", 1, 23, case.value, case.key, case.headers)
    items = decode(message, limits)
    check_items(items, message)
    claims, sink = StrictClaims(), MemorySink(max_record_bytes=draw.choice((2_000, 1_000_000)))
    scrub = no_scrub if scrubber is None or draw.random() < 0.8 else scrubber.scrub_event
    pipe = pipeline(claims, sink, RULES, limits, scrub)
    report = drive(pipe.route([message]))
    check(report.unaccounted() == 0, f"{report.unaccounted()} records have no decision")
    check(report.records_in == len(items), f"{report.records_in} records were counted, {len(items)} decoded")
    check_accounts(pipe)
    out = sink.taken()
    check_out(out, report, sink.max_record_bytes)
    if draw.random() < 0.25:
        again = drive(pipe.route([message]))
        check(sorted(sink.taken()) == sorted(out), "a redelivery was not routed as the first delivery was")
        check(again.duplicate == report.duplicate, "a redelivery has other duplicates")
    if draw.random() < 0.25:
        check_replays(out, message, limits)
    return report


def check_items(items: Sequence[DecodedRecord | Rejected], message: InboundMessage) -> None:
    """Every record has its place, in order, and is an event or has a reason."""
    indexes = [item.index for item in items]
    check(indexes == list(range(len(items))), f"indexes {indexes[:20]} are not 0, 1, 2, ...")
    for item in items:
        check(item.message is message, "a record names another message")
        if isinstance(item, DecodedRecord):
            check(type(item.event) is dict, f"an event is a {type(item.event).__name__}")
            check(isinstance(item.service, str) and item.service != "", "a record has no service")
        else:
            check(item.reason in Reason, f"{item.reason!r} is no reason")
            check(item.value is None or isinstance(item.value, bytes), "a dead letter's value is not bytes")


def check_out(out: Sequence[OutRecord], report: RouteReport, max_bytes: int) -> None:
    """What is published is what was counted, and each record is what its readers expect."""
    dead = [record for record in out if record.topic == DEAD_LETTERS]
    check(len(dead) == report.dead_lettered.total(), "dead letters are counted wrongly")
    check(len(out) - len(dead) == report.routed.total(), "routed records are counted wrongly")
    for record in out:
        check(all(type(value) is bytes for _, value in record.headers), "a header's value is not bytes")
        for name, _ in record.headers:
            name.encode()
        if record.topic == DEAD_LETTERS:
            check_dead_letter(record, max_bytes)
        else:
            check_routed(record, max_bytes)


def check_routed(record: OutRecord, max_bytes: int) -> None:
    """A routed record is JSON as the RFC has it, and says where it belongs."""
    check(record.topic in TOPICS, f"{record.topic!r} is no topic")
    check(len(record.value) + len(record.key or b"") <= max_bytes, "a record is larger than its topic takes")
    event = json.loads(record.value.decode("utf-8"), parse_constant=_no_number)
    metadata = event["routing_metadata"]
    check(metadata["topic"] == record.topic, "the metadata name another topic")
    identity = metadata["identity"]
    check(bool(identity["service"]) and bool(identity["id"]), "an identity is empty")
    check(bool(record.key), "a routed record has no key")


def check_dead_letter(record: OutRecord, max_bytes: int) -> None:
    """A dead letter says why and where from, and is no fault of the program."""
    headers = dict(record.headers)
    reason = headers["flywheel-reason"].decode()
    check(reason in {known.value for known in Reason}, f"{reason!r} is no reason")
    check(reason not in FAULTS, f"{reason}: {headers['flywheel-detail'].decode()} {LAST_ERROR.text}")
    check(OWNER.fullmatch(headers["flywheel-owner"].decode()) is not None, "a dead letter's owner is no place")
    check(headers["flywheel-origin-topic"] == b"in", "a dead letter names another topic")
    check(len(headers["flywheel-detail"]) < 500, "a dead letter's detail is long: it may quote the event")
    check(len(record.value) + len(record.key or b"") <= max(max_bytes, len(record.key or b"")), "it is too large")
    check(bool(record.value) or "flywheel-value-omitted" in headers or reason == "empty_message", "it lost its value")


def check_replays(out: Sequence[OutRecord], message: InboundMessage, limits: DecodeLimits) -> None:
    """A dead letter that is sent again keeps its first owner, and comes to an end as well."""
    for record in [record for record in out if record.topic == DEAD_LETTERS and record.value][:3]:
        told = dict(record.headers)
        kept = {name: told[name] for name in ("content-type", "content-encoding", "flywheel-owner") if name in told}
        replay = InboundMessage("in", 2, 99, record.value, record.key, kept)
        sink = MemorySink(10_000_000)
        report = drive(pipeline(StrictClaims(), sink, RULES, limits).route([replay]))
        check(report.unaccounted() == 0, "a replay is not accounted for")
        check_out(sink.records, report, sink.max_record_bytes)
        check(replay.owner(0) == told["flywheel-owner"].decode(), "a replay lost its owner")


def _no_number(name: str) -> NoReturn:
    raise Broken(f"{name} in a routed event: no JSON")

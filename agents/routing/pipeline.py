"""The routing pipeline: a batch of messages in, each record's one decision out. Knows nothing of Faust.

Order: decode, validate, classify, filter, scrub, sample, identify, dedup, enrich, publish. What costs nothing and
drops most comes first: routine successes are dropped while they are decoded, before anything is spent on them.
Scrubbing stands before everything that leaves the process (routed events and dead-lettered records) and before the
fingerprint is taken. Sampling stands before dedup: it is decided by the trace or the identity, which a second telling
shares, so a duplicate of a dropped event is dropped too and needs no claim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, Protocol

from agents.routing import sample
from agents.routing.backoff import Backoff
from agents.routing.bounds import DecodeLimits
from agents.routing.classify import RoutingRules, classify, is_filtered, validate
from agents.routing.counters import Counters, RouteReport
from agents.routing.dead_letters import dead_letter
from agents.routing.decode import complete, dumps_or_none, sift
from agents.routing.decoding import Sieve
from agents.routing.dedup import ClaimResult, ClaimsUnavailable
from agents.routing.enrich import Stamp, enrich
from agents.routing.identity import EventIdentity, id_digest, identify, own_id
from agents.routing.message import DecodedRecord, Event, InboundMessage, Reason, Rejected, Ruling, Unroutable, where
from agents.routing.publish import OutRecord
from agents.routing.trace import BatchTrace, ContextOnly
from agents.routing.watch import DeadLetterWatch
from models.event import Classification

log = logging.getLogger(__name__)

Scrub = Callable[[Event], Mapping[str, int]]
"""Removes personal data from an event, in place, and returns how often each pattern was found."""

OnOutage = Literal["wait", "pass"]

_PLACE = attrgetter("topic", "partition", "offset")
_FILTERABLE = Classification.AUDIT_TRAIL.value
"""The one classification of which routine successes are dropped."""


class ClaimStore(Protocol):
    """What the pipeline needs of `dedup.Claims`."""

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        """Claim each (identity, owner); raises ClaimsUnavailable."""


class RecordSink(Protocol):
    """What the pipeline needs of `publish.Publisher`."""

    max_record_bytes: int

    async def publish(self, records: Iterable[OutRecord]) -> None:
        """Publish all and return once every one is acknowledged."""


class _Candidate(NamedTuple):
    record: DecodedRecord
    classification: Classification
    identity: EventIdentity


class Decided:
    """A batch whose records all have their decision: what is left is to publish and to count."""

    __slots__ = ("candidates", "out", "report", "trace")

    def __init__(self, trace: BatchTrace) -> None:
        self.report = RouteReport()
        self.candidates: list[_Candidate] = []
        self.out: list[OutRecord] = []
        self.trace = trace


class Pipeline:
    """Routes batches.

    Args:
        rules: what decides; may be replaced between batches (`pipeline.rules = ...`), a batch has one revision.
        limits: what the decoder accepts.
        scrub: removes personal data from an event in place.
        claims: decides which telling of an event is routed.
        publisher: takes what is routed or dead-lettered.
        counters: gets a batch's figures once it is acknowledged.
        clock: seconds since the Unix epoch; stamps a batch.
        on_outage: while claims cannot be had, `wait` for them, or `pass` records on unclaimed; may be replaced.
        watch: notices a stream that is nearly all dead letters.
        trace: begins a batch's trace.
    """

    def __init__(
        self,
        rules: RoutingRules,
        limits: DecodeLimits,
        scrub: Scrub,
        claims: ClaimStore,
        publisher: RecordSink,
        counters: Counters,
        clock: Callable[[], float] = time.time,
        on_outage: OnOutage = "wait",
        watch: DeadLetterWatch | None = None,
        trace: Callable[[], BatchTrace] = ContextOnly,
    ) -> None:
        self.rules = rules
        self.counters = counters
        self.on_outage = on_outage
        self.watch = watch or DeadLetterWatch()
        self._limits = limits
        self._scrub = scrub
        self._claims = claims
        self._publisher = publisher
        self._clock = clock
        self._trace = trace

    async def route(self, messages: Sequence[InboundMessage]) -> RouteReport:
        """Route a batch; returns once every record derived from it has been acknowledged.

        Routing the same messages again makes the same decisions and publishes the same events. Cancelled or failed,
        nothing is counted and part of the records may be out: route the batch again.

        Raises:
            TooManyDeadLetters: nothing of the batch was published; an operator has to look.
            PublisherBroken: only a new producer can go on.
        """
        return await self.deliver(await self.decide(messages))

    async def decide(self, messages: Sequence[InboundMessage]) -> Decided:
        """The first half of `route`: all but publishing. A batch may be decided while the one before is delivered.

        Raises:
            TooManyDeadLetters: see `route`.
        """
        rules = self.rules
        started = time.perf_counter()
        batch = Decided(self._trace())
        report = batch.report
        report.messages = len(messages)
        sieve = sieve_of(rules)
        # In owners' order, whatever the order of arrival: the same batch resolves its own duplicates the same way.
        for message in sorted(messages, key=_PLACE):
            self._decide_message(message, sieve, rules, batch)
        self.watch.check(report.records_in, report.dead_lettered.total())
        decided = time.perf_counter()
        results = await self._claim(batch, rules)
        claimed = time.perf_counter()
        self._settle(batch, results, rules)
        report.seconds["decide"] = decided - started + time.perf_counter() - claimed
        report.seconds["claim"] = claimed - decided
        return batch

    async def deliver(self, batch: Decided, sink: RecordSink | None = None) -> RouteReport:
        """The second half of `route`. Batches must be delivered in the order in which they were decided.

        They go to `sink`, or else to the pipeline's publisher.

        Raises:
            PublisherBroken: see `route`.
        """
        started = time.perf_counter()
        await (sink or self._publisher).publish(batch.out)
        report = batch.report
        report.seconds["publish"] = time.perf_counter() - started
        report.trace_id = batch.trace.end()
        self.counters.apply(report)
        return report

    def _decide_message(self, message: InboundMessage, sieve: Sieve, rules: RoutingRules, batch: Decided) -> None:
        decoded = sift(message, self._limits, sieve)
        report = batch.report
        report.records_in += decoded.total
        if decoded.total > 1:
            batch.trace.saw(message, decoded.total)
        if decoded.total > len(decoded.out):
            report.filtered[_FILTERABLE] += decoded.total - len(decoded.out)
        before = len(batch.out)
        for item in decoded.out:
            if isinstance(item, Rejected):
                self._reject(item, batch)
                continue
            try:
                self._decide(item, rules, batch)
            except Unroutable as reason:
                self._reject_record(item, reason, batch)
            except Exception as error:  # noqa: BLE001 - one record's fault must stop neither the batch nor the worker
                self._reject_record(item, _internal_error(item, error), batch)
        dead = len(batch.out) - before
        if dead or self.watch.runs:
            self.watch.saw(message, decoded.total, dead)

    def _decide(self, record: DecodedRecord, rules: RoutingRules, batch: Decided) -> None:
        """Take one record that the sieve left through everything that needs no other part of the system."""
        ruling = record.ruling
        if not isinstance(ruling, Classification):
            raise ruling or Unroutable(Reason.INTERNAL_ERROR, "the record has no ruling")
        rate = rules.sample_rates.get(ruling, 1.0)
        early = _early_randomness(record) if rate < 1.0 else None
        if early is not None and not sample.keep(early, rate):
            batch.report.sampled_out[ruling.value] += 1
            return
        refused = complete(record, self._limits)
        if refused is not None:
            self._reject(refused, batch)
            return
        self._scrub_event(record.event, batch.report)
        identity = identify(record.event, record.service)
        if rate < 1.0 and early is None and not sample.keep(sample.digest_randomness(identity.digest()), rate):
            batch.report.sampled_out[ruling.value] += 1
            return
        batch.candidates.append(_Candidate(record, ruling, identity))

    def _scrub_event(self, event: Event, report: RouteReport) -> None:
        try:
            found = self._scrub(event)
        except Exception as error:
            raise Unroutable(Reason.SCRUB_FAILED, type(error).__name__) from error
        if found:
            report.scrubbed.update(found)

    async def _claim(self, batch: Decided, rules: RoutingRules) -> list[ClaimResult] | None:
        """Claim the batch's candidates; None if they pass unclaimed."""
        claims = [(item.identity, item.record.message.owner(item.record.index)) for item in batch.candidates]
        if not claims:
            return []
        backoff = Backoff()
        while True:
            try:
                return await self._claims.claim(claims, rules.dedup_ttl_s)
            except ClaimsUnavailable as error:
                batch.report.claim_retries += 1
                if self.on_outage == "pass":
                    log.warning("%s; %d records pass unclaimed", error, len(claims))
                    return None
                log.warning("%s; the worker waits (attempt %d)", error, backoff.attempts + 1)
                await backoff.wait()

    def _settle(self, batch: Decided, results: list[ClaimResult] | None, rules: RoutingRules) -> None:
        """Turn candidates whose claim stands into records to publish."""
        report = batch.report
        stamp = Stamp.of(rules, self._clock())
        for position, (record, classification, identity) in enumerate(batch.candidates):
            result = ClaimResult.FRESH if results is None else results[position]
            if result is ClaimResult.DUPLICATE:
                report.duplicate[classification.value] += 1
                continue
            try:
                out = enrich(record, classification, identity, stamp, batch.trace.header(record, identity))
                self._check_size(out)
            except Unroutable as reason:
                self._reject_record(record, reason, batch)
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._reject_record(record, _internal_error(record, error), batch)
                continue
            batch.out.append(out)
            report.routed[classification.value] += 1
            if result is not ClaimResult.FRESH:
                report.redelivered += result is ClaimResult.OWNED
                report.id_conflict += result is ClaimResult.CONFLICT
        if results is None:
            report.unclaimed += report.routed.total()

    def _check_size(self, out: OutRecord) -> None:
        size = len(out.value) + len(out.key or b"")
        if size > self._publisher.max_record_bytes:
            raise Unroutable(Reason.RECORD_TOO_LARGE, f"{size} bytes, over {self._publisher.max_record_bytes}")

    def _reject_record(self, record: DecodedRecord, reason: Unroutable, batch: Decided) -> None:
        """Dead-letter a decoded record, scrubbed; if it cannot be scrubbed its content does not leave."""
        value: bytes | None = None
        complete(record, self._limits)  # a letter carries the whole event, as far as that can be read
        if reason.reason is not Reason.SCRUB_FAILED:
            try:
                self._scrub_event(record.event, batch.report)
                value = dumps_or_none(record.event)
            except Unroutable:
                owner = record.message.owner(record.index)
                log.warning("The dead letter of %s carries no value: it cannot be scrubbed", owner)
        self._reject(Rejected(record.message, record.index, reason.reason, reason.detail, value), batch)

    def _reject(self, rejected: Rejected, batch: Decided) -> None:
        batch.out.append(dead_letter(rejected, self._publisher.max_record_bytes))
        batch.report.dead_lettered[rejected.reason.value] += 1


def sieve_of(rules: RoutingRules) -> Sieve:
    """Return the sieve of a revision of the rules: it drops routine successes and rules on everything else."""

    def sieve(event: Event) -> Ruling | None:
        try:
            validate(event)
            classification = classify(event, rules)
            return None if is_filtered(event, classification, rules) else classification
        except Unroutable as reason:
            return reason
        except Exception as error:  # noqa: BLE001 - one record's fault must not take its message along
            log.error("A record raised %s and goes to the dead letters", where(error))
            return Unroutable(Reason.INTERNAL_ERROR, type(error).__name__)

    return sieve


def _early_randomness(record: DecodedRecord) -> int | None:
    """Return the record's sampling randomness if its content is not needed for it (so not scrubbed either)."""
    randomness = sample.trace_randomness(record.event)
    if randomness is not None:
        return randomness
    event_id = own_id(record.event)
    return None if event_id is None else sample.digest_randomness(id_digest(record.service, event_id))


def _internal_error(record: DecodedRecord, error: Exception) -> Unroutable:
    """Log a record's unexpected failure and return it as a rejection."""
    log.error("Record %s raised %s and goes to the dead letters", record.message.owner(record.index), where(error))
    return Unroutable(Reason.INTERNAL_ERROR, type(error).__name__)

"""Masks personal data and secrets in texts, events and OTLP requests.

    scrubber = Scrubber(load_table(), SubjectTokenizer(key))
    counts = scrubber.scrub_event(event)      # Counter({"EMAIL": 1, "SUBJECT": 1})

What counts as personal data stands in `pii.yaml`. Numbers, booleans and identity fields are never altered;
subject fields become keyed tokens before any pattern runs. A clean record costs one pass of one automaton.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel.detector import PART, Detector
from otel.keys import KeyClassifier
from otel.scrub_otlp import OtlpScrubber
from otel.segments import decode, encode, set_item, without_json_numbers
from otel.subject import SubjectTokenizer
from otel.table import PiiTable
from otel.walk import SECRET_COUNT, SUBJECT_COUNT, Engine, Mode, Walk

__all__ = ["SECRET_COUNT", "SUBJECT_COUNT", "Finding", "Mode", "ScrubResult", "Scrubber"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Personal data of one type at `text[start:end]`, in characters."""

    type: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """A text with its personal data masked, and how many of each type there were."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)


class Scrubber:
    """Finds and masks by one table. Safe to share between threads; compiling takes some 50 ms, so keep it.

    `mode`: `scrub` masks, `detect` only counts, `off` looks for nothing. Subject fields become tokens in every
    mode if there is a tokenizer (they are the unit of privacy, not a matter of masking); without one they
    are ordinary text, so an address in `subject_id` is masked like any other.
    """

    def __init__(self, table: PiiTable, subject_tokens: SubjectTokenizer | None, mode: Mode = "scrub") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode {mode!r}; one of {', '.join(get_args(Mode))}")
        keys = KeyClassifier(table)
        detector = Detector(table, keys)
        self.mode = mode
        self._engine = Engine(detector, keys, subject_tokens, mode, table.secret_keys.mask)
        self._detector = detector
        self._json_needs_look: Callable[[bytes], bool] = detector.json_needs_look
        proto_needs_look: Callable[[bytes], bool] = detector.proto_needs_look
        if mode == "off":
            has_subject = detector.has_subject if subject_tokens is not None else _never
            self._json_needs_look = has_subject
            proto_needs_look = detector.proto_has_subject if subject_tokens is not None else _never
        self._otlp = OtlpScrubber(proto_needs_look, lambda: Walk(self._engine))

    def find(self, text: str) -> list[Finding]:
        """Where personal data stands in `text`, in order. Does not depend on the mode; nothing is altered."""
        data = encode(text)
        if not self._detector.json_needs_look(PART + data):
            return []
        hits = self._detector.scan(PART + data)
        moved = [hit.moved(-1) for hit in hits]
        findings = []
        at_byte = at_char = 0
        for hit in without_json_numbers(data, moved):
            start = at_char + len(decode(data[at_byte : hit.start]))
            at_char = start + len(decode(data[hit.start : hit.end]))
            at_byte = hit.end
            findings.append(Finding(hit.type, start, at_char))
        return findings

    def scrub_text(self, text: str) -> ScrubResult:
        """`text` with masks. JSON in it stays JSON; its numbers stay as they are."""
        if not self._json_needs_look(PART + encode(text)):
            return ScrubResult(text)
        holder = [text]
        walk = Walk(self._engine)
        walk.text(set_item, holder, 0, "", text)
        walk.finish()
        return ScrubResult(holder[0], walk.counts)

    def scrub_event(self, event: dict[str, Any]) -> Counter[str]:
        """Cleans an event in place (maps, lists and texts at any depth, names of keys too); returns counts."""
        try:
            if not self._json_needs_look(orjson.dumps(event)):
                return Counter()
        except TypeError:  # deeper than orjson goes, an integer beyond 64 bits, a lone surrogate: look closely
            pass
        walk = Walk(self._engine)
        walk.tree(event)
        return walk.finish().counts

    def scrub_otlp(self, request: ExportLogsServiceRequest) -> Counter[str]:
        """Cleans a log export request in place: bodies, attributes, resources, scopes, names; returns counts.

        Where it masks, fields that this version of OTLP does not know are dropped: no pattern looks into them.
        """
        if self.mode == "scrub":
            request.DiscardUnknownFields()
        counts: Counter[str] = Counter()
        for walk in self._otlp.scrub(request):
            counts.update(walk.counts)
        return counts


def _never(_: bytes) -> bool:
    return False

"""Messages for fuzzing the router: valid ones of every form, then broken with their structure in mind.

Everything is drawn from one `random.Random`, so a case is told again by its number.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from fuzz_words import ENCODINGS, HEADERS, NAMES, NUMBERS, OTLP_NAMES, RAW, TEXTS
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData

GOLDEN = Path(__file__).with_name("data") / "golden" / "captured"
BOMB = 3_000_000
"""Bytes that a decompression bomb unfolds to: over the small limits, and quick to make."""


def field_of(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field, deeper than the library would build it."""
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


@dataclass
class Case:
    """One message as a producer could send it."""

    value: bytes | None
    headers: dict[str, bytes] = field(default_factory=dict)
    key: bytes | None = None


class Maker:
    """Draws cases from one random stream."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self._forms: list[Callable[[], Case]] = [
            *(self.golden, self.golden, self.single, self.array, self.lines, self.otlp_json, self.otlp_json),
            *(self.otlp_protobuf, self.otlp_protobuf, self.otlp_protobuf, self.noise, self.bomb),
        ]

    def case(self) -> Case:
        """A message of any form; most are broken, most are broken again after that."""
        draw = self.draw
        case = draw.choice(self._forms)()
        for _ in range(draw.choice((0, 0, 1, 1, 2, 4, 8))):
            case.value = self.break_bytes(case.value or b"")
        if draw.random() < 0.15:
            self.compress(case)
            if draw.random() < 0.4:
                case.value = self.break_bytes(case.value or b"")
        while draw.random() < 0.25:
            name = draw.choice([*HEADERS])
            case.headers[name] = draw.choice(HEADERS[name])
        case.key = draw.choice((None, None, b"k", b"", b"\xff" * 9))
        if draw.random() < 0.01:
            case.value = draw.choice((None, b"", b"\n", b"\xef\xbb\xbf", b" "))
        return case

    # --- forms ---

    def golden(self) -> Case:
        """A captured message, or two of them in one."""
        paths = sorted(GOLDEN.glob("*.bin"))
        path = self.draw.choice(paths)
        headers = json.loads(path.with_suffix("").with_suffix(".headers.json").read_text())
        encoded = {name: text.encode() for name, text in headers.items()}
        value = path.read_bytes()
        if self.draw.random() < 0.2:
            value += self.draw.choice(paths).read_bytes()
        return Case(value, encoded if self.draw.random() < 0.7 else {})

    def single(self) -> Case:
        """One JSON event."""
        return Case(self.json(self.event()))

    def array(self) -> Case:
        """A JSON array."""
        return Case(self.json([self.value(1) if self.draw.random() < 0.1 else self.event() for _ in range(self.few())]))

    def lines(self) -> Case:
        """Newline-delimited JSON, now and then with OTLP requests or broken lines among it."""
        parts = []
        for _ in range(self.few()):
            kind = self.draw.random()
            parts.append(self.json(self.request() if kind < 0.1 else self.value(2) if kind < 0.2 else self.event()))
        return Case(self.draw.choice((b"\n", b"\r\n", b"\n\n", b"\r")).join(parts))

    def otlp_json(self) -> Case:
        """An OTLP request as JSON."""
        return Case(self.json(self.request()))

    def otlp_protobuf(self) -> Case:
        """An OTLP request as protobuf, with any values."""
        logs = LogsData()
        for _ in range(self.few(2)):
            resource = logs.resource_logs.add()
            self.fill_pairs(resource.resource.attributes)
            for _ in range(self.few(2)):
                scope = resource.scope_logs.add()
                for _ in range(self.few()):
                    self.fill_record(scope.log_records.add())
        return Case(logs.SerializeToString())

    def noise(self) -> Case:
        """Bytes without sense."""
        head = self.draw.choice(
            (b"", b"\n", b"{", b"[", b'{"resourceLogs":[', b"\n\x0a", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
        )
        return Case(head + self.draw.randbytes(self.draw.randrange(200)))

    def bomb(self) -> Case:
        """A message that is far larger than it looks, or far deeper, or has far more records."""
        draw, deep = self.draw, self.draw.choice((30, 100, 300, 1100, 5000))
        kind = draw.randrange(6)
        if kind == 0:
            case = Case(draw.choice((b"\0", b" ", b"{}\n", b"\n")) * (BOMB // 3))
            self.compress(case, always=True)
            return case
        if kind == 1:
            return Case(b'{"a":' * deep + b"1" + b"}" * deep)
        if kind == 2:
            return Case(b"[" * deep + b"]" * deep)
        if kind == 3:
            return Case(draw.choice((b"{}\n", b"[],", b"\x0a\x00", b"1\n")) * draw.choice((50, 25_000)))
        if kind == 4:
            value = field_of(1, b"x")
            for _ in range(min(deep, 300)):
                array = draw.random() < 0.5
                value = (
                    field_of(5, field_of(1, value))
                    if array
                    else field_of(6, field_of(1, b"\n\x01k" + field_of(2, value)))
                )
            return Case(field_of(1, field_of(2, field_of(2, field_of(5, value)))))
        logs = LogsData()
        body = AnyValue(string_value='{"a":' * deep + "1" + "}" * deep)
        logs.resource_logs.add().scope_logs.add().log_records.add(body=body)
        return Case(logs.SerializeToString())

    # --- parts ---

    def few(self, most: int = 4) -> int:
        """A small number, seldom 0, seldom more than the small limits allow."""
        return self.draw.choice((0, 1, 1, 1, *range(1, most + 1), *((30,) if self.draw.random() < 0.05 else ())))

    def event(self) -> dict[str, Any]:
        """An event with some of the fields that matter, mostly of the right type."""
        draw = self.draw
        made: dict[str, Any] = {
            "event_id": f"e{draw.randrange(6)}",
            "constitutional_hash": "cdd01ef066bc6cf2",
            "violations": ["v", {"type": "w"}],
            "event_type": draw.choice(("policy_evaluation", "model_call")),
            "compliance_score": draw.choice((0.2, 0.79, 0.9, 0.99, 1)),
            "source": draw.choice(("human_review", "app")),
            "status": draw.choice(("success", "failure")),
            "trace_id": f"{draw.getrandbits(128):032x}",
            "prompt": "a question",
        }
        event = {name: value for name, value in made.items() if draw.random() < 0.45}
        while draw.random() < 0.4:
            event[draw.choice(NAMES)] = self.value(3)
        return event

    def value(self, depth: int) -> Any:
        """Any JSON value."""
        draw = self.draw
        kind = draw.random()
        if depth and kind < 0.2:
            return {draw.choice(NAMES): self.value(depth - 1) for _ in range(self.few(3))}
        if depth and kind < 0.4:
            return [self.value(depth - 1) for _ in range(self.few(3))]
        if kind < 0.5:
            return draw.choice((None, True, False))
        return draw.choice(NUMBERS) if kind < 0.7 else draw.choice(TEXTS)

    def request(self) -> Any:
        """An OTLP request as JSON has it, where each part may be something else."""
        records = [
            {
                "body": self.any_value(3),
                "attributes": [{"key": self.draw.choice(NAMES), "value": self.any_value(2)} for _ in range(self.few())],
                "timeUnixNano": self.draw.choice((*TEXTS, *NUMBERS)),
                "traceId": self.draw.choice(TEXTS),
                "eventName": self.draw.choice(TEXTS),
            }
            for _ in range(self.few())
        ]
        attributes = [{"key": self.draw.choice(NAMES), "value": self.any_value(2)} for _ in range(self.few())]
        request = {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}]}
        while self.draw.random() < 0.4:
            self.spoil(request)
        return request

    def any_value(self, depth: int) -> Any:
        """An OTLP `AnyValue` as JSON has it."""
        draw = self.draw
        kind = draw.choice(
            ("stringValue", "stringValue", "intValue", "doubleValue", "boolValue", "arrayValue", "kvlistValue")
        )
        if kind == "arrayValue":
            return {kind: {"values": [self.any_value(depth - 1) for _ in range(self.few(2))] if depth else []}}
        if kind == "kvlistValue":
            names = [draw.choice(NAMES) for _ in range(self.few(3))] if depth else []
            return {kind: {"values": [{"key": name, "value": self.any_value(depth - 1)} for name in names]}}
        if kind == "stringValue" and draw.random() < 0.5:
            return {kind: json.dumps(self.event())}
        return {kind: draw.choice((*TEXTS, *NUMBERS, True, None))}

    def spoil(self, tree: Any) -> None:
        """Put something else in place of one part of a tree, or another name in place of one of OTLP's."""
        draw, holders = self.draw, [tree]
        for holder in holders:
            inner = holder.values() if isinstance(holder, dict) else holder
            holders.extend(item for item in inner if isinstance(item, dict | list) and item)
        holder = draw.choice(holders)
        if isinstance(holder, list):
            holder[draw.randrange(len(holder))] = self.value(2)
        elif draw.random() < 0.5:
            holder[draw.choice([*holder])] = self.value(2)
        else:
            holder[draw.choice(OTLP_NAMES)] = holder.pop(draw.choice([*holder]))

    def fill_pairs(self, pairs: Any, depth: int = 2) -> None:
        """Add key-value pairs, now and then one name twice."""
        for _ in range(self.few(3)):
            self.fill_value(pairs.add(key=self.draw.choice(NAMES)).value, depth)

    def fill_value(self, value: AnyValue, depth: int) -> None:
        """Make any value that protobuf can hold, or leave it empty."""
        draw = self.draw
        kind = draw.randrange(9 if depth else 6)
        if kind == 0:
            value.string_value = json.dumps(self.event())
        elif kind == 1:
            value.string_value = draw.choice(TEXTS)
        elif kind == 2:
            value.int_value = draw.choice((0, 1, -1, 2**63 - 1, -(2**63)))
        elif kind == 3:
            value.double_value = draw.choice((0.0, -0.0, 0.5, float("nan"), float("inf"), float("-inf"), 5e-324))
        elif kind == 4:
            value.bytes_value = draw.randbytes(draw.randrange(20))
        elif kind == 6:
            self.fill_pairs(value.kvlist_value.values, depth - 1)
        elif kind == 7:
            for _ in range(self.few(3)):
                self.fill_value(value.array_value.values.add(), depth - 1)
        elif kind == 8:
            value.bool_value = draw.random() < 0.5

    def fill_record(self, record: LogRecord) -> None:
        """Make a log record whose ids and times may be anything."""
        draw = self.draw
        self.fill_value(record.body, 3)
        self.fill_pairs(record.attributes)
        record.trace_id = draw.randbytes(draw.choice((0, 0, 16, 16, 15, 40)))
        record.span_id = draw.randbytes(draw.choice((0, 0, 8, 8, 1)))
        record.time_unix_nano = draw.choice((0, 1, 1_767_225_600_000_000_001, 2**63, 2**64 - 1))
        record.observed_time_unix_nano = draw.choice((0, 2**64 - 1))
        record.event_name = draw.choice(("", "", *TEXTS))

    def json(self, value: Any) -> bytes:
        """Write JSON as some writer would, and put what none would write in places."""
        draw = self.draw
        text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
        if draw.random() < 0.1 and ":" in text:
            at = draw.choice([place for place, letter in enumerate(text) if letter == ":"])
            text = text[: at + 1] + draw.choice(RAW) + text[at + 1 :].lstrip(" 0123456789.truefalsn")
        if draw.random() < 0.1 and text.startswith("{"):
            text = '{"event_id": "twice", "compliance_score": [],' + text[1:]
        return text.encode("utf-8", "surrogatepass")

    # --- bytes ---

    def compress(self, case: Case, *, always: bool = False) -> None:
        """Compress a message, and say so, or something else, in its header."""
        draw, value = self.draw, case.value or b""
        name = draw.choice((b"gzip", b"zstd"))
        if name == b"gzip":
            half = draw.randrange(len(value) + 1) if draw.random() < 0.3 else len(value)
            members = [part for part in (value[:half], value[half:]) if part] or [b""]
            case.value = b"".join(gzip.compress(member, 1, mtime=0) for member in members)
        else:
            options = {"write_content_size": draw.random() < 0.5, "write_checksum": draw.random() < 0.5}
            case.value = zstandard.ZstdCompressor(level=1, **options).compress(value)
        if always or draw.random() < 0.85:
            case.headers["content-encoding"] = name
        else:
            case.headers["content-encoding"] = draw.choice(ENCODINGS)

    def break_bytes(self, data: bytes) -> bytes:
        """Change a message's bytes at one place."""
        draw = self.draw
        at, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
        kind = draw.randrange(8)
        if kind == 0 and data:
            spot = draw.randrange(len(data))
            return data[:spot] + bytes([data[spot] ^ (1 << draw.randrange(8))]) + data[spot + 1 :]
        if kind == 1:
            return data[:at]
        if kind == 2:
            return data[:at] + data[end:]
        if kind == 3:
            return data[:end] + data[at:][:100_000]
        if kind == 4:
            return (
                data[:at] + draw.choice((b"\xff", b"\xed\xa0\x80", b"\x80" * 9 + b"\x01", b"\x00", b"\n")) + data[at:]
            )
        if kind == 5:
            return data[:at] + draw.choice(RAW).encode("utf-8", "surrogatepass") + data[at:]
        if kind == 6:
            other = draw.choice((self.single, self.otlp_json, self.otlp_protobuf))().value or b""
            return data[:at] + other[draw.randrange(len(other) + 1) :] + data[at:]
        return data[:at] + draw.randbytes(4) + data[at + 4 :]

"""Requests for fuzzing `POST /v1/logs`: personal data planted anywhere, then broken with their structure in mind.

Everything is drawn from one `random.Random`, so a case is told again by its number.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fuzz_cases import Maker
from fuzz_words import NAMES, TEXTS
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel.keys import KeyClassifier, KeyKind
from otel.table import load_table

MAIL = "ada.lovelace@planted.example"
"""An address is one whatever stands beside it, so it is looked for in every case, however broken."""
SECRET = "hunter2planted"
ADDRESS = "203.0.113.77"
PLANTED = [
    *(MAIL, "4111 1111 1111 1111", "123-45-6789", ADDRESS, "2001:db8::8a2e:370:7334", "+44 20 7946 0958"),
    *("GB82WEST12345698765432", f"password={SECRET}"),
]
LOOKED_FOR = [*PLANTED[:-1], SECRET]
TOKEN = "a token of the fuzzer"
KEYS = KeyClassifier(load_table())
PLAIN_NAMES = [name for name in NAMES if not name.endswith("version")]
"""Four numbers with dots under the others are a version, not an address."""
UNKNOWN_FIELD = 25
PROTOBUF, JSON = "application/x-protobuf", "application/json"
TYPES = [PROTOBUF, JSON, "Application/JSON; charset=utf-8", "application/json;charset=latin-1", "text/plain", "", ";"]
ENCODINGS = ["gzip", "GZIP", "x-gzip", "identity", "", "br", "gzip, gzip", "\xff"]


@dataclass
class Post:
    """One request as a client could send it."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    """Its bytes are as some client would write them; otherwise only `MAIL` is surely personal data still."""


class PostMaker(Maker):
    """Draws requests from one random stream."""

    _planting = True

    def post(self) -> Post:
        """A request of any form; half are as they should be, the others broken in one way or more."""
        draw = self.draw
        form: Callable[[], Post] = draw.choice([self.as_protobuf] * 4 + [self.as_json] * 4 + [self.other])
        post = form()
        for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 3))):
            post.body, post.whole = self.break_bytes(post.body), False
        if draw.random() < 0.3:
            post.body = self.packed(post.body)
            post.headers["content-encoding"] = draw.choice(("gzip", "gzip", "gzip", *ENCODINGS))
            if draw.random() < 0.3:
                post.body, post.whole = self.break_bytes(post.body), False
        if draw.random() < 0.05:
            post.headers[draw.choice(("content-type", "content-encoding"))] = draw.choice((*TYPES, *ENCODINGS))
        if draw.random() < 0.97:
            post.headers["authorization"] = f"Bearer {TOKEN}"
        return post

    # --- forms ---

    def as_protobuf(self) -> Post:
        """An OTLP request as protobuf, now and then with a field that OTLP has not got."""
        body = self.message().SerializeToString()
        if self.draw.random() < 0.1:
            text = self.draw.choice(PLANTED).encode()
            body += bytes([UNKNOWN_FIELD << 3 & 127 | 2 | 128, UNKNOWN_FIELD >> 4, len(text)]) + text
        return Post(body, {"content-type": PROTOBUF})

    def as_json(self) -> Post:
        """The same as JSON; seldom with parts of another shape."""
        tree = MessageToDict(self.message())
        for resource in tree.get("resourceLogs", []):
            for scope in resource.get("scopeLogs", []):
                for record in scope.get("logRecords", []):
                    for name, size in (("traceId", 16), ("spanId", 8)):
                        raw = base64.b64decode(record.pop(name, ""))
                        if len(raw) in (0, size) or self.draw.random() < 0.05:
                            record[name] = raw.hex()
        spoilt = tree and self.draw.random() < 0.3
        if spoilt:
            self.spoil(tree)
        body = json.dumps(tree, ensure_ascii=self.draw.random() < 0.5).encode("utf-8", "surrogatepass")
        return Post(body, {"content-type": JSON}, whole=not spoilt)

    def other(self) -> Post:
        """What the router's fuzzer sends to Kafka."""
        case = self.draw.choice((self.golden, self.noise, self.bomb, self.otlp_json, self.single))()
        headers = {"content-type": self.draw.choice((PROTOBUF, JSON))}
        if encoding := case.headers.get("content-encoding"):
            headers["content-encoding"] = encoding.decode("latin-1")
        return Post(case.value or b"", headers, whole=False)

    # --- parts ---

    def message(self) -> ExportLogsServiceRequest:
        """A request with anything in any place, and planted data where OTLP has a text."""
        draw, made = self.draw, ExportLogsServiceRequest()
        for _ in range(self.few(2)):
            resource = made.resource_logs.add(schema_url=self.text())
            self.fill_pairs(resource.resource.attributes)
            if draw.random() < 0.1:
                resource.resource.entity_refs.add(schema_url=self.text(), type=self.text(), id_keys=[self.text()])
            for _ in range(self.few(2)):
                scope = resource.scope_logs.add(schema_url=self.text())
                scope.scope.name, scope.scope.version = self.text(), self.text().replace(ADDRESS, "1.2.3")
                self.fill_pairs(scope.scope.attributes)
                for _ in range(self.few()):
                    record = scope.log_records.add()
                    self.fill_record(record)
                    record.event_name, record.severity_text = self.text(), self.text()
                    if draw.random() < 0.02:
                        record.body.string_value = "x " * draw.choice((3_000, 30_000))
        return made

    def text(self) -> str:
        """A text, or none, or planted data."""
        return self.draw.choice(("", "", "plain", self.draw.choice(TEXTS), self.planted()))

    def planted(self) -> str:
        """Personal data, alone or as texts hold it; nothing where an identity stands, which is never altered."""
        draw, value = self.draw, self.draw.choice(PLANTED)
        if not self._planting:
            return "an identity"
        kind = draw.randrange(7)
        if kind == 0:
            return f"Grüße, {value} and so on"
        if kind == 1:
            return json.dumps({"b": [value], "n": 12345678901234567890})
        if kind == 2:
            return json.dumps({"b": json.dumps({"c": f"\t{value}"})})
        if kind == 3:
            return '{"b":"' + "".join(f"\\u{ord(letter):04x}" for letter in value) + '"}'
        return f"line\n{value}\nline" if kind == 4 else value

    def fill_pairs(self, pairs: Any, depth: int = 2) -> None:
        """Add key-value pairs; a name may be planted data, and what stands under an identity's name is none."""
        for _ in range(self.few(3)):
            draw = self.draw
            name = draw.choice((*PLAIN_NAMES, "password", "user.id", "subject_id", "phone"))
            if self._planting and draw.random() < 0.1:
                name = f"from {draw.choice(PLANTED)}"
            before = self._planting
            self._planting = before and KEYS.kind(name) is not KeyKind.IDENTITY
            value = pairs.add(key=name).value
            if name == "password":
                value.string_value = SECRET
            else:
                self.fill_value(value, depth)
            self._planting = before

    def fill_value(self, value: AnyValue, depth: int) -> None:
        """Any value, often planted data."""
        kind = self.draw.random()
        if kind < 0.3:
            value.string_value = self.planted()
        elif kind < 0.4:
            value.bytes_value = self.draw.choice((b"", b"\xff ")) + self.planted().encode()
        else:
            super().fill_value(value, depth)

    def packed(self, body: bytes) -> bytes:
        """The body as gzip, of one member or more."""
        cut = self.draw.choice((0, len(body) // 2))
        members = [body[:cut], body[cut:]] if cut else [body]
        return b"".join(gzip.compress(member, 1, mtime=0) for member in members)

"""What must hold for one request to `POST /v1/logs`, whatever it is, and for what reaches Kafka of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError
from fastapi import Depends, FastAPI
from fuzz_ingest_cases import JSON, KEYS, LOOKED_FOR, MAIL, PROTOBUF, TOKEN, Post
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from app.settings import Settings, load_settings
from app.store import Database
from app.web.guard import Guard
from app.web.identity import Authenticator, Right
from app.web.ingest import OtlpIngest
from app.web.ingest_route import add_ingest
from app.web.otlp import OtlpRejected, parse_export_request
from app.web.otlp_split import count_records
from app.web.sessions import Signer
from otel.keys import KeyKind
from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table

STATUSES = frozenset({200, 400, 401, 413, 415, 429, 503})
BROKER_LIMIT = 12_000
SUBJECTS = ("subject_id", "user.id", "enduser.id", "id")


class Broken(AssertionError):
    """A property does not hold."""


def check(holds: bool, what: str) -> None:
    """Raise `Broken` where a property does not hold."""
    if not holds:
        raise Broken(what)


class MemoryBatch:
    """What the endpoint asks of a producer's batch."""

    value = b""

    def append(self, *, key: None, value: bytes, timestamp: None, headers: list[Any]) -> object:
        """Take the one message."""
        check(not self.value, "two messages in a batch")
        check(headers == [("content-type", PROTOBUF.encode())], f"headers {headers}")
        self.value = value
        return self

    def close(self) -> None:
        """Nothing more comes."""


class MemoryProducer:
    """Keeps what it is sent; refuses what is larger than a broker's own limit, and all of it while that is away."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.away = False

    def create_batch(self) -> MemoryBatch:
        """An empty batch."""
        return MemoryBatch()

    async def partitions_for(self, topic: str) -> set[int]:
        """The topic's partitions."""
        return {0, 1}

    async def send_batch(self, batch: MemoryBatch, topic: str, *, partition: int) -> asyncio.Future[None]:
        """Take a batch; its acknowledgement is what is awaited next."""
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.away:
            acknowledged.set_exception(KafkaConnectionError())
        elif len(batch.value) > BROKER_LIMIT:
            acknowledged.set_exception(MessageSizeTooLargeError())
        else:
            self.values.append(batch.value)
            acknowledged.set_result(None)
        return acknowledged


class Rig:
    """The endpoint with small bounds, over memory instead of Kafka."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = load_settings(
            {
                "FLYWHEEL_DATA_DIR": str(folder),
                "FLYWHEEL_WEB__TOKEN": TOKEN,
                # Refused tokens are part of what is sent; that too many shut a caller out is tested elsewhere.
                "FLYWHEEL_WEB__FAILURES_PER_MINUTE": "1000000000",
                "FLYWHEEL_WEB__MAX_BODY_BYTES": "100000",
                "FLYWHEEL_WEB__MAX_DECOMPRESSED_BYTES": "200000",
                "FLYWHEEL_ROUTING__MAX_MESSAGE_BYTES": "24096",
                "FLYWHEEL_ROUTING__MAX_RECORDS": "5",
            }
        )
        self.ingest = OtlpIngest(self.settings)
        self.producer = self.ingest._producer = MemoryProducer()
        self.again = Scrubber(load_table(), SubjectTokenizer(b"another key, of 32 bytes........"))
        self.app = FastAPI()
        signer = Signer("a key of the fuzzer's, of 32 bytes", 1.0)
        self.database = Database("sqlite://")
        guard = Guard(self.settings, Authenticator(self.settings, lambda: self.database, signer), signer)
        add_ingest(self.app, self.ingest, [Depends(guard.needs(Right.INGEST, counted=False))])
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1")

    async def run(self, post: Post, draw: random.Random) -> tuple[int, int]:
        """Send one request and check all that follows; returns the status and the records that Kafka has."""
        self.producer.values.clear()
        self.producer.away = draw.random() < 0.02
        headers = [(name.encode(), value.encode("latin-1")) for name, value in post.headers.items()]
        answer = await self.client.post("/v1/logs", content=post.body, headers=headers)
        check(answer.status_code in STATUSES, f"status {answer.status_code}: {answer.text[:200]}")
        check(("retry-after" in answer.headers) == (answer.status_code in (429, 503)), "Retry-After")
        check(TOKEN not in answer.text, "the token is in the answer")
        told = _told(answer)
        check(not any(value in str(told) for value in LOOKED_FOR), "an answer quotes personal data")
        kept = [ExportLogsServiceRequest.FromString(value) for value in self.producer.values]
        if answer.status_code != 200:
            check(not kept or answer.status_code == 503, "refused, and in Kafka all the same")
            return answer.status_code, 0
        sent = self._sent(post)
        # Fields of a newer protocol cannot be scrubbed, so they are not passed on (`_check_clean`).
        sent.DiscardUnknownFields()
        rejected = told.partial_success.rejected_log_records
        check(sum(map(count_records, kept)) + rejected == count_records(sent), "records are lost or made up")
        if not rejected:
            check(
                _bones(sent) == sum((_bones(part) for part in kept), Counter()), "an identity or a number was altered"
            )
        for part, value in zip(kept, self.producer.values, strict=True):
            self._check_clean(part, value, post)
        return 200, count_records(sent) - rejected

    def _sent(self, post: Post) -> ExportLogsServiceRequest:
        """What was sent, as the endpoint reads it (whose reading has tests of its own)."""
        named = {name.lower(): value for name, value in post.headers.items()}
        try:
            return parse_export_request(
                post.body, named["content-type"], named.get("content-encoding"), self.ingest.limits
            )
        except OtlpRejected as refusal:
            raise Broken(f"taken, and refused when read again: {refusal.message}") from refusal

    def _check_clean(self, part: ExportLogsServiceRequest, value: bytes, post: Post) -> None:
        check(len(value) <= BROKER_LIMIT, "a message larger than the broker takes")
        check(count_records(part) <= self.settings.routing.max_records, "more records than the router takes")
        for text in _texts(part):
            for planted in LOOKED_FOR if post.whole else [MAIL]:
                for form in (text, text.replace("\\", ""), _unescaped(text)):
                    check(planted not in form, f"{planted!r} reached Kafka in {text[:300]!r}")
        copy = ExportLogsServiceRequest.FromString(value)
        copy.DiscardUnknownFields()
        check(copy.ByteSize() == len(value), "unknown fields reached Kafka")
        found = self.again.scrub_otlp(copy)
        check(not found, f"scrubbing what reached Kafka finds {dict(found)}")


def _told(answer: httpx.Response) -> Any:
    message = ExportLogsServiceResponse() if answer.status_code == 200 else Status()
    if answer.headers["content-type"] == PROTOBUF:
        message.ParseFromString(answer.content)
    else:
        check(answer.headers["content-type"] == JSON, f"an answer of type {answer.headers['content-type']}")
        Parse(answer.content, message)
    return message


def _texts(request: ExportLogsServiceRequest) -> Iterator[str]:
    """All texts and names, but for those under an identity's name."""
    for resource in request.resource_logs:
        yield resource.schema_url
        yield from _pair_texts(resource.resource.attributes)
        for entity in resource.resource.entity_refs:
            yield from (entity.schema_url, entity.type, *entity.id_keys, *entity.description_keys)
        for scope in resource.scope_logs:
            yield from (scope.schema_url, scope.scope.name, scope.scope.version)
            yield from _pair_texts(scope.scope.attributes)
            for record in scope.log_records:
                yield from (record.event_name, record.severity_text)
                yield from _value_texts(record.body)
                yield from _pair_texts(record.attributes)


def _pair_texts(pairs: Any) -> Iterator[str]:
    for pair in pairs:
        yield pair.key
        if KEYS.kind(pair.key) is not KeyKind.IDENTITY:
            yield from _value_texts(pair.value)


def _value_texts(value: AnyValue) -> Iterator[str]:
    yield value.string_value
    yield value.bytes_value.decode("latin-1")
    for item in value.array_value.values:
        yield from _value_texts(item)
    yield from _pair_texts(value.kvlist_value.values)


def _unescaped(text: str) -> str:
    """The text with its JSON escapes read, as far as that can be done."""
    if "\\u" not in text:
        return text
    try:
        return str(json.loads('"' + text.replace('"', '\\"') + '"'))
    except ValueError:
        return text


def _bones(request: ExportLogsServiceRequest) -> Counter[str]:
    """Of each record what must come through as it was sent: its ids and times, identities, numbers."""
    bones: Counter[str] = Counter()
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                bones[repr((*_head(record), *_kept(record.body), *_kept_pairs(record.attributes)))] += 1
    return bones


def _head(record: LogRecord) -> tuple[Any, ...]:
    times = (record.time_unix_nano, record.observed_time_unix_nano)
    return (record.trace_id, record.span_id, *times, record.severity_number, record.flags)


def _kept_pairs(pairs: Any) -> Iterator[Any]:
    for pair in pairs:
        if KEYS.kind(pair.key) is KeyKind.IDENTITY:
            yield pair.SerializeToString(deterministic=True)
        elif pair.key not in SUBJECTS:
            yield from _kept(pair.value)


def _kept(value: AnyValue) -> Iterator[Any]:
    kind = value.WhichOneof("value")
    if kind in ("int_value", "double_value", "bool_value"):
        yield getattr(value, kind)
    for item in value.array_value.values:
        yield from _kept(item)
    yield from _kept_pairs(value.kvlist_value.values)

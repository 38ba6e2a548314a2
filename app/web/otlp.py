"""`POST /v1/logs`: reading requests and writing answers of OTLP/HTTP, without any server.

Source: OpenTelemetry Protocol specification 1.x, section OTLP/HTTP (binary and JSON encodings, status codes,
partial success), and the JSON mapping of opentelemetry-proto (ids in hex, not base64).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

RejectedStatus = Literal[400, 413, 415, 429, 503]

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# Each member copies the rest of the body: a few are tolerated, thousands of empty ones would cost minutes.
_MAX_GZIP_MEMBERS: Final = 16
_NO_OR_TRACE_ID: Final = (0, 16)
_NO_OR_SPAN_ID: Final = (0, 8)
_ID_BYTES: Final = {"traceId": 16, "trace_id": 16, "spanId": 8, "span_id": 8}
# google.rpc.Code by HTTP status; clients may log it, the HTTP status decides what they do.
_RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 413: 3, 415: 3, 429: 8, 500: 13, 503: 14}
_UNKNOWN_CODE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpLimits:
    """How large a request may be: `max_body_bytes` as sent, `max_decoded_bytes` after decompression."""

    max_body_bytes: int
    max_decoded_bytes: int

    def __post_init__(self) -> None:
        if self.max_body_bytes <= 0 or self.max_decoded_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) must be positive and max_decoded_bytes "
                f"({self.max_decoded_bytes}) at least as large: a request without compression needs both"
            )


class OtlpRejected(Exception):
    """A request that gets an HTTP status other than 200.

    `retry_after`: seconds for the Retry-After header. By the specification clients retry 429 and 503 (and
    502, 504) and drop the data on any other status.
    """

    def __init__(self, status: RejectedStatus, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def parse_export_request(
    body: bytes, content_type: str, content_encoding: str | None, limits: OtlpLimits
) -> ExportLogsServiceRequest:
    """Decodes the body of `POST /v1/logs`; memory stays within `limits` whatever the body claims.

    Raises OtlpRejected: 415 for another type or encoding than protobuf or JSON, plain or gzip; 413 for too
    large a body, before or after decompression; 400 for what cannot be decoded.
    """
    media_type = _media_type(content_type)
    if len(body) > limits.max_body_bytes:
        raise _too_large("the body", limits.max_body_bytes)
    data = _decompress(body, content_encoding, limits.max_decoded_bytes)
    if media_type == JSON:
        return _from_json(data)
    request = ExportLogsServiceRequest()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise OtlpRejected(400, f"the body is no protobuf ExportLogsServiceRequest ({error})") from error
    _drop_invalid_ids(request)
    return request


def answer_type(content_type: str | None) -> str:
    """The content type of the answer: that of the request where it is one of ours, else JSON."""
    return PROTOBUF if (content_type or "").partition(";")[0].strip().lower() == PROTOBUF else JSON


def success_body(content_type: str, rejected: int = 0, message: str = "") -> bytes:
    """The body that goes with 200: empty, or a partial success with the count of rejected log records.

    `message` says why records were rejected, or, with none rejected, warns.
    """
    response = ExportLogsServiceResponse()
    if rejected or message:
        response.partial_success.CopyFrom(
            ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message)
        )
    return _encode(response, content_type)


def error_body(status: int, message: str, content_type: str) -> bytes:
    """The body that goes with any status from 400 on: a google.rpc.Status."""
    return _encode(Status(code=_RPC_CODES.get(status, _UNKNOWN_CODE), message=message), content_type)


def _encode(message: Message, content_type: str) -> bytes:
    if answer_type(content_type) == PROTOBUF:
        data: bytes = message.SerializeToString()
        return data
    return orjson.dumps(json_format.MessageToDict(message))


def _media_type(content_type: str) -> str:
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    if media_type not in (PROTOBUF, JSON):
        raise OtlpRejected(415, f"content type {media_type[:80]!r} is not read here; send {PROTOBUF} or {JSON}")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(" \"'").lower() not in ("utf-8", "utf8"):
            raise OtlpRejected(415, f"charset {value.strip()[:40]!r} is not read here; send UTF-8")
    return media_type


def _decompress(body: bytes, content_encoding: str | None, limit: int) -> bytes:
    encoding = (content_encoding or "identity").strip().lower()
    if encoding in ("identity", ""):
        if len(body) > limit:
            raise _too_large("the body", limit)
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise OtlpRejected(415, f"content encoding {encoding[:40]!r} is not read here; send gzip or none")
    return _gunzip(body, limit)


def _gunzip(body: bytes, limit: int) -> bytes:
    """Decompresses all members (RFC 1952), never holding more than `limit` bytes and one."""
    pieces: list[bytes] = []
    size = 0
    for _ in range(_MAX_GZIP_MEMBERS):
        member = zlib.decompressobj(wbits=_GZIP_WINDOW)
        try:
            piece = member.decompress(body, limit - size + 1)
        except zlib.error as error:
            raise OtlpRejected(400, f"the body is not gzip, or damaged ({error})") from error
        size += len(piece)
        if size > limit:
            raise _too_large("the decompressed body", limit)
        pieces.append(piece)
        if not member.eof:
            raise OtlpRejected(400, "the gzip body is cut short")
        body = member.unused_data
        if not body.strip(b"\x00"):  # RFC 1952 readers take padding with zeros
            return b"".join(pieces)
    raise OtlpRejected(400, f"the gzip body has more than {_MAX_GZIP_MEMBERS} members; send one")


def _drop_invalid_ids(request: ExportLogsServiceRequest) -> None:
    """Removes trace and span ids of another size: receivers should take such a record as belonging to no trace.

    (Comments of `LogRecord.trace_id` and `span_id` in opentelemetry-proto.) Nor could an id be told from a text there.
    """
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                if len(record.trace_id) not in _NO_OR_TRACE_ID:
                    record.ClearField("trace_id")
                if len(record.span_id) not in _NO_OR_SPAN_ID:
                    record.ClearField("span_id")


def _too_large(what: str, limit: int) -> OtlpRejected:
    return OtlpRejected(413, f"{what} is larger than {limit} bytes; send smaller batches")


def _from_json(data: bytes) -> ExportLogsServiceRequest:
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise OtlpRejected(400, f"the body is no JSON ({error})") from error
    if not isinstance(tree, dict):
        raise OtlpRejected(400, 'the body must be a JSON object with "resourceLogs"')
    for record in _log_records(tree):
        _ids_to_base64(record)
    request = ExportLogsServiceRequest()
    try:
        json_format.ParseDict(tree, request, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OtlpRejected(400, f"the body is no OTLP/JSON log export request ({_short(error)})") from error
    return request


def _log_records(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """All log records in a JSON request; whatever has another shape is left for the parser to refuse."""
    level = [tree]
    for names in (("resourceLogs", "resource_logs"), ("scopeLogs", "scope_logs"), ("logRecords", "log_records")):
        lists = [node.get(name) for node in level for name in names]
        level = [child for some in lists if isinstance(some, list) for child in some if isinstance(child, dict)]
    return level


def _ids_to_base64(record: dict[str, Any]) -> None:
    """OTLP/JSON writes trace and span ids in hex, protobuf's own JSON mapping expects base64."""
    for name, size in _ID_BYTES.items():
        value = record.get(name)
        if value is None or value == "":
            continue
        try:
            raw = binascii.unhexlify(value)
        except (ValueError, TypeError):
            raw = b""
        if len(raw) != size:
            # The value is not told: whoever writes something else there may write anything.
            raise OtlpRejected(400, f"a {name} is not {2 * size} hex digits")
        record[name] = base64.b64encode(raw).decode()


def _short(error: Exception) -> str:
    """Where the parser stopped, without the value it stopped at, which may be somebody's data."""
    return str(error).partition(":")[0][:200]

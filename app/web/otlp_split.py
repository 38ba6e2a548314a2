"""Cutting an export request into requests that each fit into one Kafka message."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest


def count_records(request: ExportLogsServiceRequest) -> int:
    """How many log records a request holds."""
    return sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)


def fitting(request: ExportLogsServiceRequest, max_bytes: int, max_records: int) -> Iterator[ExportLogsServiceRequest]:
    """Requests with the same log records in the same order, each within both bounds, but for single records too large.

    A request without records yields nothing. One that fits is yielded itself; others are halved until they do.
    """
    count = count_records(request)
    if count <= 1 or (count <= max_records and request.ByteSize() <= max_bytes):
        if count:
            yield request
        return
    yield from chain.from_iterable(fitting(half, max_bytes, max_records) for half in halves(request))


def halves(request: ExportLogsServiceRequest) -> tuple[ExportLogsServiceRequest, ExportLogsServiceRequest]:
    """The first and the second half of a request's log records, each with its resource and scope."""
    middle = count_records(request) // 2
    return _between(request, 0, middle), _between(request, middle, None)


def _between(request: ExportLogsServiceRequest, start: int, stop: int | None) -> ExportLogsServiceRequest:
    part = ExportLogsServiceRequest()
    at = 0
    for resource_logs in request.resource_logs:
        resource_part = None
        for scope_logs in resource_logs.scope_logs:
            first, at = at, at + len(scope_logs.log_records)
            taken = scope_logs.log_records[max(0, start - first) : None if stop is None else max(0, stop - first)]
            if not taken:
                continue
            if resource_part is None:
                resource_part = part.resource_logs.add(schema_url=resource_logs.schema_url)
                if resource_logs.HasField("resource"):
                    resource_part.resource.CopyFrom(resource_logs.resource)
            scope_part = resource_part.scope_logs.add(schema_url=scope_logs.schema_url)
            if scope_logs.HasField("scope"):
                scope_part.scope.CopyFrom(scope_logs.scope)
            scope_part.log_records.extend(taken)
    return part

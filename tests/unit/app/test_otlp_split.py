"""Cutting requests into messages: every record once, in order, with its resource and scope, within both bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from app.web.otlp_split import count_records, fitting, halves

SHAPES = st.lists(st.lists(st.lists(st.integers(0, 400), max_size=6), max_size=3), max_size=4)


def request_of(shape: list[list[list[int]]]) -> ExportLogsServiceRequest:
    """Resources of scopes of records, whose texts have the lengths given."""
    made = ExportLogsServiceRequest()
    for r, scopes in enumerate(shape):
        resource = made.resource_logs.add(schema_url=f"r{r}")
        if r % 2:
            resource.resource.attributes.add(key="service.name").value.string_value = f"service {r}"
        for s, lengths in enumerate(scopes):
            scope = resource.scope_logs.add(schema_url=f"s{s}")
            if s % 2:
                scope.scope.name = f"scope {s}"
            for number, length in enumerate(lengths):
                scope.log_records.add(time_unix_nano=number).body.string_value = "x" * length
    return made


def told(request: ExportLogsServiceRequest) -> list[tuple[object, ...]]:
    """Each record with all that stands around it."""
    return [
        (r.schema_url, r.HasField("resource"), str(r.resource), s.schema_url, s.HasField("scope"), s.scope.name, str(x))
        for r in request.resource_logs
        for s in r.scope_logs
        for x in s.log_records
    ]


@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(1, 2_000), st.integers(1, 9))
def test_all_records_come_in_order_within_the_bounds(shape: list[list[list[int]]], size: int, count: int) -> None:
    request = request_of(shape)
    before = told(request)
    parts = list(fitting(request, size, count))
    assert [record for part in parts for record in told(part)] == before
    for part in parts:
        records = count_records(part)
        assert 1 <= records <= count
        assert records == 1 or part.ByteSize() <= size
    assert told(request) == before


@settings(max_examples=100, deadline=None)
@given(SHAPES)
def test_halves_are_halves(shape: list[list[list[int]]]) -> None:
    request = request_of(shape)
    first, second = halves(request)
    assert told(first) + told(second) == told(request)
    assert 0 <= count_records(second) - count_records(first) <= 1


def test_what_fits_is_not_copied() -> None:
    request = request_of([[[1, 2], [3]]])
    (part,) = fitting(request, 10_000, 3)
    assert part is request

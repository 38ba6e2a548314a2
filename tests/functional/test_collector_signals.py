"""The built collector with the committed configuration: spans and metrics in, Kafka and the Prometheus page out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import httpx
import pytest
from collector_parts import (
    KINDS,
    MOMENT,
    SPAN_ID,
    TRACE_ID,
    Json,
    Planted,
    Rig,
    attributes,
    everywhere,
    plain_attributes,
    send,
)
from systems import wait_until


@pytest.mark.parametrize("kind", KINDS)
def test_no_personal_data_in_traces(rig: Rig, kind: str) -> None:
    found, topic, name = KINDS[kind], rig.topics["traces"], f"traces-{kind}"
    shapes = attributes(everywhere(found))
    span = {
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
        "name": f"span {found.text}",
        "startTimeUnixNano": str(MOMENT),
        "endTimeUnixNano": str(MOMENT + 1),
        "status": {"code": 2, "message": f"failed {found.text}"},
        "attributes": shapes,
        "events": [{"timeUnixNano": str(MOMENT), "name": f"event {found.text}", "attributes": shapes}],
        "links": [{"traceId": TRACE_ID, "spanId": "00f067aa0ba902b8", "attributes": shapes}],
    }
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": [*attributes({"service.name": name}), *shapes]},
                "schemaUrl": f"https://schema/{found.text}",
                "scopeSpans": [{"scope": {"name": found.text, "attributes": shapes}, "spans": [span]}],
            }
        ]
    }
    send(rig.server, "traces", request)
    mine = lambda: [m for m in topic.messages() if name in json.dumps(m)]  # noqa: E731
    topic.wait(mine, "the span comes out")
    (message,) = mine()
    (resource,) = (r for r in message["resourceSpans"] if name in json.dumps(r))
    left = json.dumps(resource, ensure_ascii=False)
    for secret in found.secrets:
        assert secret not in left
    (out,) = resource["scopeSpans"][0]["spans"]
    assert out["name"] == f"span {found.clean}"
    assert out["status"]["message"] == f"failed {found.clean}"
    assert out["events"][0]["name"] == f"event {found.clean}"
    for place in (out["attributes"], out["events"][0]["attributes"], resource["resource"]["attributes"]):
        assert plain_attributes(place)["text"] == found.clean
    assert "links" not in out, "nothing can look at the attributes of links"
    assert out["droppedLinksCount"] == 1
    assert (out["startTimeUnixNano"], out["endTimeUnixNano"]) == (str(MOMENT), str(MOMENT + 1))


def metric(kind: str, found: Planted, name: str) -> Json:
    """A metric of one of OTLP's kinds, with the text everywhere: one point with an exemplar and one without."""
    values: dict[str, Json] = {
        "gauge": {"asInt": "41"},
        "sum": {"asInt": "41"},
        "histogram": {"count": "1", "sum": 1.0, "bucketCounts": ["1", "0"], "explicitBounds": [5.0]},
        "exponentialHistogram": {"count": "1", "sum": 1.0, "scale": 0, "positive": {"bucketCounts": ["1"]}},
        "summary": {"count": "1", "sum": 1.0, "quantileValues": [{"quantile": 0.5, "value": 1.0}]},
    }
    labels = {"text": found.text, "test": name}
    point: Json = {"timeUnixNano": str(MOMENT), "attributes": attributes(labels), **values[kind]}
    points = [point]
    if kind != "summary":
        exemplar = {"timeUnixNano": str(MOMENT), "asDouble": 1.0, "filteredAttributes": attributes({"x": found.text})}
        points.append(point | {"attributes": attributes(labels | {"traced": "yes"}), "exemplars": [exemplar]})
    data: Json = {"dataPoints": points}
    if kind not in ("gauge", "summary"):
        data["aggregationTemporality"] = 2
    if kind == "sum":
        data["isMonotonic"] = True
    label = f"{name.replace('-', '_')}_{kind}"
    return {"name": label, "description": f"of {found.text}", "unit": "1", kind: data}


@pytest.mark.parametrize("kind", KINDS)
def test_no_personal_data_in_metrics(rig: Rig, kind: str) -> None:
    found, topic, name = KINDS[kind], rig.topics["metrics"], f"metrics-{kind}"
    shapes = everywhere(found)
    kinds = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")
    request = {
        "resourceMetrics": [
            {
                "resource": {"attributes": attributes({"service.name": name, **shapes})},
                "scopeMetrics": [
                    {
                        "scope": {"name": f"scope {found.text}", "attributes": attributes(shapes)},
                        "metrics": [metric(each, found, name) for each in kinds],
                    }
                ],
            }
        ]
    }
    send(rig.server, "metrics", request)
    mine = lambda: [m for m in topic.messages() if name in json.dumps(m)]  # noqa: E731
    topic.wait(mine, "the metrics come out")
    (message,) = mine()
    (resource,) = (r for r in message["resourceMetrics"] if name in json.dumps(r))
    left = json.dumps(resource, ensure_ascii=False)
    gauge = next(m for m in resource["scopeMetrics"][0]["metrics"] if "gauge" in m)
    (point,) = gauge["gauge"]["dataPoints"]
    assert "traced" not in left, "nothing can look at the attributes of exemplars"
    assert gauge["description"] == f"of {found.clean}"
    assert plain_attributes(point["attributes"])["text"] == found.clean
    assert point["asInt"] == "41"
    label = name.replace("-", "_")

    def page() -> str:
        # OpenMetrics is the form that would show exemplars.
        headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
        return httpx.get(rig.server.metrics_url, headers=headers, trust_env=False).text

    wait_until(lambda: f"{label}_sum" in page(), "the page shows the metrics", 20.0)
    shown = page()
    assert f'test="{name}"' in shown
    assert 'traced="yes"' in shown
    for secret in found.secrets:
        assert secret not in left
        assert secret not in shown


PEOPLE = {
    "subject_id": "person-0815",
    "user.id": "person-4711",
    "enduser.id": 47110815,
    "user": {"id": "person-1234", "role": "admin"},
}


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_nobody_is_named_where_no_router_makes_tokens(
    rig: Rig, signal: Literal["traces", "metrics"], unique: Callable[[str], str]
) -> None:
    name, topic, people = unique("people"), rig.topics[signal], attributes(PEOPLE)
    resource = {"attributes": [*attributes({"service.name": name}), *people]}
    scope = {"name": "test", "attributes": people}
    if signal == "traces":
        span = {"traceId": TRACE_ID, "spanId": SPAN_ID, "name": name, "attributes": people}
        span["events"] = [{"timeUnixNano": str(MOMENT), "name": "event", "attributes": people}]
        request = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": [span]}]}]}
    else:
        points = [{"timeUnixNano": str(MOMENT), "asInt": "1", "attributes": people}]
        gauge = {"name": name.replace("-", "_"), "gauge": {"dataPoints": points}}
        request = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": scope, "metrics": [gauge]}]}]}
    send(rig.server, signal, request)
    mine = lambda: [m for m in topic.messages() if name in json.dumps(m)]  # noqa: E731
    topic.wait(mine, "it comes out")
    left = json.dumps(mine())
    assert "person-" not in left
    assert "47110815" not in left
    assert left.count("[SUBJECT]") == 4 * (4 if signal == "traces" else 3)
    assert '"admin"' in left

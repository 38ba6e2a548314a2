"""The collector's configuration, generated from the table of personal data: `python -m otel.collector_config`.

Writes `collector.yaml` beside this file (`make otel`); with `--check` only tells whether the committed one is current.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from otel.collector_context import Context
from otel.collector_patterns import key_rules, secret_map, type_rules
from otel.collector_statements import groups
from otel.table import PiiTable, load_table

CONFIG_PATH: Final = Path(__file__).with_name("collector.yaml")

_HEAD: Final = """\
# Generated from otel/pii.yaml by `make otel`: edit that file or otel/collector_*.py, not this one.
#
# OTLP in, personal data out, Kafka and Prometheus. What it does and why: otel/README.md, "The collector".
# Every address is a variable of the environment with a default; a literal $ is written $$.
"""

_RESOURCE: Final = Context("resource", "resource.attributes", (("schema_url", "resource.schema_url"),))
_SCOPE: Final = Context(
    "scope",
    "scope.attributes",
    (("name", "scope.name"), ("version", "scope.version"), ("schema_url", "scope.schema_url")),
)
_LOG: Final = Context(
    "log",
    "log.attributes",
    (("event_name", "log.event_name"), ("severity_text", "log.severity_text")),
    body="log.body",
    many=True,
    event=True,
)
_SPAN: Final = Context(
    "span",
    "span.attributes",
    (("name", "span.name"), ("status", "span.status.message"), ("trace_state", "span.trace_state")),
    many=True,
    # No processor can look at the attributes of a link, so links go. The path hands out the list itself: set to
    # itself it is emptied first. A test sends links and expects none.
    also=(
        "set(span.dropped_links_count, span.dropped_links_count + Len(span.links)) where Len(span.links) > 0",
        "set(span.links, span.links) where Len(span.links) > 0",
    ),
)
_SPAN_EVENT: Final = Context("spanevent", "spanevent.attributes", (("name", "spanevent.name"),), many=True)
_METRIC: Final = Context(
    "metric",
    "metric.metadata",
    (("name", "metric.name"), ("description", "metric.description"), ("unit", "metric.unit")),
)
_DATAPOINT: Final = Context("datapoint", "datapoint.attributes", many=True)

SIGNALS: Final = {
    "log_statements": (_RESOURCE, _SCOPE, _LOG),
    "trace_statements": (_RESOURCE, _SCOPE, _SPAN, _SPAN_EVENT),
    "metric_statements": (_RESOURCE, _SCOPE, _METRIC, _DATAPOINT),
}

SUBJECT_MASK: Final = "[SUBJECT]"
_HASH: Final = "${env:FLYWHEEL_CONSTITUTION__HASH:-cdd01ef066bc6cf2}"
_THRESHOLD: Final = "${env:FLYWHEEL_CONSTITUTION__COMPLIANCE_THRESHOLD:-0.95}"


def scrubbing(table: PiiTable) -> dict[str, Any]:
    """The transform processor that masks personal data."""
    processor: dict[str, Any] = {"error_mode": "ignore"}
    for signal, contexts in SIGNALS.items():
        own = table
        if signal != "log_statements":
            # Only logs pass the router, which makes tokens of subjects; elsewhere nobody may be named.
            own = replace(table, subject_fields=())
            contexts = tuple(replace(each, also=(*each.also, *_no_subjects(each, table))) for each in contexts)
        rules, keys, secrets = type_rules(own), key_rules(own), secret_map(own)
        processor[signal] = [_escaped(group) for context in contexts for group in groups(context, rules, keys, secrets)]
    return processor


def _no_subjects(context: Context, table: PiiTable) -> list[str]:
    """Mask the fields that name a person, whatever they hold."""
    statements = []
    for name in table.subject_fields:
        field = f'{context.attributes}["{name}"]'
        statements.append(f'set({field}, "{SUBJECT_MASK}") where {field} != nil')
        if name.endswith(".id"):
            person = f'{context.attributes}["{name.removesuffix(".id")}"]'
            named = f'IsMap({person}) and {person}["id"] != nil'
            statements.append(f'set({person}["id"], "{SUBJECT_MASK}") where {named}')
    return statements


def _escaped(group: dict[str, Any]) -> dict[str, Any]:
    """A group with every $ as the collector's configuration wants it."""
    return {
        name: value if isinstance(value, str) else [text.replace("$", "$$") for text in value]
        for name, value in group.items()
    }


def constitution() -> dict[str, Any]:
    """The transform processor that tags each log record with what its event says of the constitution.

    `constitutional.hash_match`: the record names the constitution in force. `constitutional.compliant`: its score
    reaches the threshold; absent where it has none.
    """
    match, compliant = 'log.attributes["constitutional.hash_match"]', 'log.attributes["constitutional.compliant"]'
    score = 'log.cache["score"]'
    is_text, is_map = "IsString(log.body)", "IsMap(log.body)"
    named = r'"\"constitutional_hash\"\\s*:\\s*\"' + _HASH + r'\""'
    scored = r'"\"compliance_score\"\\s*:\\s*(?P<score>[0-9][0-9.eE+\\-]*)"'
    told = f'Double(ExtractPatterns(log.body, {scored})["score"])'
    number = f"(IsDouble({score}) or IsInt({score}))"
    statements = [
        f"set({match}, false)",
        f'set({match}, true) where log.attributes["constitutional_hash"] == "{_HASH}"',
        f'set({match}, true) where {is_map} and log.body["constitutional_hash"] == "{_HASH}"',
        f"set({match}, true) where {is_text} and IsMatch(log.body, {named})",
        f'set({score}, log.attributes["compliance_score"])',
        f'set({score}, log.body["compliance_score"]) where {is_map} and log.body["compliance_score"] != nil',
        f"set({score}, {told}) where {is_text} and IsMatch(log.body, {scored})",
        f"set({compliant}, true) where {number} and {score} >= {_THRESHOLD}",
        f"set({compliant}, false) where {number} and {score} < {_THRESHOLD}",
    ]
    return {"error_mode": "ignore", "log_statements": [{"context": "log", "statements": statements}]}


def configuration(table: PiiTable) -> dict[str, Any]:
    """The whole configuration."""
    pipeline = {"receivers": ["otlp"], "processors": ["memory_limiter", "transform/pii"], "exporters": ["kafka"]}
    return {
        "extensions": {
            "health_check": {"endpoint": "${env:COLLECTOR_HEALTH_ENDPOINT:-127.0.0.1:13133}"},
            "file_storage": {
                "directory": "${env:COLLECTOR_STORAGE:-/var/lib/otelcol}",
                "create_directory": True,
                "fsync": "${env:COLLECTOR_STORAGE_FSYNC:-false}",
                "compaction": {
                    "directory": "${env:COLLECTOR_STORAGE:-/var/lib/otelcol}",
                    "on_rebound": True,
                    "cleanup_on_start": True,
                },
            },
        },
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {
                        "endpoint": "${env:COLLECTOR_GRPC_ENDPOINT:-127.0.0.1:4317}",
                        "max_recv_msg_size_mib": 16,
                    },
                    "http": {
                        "endpoint": "${env:COLLECTOR_HTTP_ENDPOINT:-127.0.0.1:4318}",
                        "max_request_body_size": 16777216,
                    },
                }
            }
        },
        "processors": {
            "memory_limiter": {
                "check_interval": "1s",
                "limit_mib": "${env:COLLECTOR_MEMORY_MIB:-512}",
                "spike_limit_mib": "${env:COLLECTOR_MEMORY_SPIKE_MIB:-128}",
            },
            # No processor can look at, or take away, the attributes of an exemplar. The Prometheus page shows none;
            # on Kafka points that have exemplars do not appear. Summaries have none, hence the error that is ignored.
            "filter/exemplars": {
                "error_mode": "silent",
                "metrics": {"datapoint": ["Len(exemplars) > 0"]},
            },
            "transform/pii": scrubbing(table),
            "transform/constitution": constitution(),
        },
        "exporters": {
            "kafka": _kafka(),
            "prometheus": {"endpoint": "${env:COLLECTOR_PROMETHEUS_ENDPOINT:-127.0.0.1:8889}"},
        },
        "service": {
            "extensions": ["health_check", "file_storage"],
            "telemetry": {
                "logs": {"level": "${env:COLLECTOR_LOG_LEVEL:-info}"},
                "metrics": {"level": "none"},
            },
            "pipelines": {
                "logs": {**pipeline, "processors": [*pipeline["processors"], "transform/constitution"]},
                "traces": dict(pipeline),
                "metrics": {**pipeline, "exporters": ["prometheus"]},
                "metrics/kafka": {**pipeline, "processors": ["memory_limiter", "filter/exemplars", "transform/pii"]},
            },
        },
    }


def _kafka() -> dict[str, Any]:
    return {
        # A text, which the collector splits at commas: as the one item of a list it would be a single host.
        "brokers": "${env:KAFKA_BROKERS:-127.0.0.1:9092}",
        "protocol_version": "${env:KAFKA_PROTOCOL_VERSION:-2.8.0}",
        "client_id": "otelcol-flywheel",
        # Whole batches: one message a trace would take the router's batches away.
        "logs": {"topic": "${env:KAFKA_LOGS_TOPIC:-otel-audit-events}", "encoding": "otlp_proto"},
        "traces": {"topic": "${env:KAFKA_TRACES_TOPIC:-otel-traces}", "encoding": "otlp_proto"},
        "metrics": {"topic": "${env:KAFKA_METRICS_TOPIC:-otel-metrics}", "encoding": "otlp_proto"},
        "timeout": "5s",
        "producer": {
            "compression": "gzip",
            "required_acks": -1,
            "linger": "10ms",
            # Before compression. What is larger is refused for good.
            "max_message_bytes": 33554432,
        },
        "retry_on_failure": {"initial_interval": "1s", "max_interval": "5s", "max_elapsed_time": 0},
        # In place of a batch processor, which acknowledges what it holds in memory: a request is acknowledged once
        # it is in this queue's file, and is there until Kafka has it.
        "sending_queue": {
            "storage": "file_storage",
            "sizer": "items",
            "queue_size": "${env:COLLECTOR_QUEUE_RECORDS:-1000000}",
            "num_consumers": 4,
            "batch": {"sizer": "items", "flush_timeout": "200ms", "min_size": 1000, "max_size": 1500},
        },
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - each signal is written out
        return True


def render(table: PiiTable) -> str:
    """The configuration's text."""
    text = yaml.dump(configuration(table), Dumper=_Dumper, sort_keys=False, width=1_000_000, allow_unicode=True)
    return _HEAD + text


def main(arguments: list[str] | None = None) -> int:
    """The command of this module."""
    parser = argparse.ArgumentParser(prog="python -m otel.collector_config", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the file is not current")
    text = render(load_table())
    if parser.parse_args(arguments).check:
        if CONFIG_PATH.read_text(encoding="utf-8") == text:
            return 0
        print(f"{CONFIG_PATH} is not what otel/pii.yaml says: run `make otel`", file=sys.stderr)
        return 1
    CONFIG_PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

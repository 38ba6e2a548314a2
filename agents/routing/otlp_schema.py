"""OTLP's log messages as protobuf classes in which attributes are maps.

Source: opentelemetry-proto `logs/v1`, `resource/v1`, `common/v1`, and the protobuf encoding specification: a
`map<string, V>` has the same wire form as a repeated message of a key (1) and a value (2), which is what `KeyValue` is.
With a map, one attribute is looked up in C, where a list of `KeyValue` has to be walked in Python: most records are
dropped for what five of their attributes say. A key that comes twice has its last value, as in a dictionary.

Fields that nothing here reads are left out; protobuf keeps them as unknown fields and writes them out again.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

_PACKAGE = "flywheel.otlp"
_Field = descriptor_pb2.FieldDescriptorProto

# name: (number, type or message name, how it stands)
_ONE, _MANY, _MAP, _ONE_OF = "one", "many", "map", "one of"
_MESSAGES: dict[str, dict[str, tuple[int, Any, str]]] = {
    "AnyValue": {
        "string_value": (1, _Field.TYPE_STRING, _ONE_OF),
        "bool_value": (2, _Field.TYPE_BOOL, _ONE_OF),
        "int_value": (3, _Field.TYPE_INT64, _ONE_OF),
        "double_value": (4, _Field.TYPE_DOUBLE, _ONE_OF),
        "array_value": (5, "ArrayValue", _ONE_OF),
        "kvlist_value": (6, "KeyValueList", _ONE_OF),
        "bytes_value": (7, _Field.TYPE_BYTES, _ONE_OF),
    },
    "ArrayValue": {"values": (1, "AnyValue", _MANY)},
    "KeyValueList": {"values": (1, "AnyValue", _MAP)},
    "Resource": {"attributes": (1, "AnyValue", _MAP)},
    "LogRecord": {
        "time_unix_nano": (1, _Field.TYPE_FIXED64, _ONE),
        "body": (5, "AnyValue", _ONE),
        "attributes": (6, "AnyValue", _MAP),
        "trace_id": (9, _Field.TYPE_BYTES, _ONE),
        "span_id": (10, _Field.TYPE_BYTES, _ONE),
        "observed_time_unix_nano": (11, _Field.TYPE_FIXED64, _ONE),
        "event_name": (12, _Field.TYPE_STRING, _ONE),
    },
    "ScopeLogs": {"log_records": (2, "LogRecord", _MANY)},
    "ResourceLogs": {"resource": (1, "Resource", _ONE), "scope_logs": (2, "ScopeLogs", _MANY)},
    "LogsData": {"resource_logs": (1, "ResourceLogs", _MANY)},
}


def _logs_data() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="flywheel/otlp_logs.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        _declare(file.message_type.add(name=name), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.LogsData"))


def _declare(message: Any, fields: dict[str, tuple[int, Any, str]]) -> None:
    for name, (number, kind, stands) in fields.items():
        label = _Field.LABEL_REPEATED if stands in (_MANY, _MAP) else _Field.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if stands == _MAP:
            entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
            value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_MESSAGE)
            value.type_name = f".{_PACKAGE}.{kind}"
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{message.name}.{entry.name}"
        elif isinstance(kind, str):
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            field.type = kind
        if stands == _ONE_OF:
            if not message.oneof_decl:
                message.oneof_decl.add(name="value")
            field.oneof_index = 0


LogsData: Any = _logs_data()
"""`LogsData`, and by its wire form `ExportLogsServiceRequest` too."""

"""Every example of the table, and the table's own checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel.keys import KeyClassifier, KeyKind
from otel.scrub import Scrubber
from otel.table import TABLE_PATH, PiiPattern, TableError, load_table

TABLE = load_table()
SCRUBBER = Scrubber(TABLE, None)
MARKED = re.compile("«(.*?)»", re.DOTALL)
POSITIVE = [(entry, example) for entry in TABLE.patterns for example in entry.positive]
NEGATIVE = [(entry, example) for entry in TABLE.patterns for example in entry.negative]


@pytest.mark.parametrize(("entry", "example"), POSITIVE, ids=lambda value: getattr(value, "name", None))
def test_positive_examples_are_masked_where_marked(entry: PiiPattern, example: str) -> None:
    text = MARKED.sub(r"\1", example)
    expected = MARKED.sub(lambda _: entry.mask, example)
    assert text != expected, "an example without a mark"
    result = SCRUBBER.scrub_text(text)
    assert result.text == expected
    assert result.counts == {entry.name: len(MARKED.findall(example))}


@pytest.mark.parametrize(("entry", "example"), POSITIVE, ids=lambda value: getattr(value, "name", None))
def test_positive_examples_are_found_at_their_place(entry: PiiPattern, example: str) -> None:
    text = "ünï 日本 " + MARKED.sub(r"\1", example)
    found = [(finding.type, text[finding.start : finding.end]) for finding in SCRUBBER.find(text)]
    assert found == [(entry.name, value) for value in MARKED.findall(example)]


@pytest.mark.parametrize(("entry", "example"), NEGATIVE, ids=lambda value: getattr(value, "name", None))
def test_negative_examples_survive(entry: PiiPattern, example: str) -> None:
    result = SCRUBBER.scrub_text(example)
    assert (result.text, result.counts) == (example, {})
    assert SCRUBBER.find(example) == []


@pytest.mark.parametrize("key", TABLE.secret_keys.positive)
def test_secret_keys(key: str) -> None:
    event = {key: "some value", "nested": {key: ["one", {"deep": "two"}, 3, True, None]}}
    counts = SCRUBBER.scrub_event(event)
    assert event == {key: "[SECRET]", "nested": {key: ["[SECRET]", {"deep": "[SECRET]"}, 3, True, None]}}
    assert counts == {"SECRET": 3}


@pytest.mark.parametrize("key", TABLE.secret_keys.negative)
def test_keys_that_are_no_secret(key: str) -> None:
    event = {key: "some value", "n": {key: 12}}
    assert SCRUBBER.scrub_event(event) == {}
    assert event == {key: "some value", "n": {key: 12}}


@pytest.mark.parametrize("key", [*TABLE.identity_fields, "traceId", "spanId", "TraceId", "trace.id", "eventId"])
def test_identity_keys_in_any_spelling(key: str) -> None:
    assert KeyClassifier(TABLE).kind(key) is KeyKind.IDENTITY


def test_every_kind_of_the_table_is_there() -> None:
    names = {entry.name for entry in TABLE.patterns}
    assert names == {"EMAIL", "SECRET", "IPV4", "IPV6", "IBAN", "CREDIT_CARD", "US_SSN", "PHONE"}
    assert all(entry.mask == f"[{entry.name}]" for entry in TABLE.patterns)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("validator: iban", "validator: ibann", "unknown validator 'ibann'"),
        ("version: 1\n", "version: 9\n", "version: 1"),
        ("[0-8][0-9]{8}", "(?=x)[0-8]", "no RE2 pattern"),
        ('    mask: "[IBAN]"\n', '    mask: "[IBAN]"\n    masc: x\n', "masc"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TABLE_PATH.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "pii.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TableError, match=re.escape(message)):
        load_table(path)

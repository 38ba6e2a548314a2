"""Events: what is masked wherever it hides, and what survives."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

import orjson
import pytest

from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table

TOKENS = SubjectTokenizer(b"k" * 32)
SCRUBBER = Scrubber(load_table(), TOKENS)

PLANTED = {
    "EMAIL": "ada.lovelace@example.com",
    "US_SSN": "123-45-6789",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IPV4": "203.0.113.77",
    "IPV6": "2001:db8::8a2e:370:7334",
    "PHONE": "+44 20 7946 0958",
    "IBAN": "GB82WEST12345698765432",
    "SECRET": "password=hunter2x",
}
PLACES: dict[str, Any] = {
    "text": lambda value: {"prompt": value},
    "middle of a text": lambda value: {"prompt": f"Grüße, {value}, and so on"},
    "nested map": lambda value: {"a": {"b": {"c": value}}},
    "array": lambda value: {"a": ["x", [value]]},
    "message list": lambda value: {"messages": [{"role": "user", "content": f"it is {value}"}]},
    "after a line break": lambda value: {"a": f"line\n{value}\nline"},
    "json in a text": lambda value: {"a": json.dumps({"b": [value], "n": 12345678901234567890})},
    "json after an escaped line break": lambda value: {"a": json.dumps({"b": f"x\n{value}"})},
    "json in json in a text": lambda value: {"a": json.dumps({"b": json.dumps({"c": f"\t{value}"})})},
    "json with unicode escapes": lambda value: {"a": '{"b":"' + "".join(f"\\u{ord(c):04x}" for c in value) + '"}'},
    "name of a key": lambda value: {"a": {f"from {value}": 1}},
    "name of a nested key": lambda value: {"a": [{"b": {f"{value} x": None}}]},
    "array of arrays": lambda value: {"a": [[[value]], {"b": []}]},
    "log line with escaped json": lambda value: {"a": json.dumps({"b": f"x {value}"}).replace('"', '\\"')[:-1]},
    "log line with json": lambda value: {"a": f'payload={{"b":"{value}"}} end'},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PLANTED)
def test_every_kind_is_masked_in_every_place(kind: str, place: str) -> None:
    event = {"event_id": str(uuid.UUID(int=7)), "status": "success", **PLACES[place](PLANTED[kind])}
    counts = SCRUBBER.scrub_event(event)
    left = orjson.dumps(event).decode()
    assert counts == {kind: 1}
    assert f"[{kind}]" in left
    assert PLANTED[kind].removeprefix("password=") not in left.replace("\\", "")


def test_json_texts_stay_json_with_exact_integers() -> None:
    big = {"prompt": "x\nbob@example.com", "big": 2**64 + 1, "n": 4111111111111111, "user.id": "bob"}
    event = {"body": json.dumps(big)}
    assert SCRUBBER.scrub_event(event) == {"EMAIL": 1, "SUBJECT": 1}
    assert json.loads(event["body"]) == big | {"prompt": "x\n[EMAIL]", "user.id": TOKENS.token("bob")}


def test_ids_times_versions_amounts_and_integers_survive() -> None:
    event = {
        "event_id": "bob@example.com",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "4111111111111111",
        "parentSpanId": "4111111111111111",
        "target_event_id": "123-45-6789",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "constitution_digest": "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592",
        "routing_metadata": {"identity": {"service": "a@b.example", "fingerprint": "x"}},
        "fingerprint": "4111111111111111",
        "request": "550e8400-e29b-41d4-a716-446655440000",
        "timestamp": "2026-11-22T10:00:00.123456Z",
        "time_unix_nano": "1763805600123456789",
        "observed": 1763805600123456789,
        "millis": "1763805600123",
        "model_version": "1.2.3.4",
        "version": "10.20.30.40",
        "release": "v2.11.0-rc.1",
        "amount": "1,234,567.89 EUR",
        "price": 0.4111111111111111,
        "big": 2**63 - 1,
        "card_like": 4111111111111111,
        "prompt_tokens": 128,
        "gen_ai.usage.input_tokens": 4096,
        "token_count": "512",
        "range": "2024-01-02 10:20:30 to 2024-02-03",
        "sha": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "ratio": "1024:768",
    }
    before = copy.deepcopy(event)
    assert SCRUBBER.scrub_event(event) == {}
    assert event == before


def test_integers_beyond_64_bits_survive_beside_personal_data() -> None:
    event = {"n": 2**80 + 1, "f": 0.1, "t": "ada@example.com"}
    assert SCRUBBER.scrub_event(event) == {"EMAIL": 1}
    assert event == {"n": 2**80 + 1, "f": 0.1, "t": "[EMAIL]"}


@pytest.mark.parametrize(
    "path", [("subject_id",), ("user.id",), ("enduser.id",), ("user", "id"), ("a", "user", "id"), ("a", "subject_id")]
)
@pytest.mark.parametrize("value", ["ada@example.com", "u-77", 4711, "sub_bob"])
def test_subjects_become_tokens_before_patterns_run(path: tuple[str, ...], value: str | int) -> None:
    event: dict[str, Any] = {"prompt": "hello"}
    node = event
    for name in path[:-1]:
        node = node.setdefault(name, {"name": "n"})
    node[path[-1]] = value
    assert SCRUBBER.scrub_event(event) == {"SUBJECT": 1}
    assert node[path[-1]] == TOKENS.token(str(value))
    assert SCRUBBER.scrub_event(event) == {}, "a token passes unchanged"


@pytest.mark.parametrize("value", ["[EMAIL]", "", "***", "redacted"])
def test_masked_subjects_are_removed(value: str) -> None:
    event = {"subject_id": value, "user": {"id": value, "name": "n"}, "body": json.dumps({"subject_id": value})}
    assert SCRUBBER.scrub_event(event) == {"SUBJECT": 3}
    assert event == {"user": {"name": "n"}, "body": "{}"}


def test_subjects_inside_json_texts_become_tokens_and_tokens_are_left() -> None:
    text = json.dumps({"subject_id": "ada@example.com", "deep": json.dumps({"user": {"id": "u-1"}})})
    result = SCRUBBER.scrub_text(text)
    cleaned = json.loads(result.text)
    assert cleaned["subject_id"] == TOKENS.token("ada@example.com")
    assert json.loads(cleaned["deep"]) == {"user": {"id": TOKENS.token("u-1")}}
    assert SCRUBBER.scrub_text(result.text).text == result.text


def test_without_a_tokenizer_subjects_are_ordinary_text() -> None:
    event = {"subject_id": "ada@example.com", "user": {"id": "u-1"}}
    assert Scrubber(load_table(), None).scrub_event(event) == {"EMAIL": 1}
    assert event == {"subject_id": "[EMAIL]", "user": {"id": "u-1"}}


def test_detect_counts_and_alters_only_subjects() -> None:
    event = {"subject_id": "u-1", "prompt": "ada@example.com", "password": "x1", "a": '{"secrets":{"k":"v"}}'}
    assert Scrubber(load_table(), TOKENS, "detect").scrub_event(event) == {"SUBJECT": 1, "EMAIL": 1, "SECRET": 2}
    assert event.pop("subject_id") == TOKENS.token("u-1")
    assert event == {"prompt": "ada@example.com", "password": "x1", "a": '{"secrets":{"k":"v"}}'}


def test_off_makes_tokens_and_nothing_else() -> None:
    off = Scrubber(load_table(), TOKENS, "off")
    event = {"subject_id": "u-1", "prompt": "ada@example.com", "password": "x1"}
    assert off.scrub_event(event) == {"SUBJECT": 1}
    assert event == {"subject_id": TOKENS.token("u-1"), "prompt": "ada@example.com", "password": "x1"}
    assert off.scrub_text("ada@example.com").text == "ada@example.com"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="scrub, detect, off"):
        Scrubber(load_table(), None, "on")  # type: ignore[arg-type]


def test_two_masked_keys_stay_two() -> None:
    event = {"a": {"ada@example.com": 1, "bob@example.com": 2}}
    assert SCRUBBER.scrub_event(event) == {"EMAIL": 2}
    assert sorted(event["a"].values()) == [1, 2]
    assert "example.com" not in str(event)


def test_very_deep_events_are_cleaned() -> None:
    event: dict[str, Any] = {"t": "ada@example.com"}
    for _ in range(5000):
        event = {"d": event}
    assert SCRUBBER.scrub_event(event) == {"EMAIL": 1}
    while "d" in event:
        event = event["d"]
    assert event == {"t": "[EMAIL]"}


def test_lone_surrogates_do_not_stop_the_scrubber() -> None:
    event = {"a": "\ud800 ada@example.com"}
    SCRUBBER.scrub_event(event)
    assert event == {"a": "\ud800 [EMAIL]"}


@pytest.mark.parametrize(
    "text",
    [
        "a@" * 50_000,
        "a." * 50_000 + "@",
        "1 " * 100_000,
        "4111 " * 40_000,
        "call me at " * 20_000,
        "0:" * 100_000,
        '{"password":' * 20_000,
        "\\n" * 100_000,
    ],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    start = SCRUBBER.scrub_text(text[: len(text) // 8])
    result = SCRUBBER.scrub_text(text)
    assert len(result.text) >= len(start.text)


@pytest.mark.parametrize(
    "text",
    [
        "password = getpass.getpass()",
        "api_key = os.environ['API_KEY']",
        "token=await f()",
        "secret=config.vault.secret",
        'let api_key = std::env::var("K")',
        "git clone git@github.com:acme/flywheel.git",
        "authorization = None",
    ],
)
def test_source_code_that_reads_a_secret_is_none(text: str) -> None:
    assert SCRUBBER.scrub_text(text).text == text
    assert SCRUBBER.scrub_event({"code": text}) == {}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("password=hunter2(x)", "password=[SECRET](x)"),
        ("api_key = k-1234[0]", "api_key = [SECRET][0]"),
        ("token = None2", "token = [SECRET]"),
        ("from digit@example.com", "from [EMAIL]"),
        ("12345678 office ada@example.com", "12345678 office [EMAIL]"),
        ("from a.git@example.com", "from [EMAIL]"),
        ('log: {"mail":"\\u0061da@example.com"} end', 'log: {"mail":"[EMAIL]"} end'),
        ('log: {"ssn":"123\\u002d45-6789", "a":"\\u0022"}', 'log: {"ssn":"[US_SSN]", "a":"\\u0022"}'),
    ],
)
def test_what_only_looks_like_code_or_hides_in_escapes_is_masked(text: str, clean: str) -> None:
    assert SCRUBBER.scrub_text(text).text == clean
    event = {"a": text}
    SCRUBBER.scrub_event(event)
    assert event == {"a": clean}
    assert SCRUBBER.scrub_event(event) == {}


CARD = "4111111111111111"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # Numbers of JSON keep their value, in it and in JSON inside its texts.
        (f'{{"n":{CARD}}}', None),
        (f"[1, {CARD} , 2]", None),
        (f'{{"a":"{{\\"n\\": {CARD}}}"}}', None),
        (f'{{"a":"[{{\\"n\\":[{CARD}]}}]"}}', None),
        # Digits that merely stand where a number could stand, in a text of it.
        (f'{{"note":"cards: {CARD}, x"}}', '{"note":"cards: [CREDIT_CARD], x"}'),
        (f'{{"note":", {CARD} ,"}}', '{"note":", [CREDIT_CARD] ,"}'),
        (f'{{"note":"a, {CARD} , b","n":{CARD}}}', f'{{"note":"a, [CREDIT_CARD] , b","n":{CARD}}}'),
        (f'{{"a":"{{\\"b\\":\\"x: {CARD}, y\\"}}"}}', '{"a":"{\\"b\\":\\"x: [CREDIT_CARD], y\\"}"}'),
        (f'{{"a":"[not json: {CARD}, x"}}', '{"a":"[not json: [CREDIT_CARD], x"}'),
        (f'{{"n":{CARD},"note":"{{[: {CARD}, x"}}', f'{{"n":{CARD},"note":"{{[: [CREDIT_CARD], x"}}'),
    ],
)
def test_numbers_of_json_stay_and_digits_in_its_texts_do_not(text: str, clean: str | None) -> None:
    wanted = text if clean is None else clean
    assert SCRUBBER.scrub_text(text).text == wanted
    event = {"prompt": text}
    SCRUBBER.scrub_event(event)
    assert event == {"prompt": wanted}

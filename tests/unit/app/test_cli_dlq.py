"""What `flywheel dlq` takes and shows: text of others reaches the terminal short and without its control characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from app.cli.dlq import _bytes_shown
from app.cli.main import cli
from app.cli.values import rfc3339, shown, time_ms


@given(st.text(), st.integers(1, 50))
def test_shown_text_is_printable_and_bounded(text: str, most: int) -> None:
    found = shown(text, most)
    assert all(c.isprintable() or c in "\n\t" for c in found)
    # A character is escaped by ten at most.
    assert len(found) <= 10 * most + len(f"… ({len(text)} characters)")


def test_shown_text_keeps_what_it_says() -> None:
    assert shown("größer\n\tals 🙂") == "größer\n\tals 🙂"
    assert shown("a\x1b[31mred\r\u202etfel") == r"a\x1b[31mred\r\u202etfel"
    assert shown("abcdef", 3) == "abc… (6 characters)"


@given(st.binary(max_size=300) | st.text().map(str.encode), st.integers(1, 40))
def test_any_bytes_can_be_shown(value: bytes, most: int) -> None:
    found = _bytes_shown(value, most)
    assert found is not None
    assert all(c.isprintable() or c in "\n\t" for c in found)
    assert len(found) <= 10 * most + 40


@pytest.mark.parametrize(
    ("value", "most", "text"),
    [
        (None, 10, None),
        (b"", 10, ""),
        (b"plain", 10, "plain"),
        ("größer".encode(), 10, "größer"),
        (b"\x00\xff", 10, "hex 00 ff"),
        (b"\xff" * 20, 4, "hex ff ff ff ff… (20 bytes)"),
        (b"x" * 100, 4, "xxxx… (100 bytes)"),
        # A text of long characters, cut in the middle of one.
        ("\N{SNOWMAN}".encode() * 100, 4, "\N{SNOWMAN}" * 4 + "… (300 bytes)"),
        # What ends in half a character is no text.
        (b"ab\xe2\x98", 10, "hex 61 62 e2 98"),
    ],
)
def test_values_as_text_or_hex(value: bytes | None, most: int, text: str | None) -> None:
    assert _bytes_shown(value, most) == text


def test_times() -> None:
    assert time_ms("1970-01-01T00:00:01.5Z") == time_ms("1970-01-01T00:00:01.5") == 1500
    assert rfc3339(1500) == "1970-01-01T00:00:01.500Z"
    assert time_ms("1960-01-01") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "12"], "PARTITION:OFFSET"),
        (["ls", "--since", "yesterday"], "RFC 3339"),
        (["ls", "--limit", "10001"], "10000"),
        (["replay"], "--by"),
        (["replay", "--by", " "], "names nobody"),
        (["replay", "--by", "a\nb"], "names nobody"),
        (["replay", "--by", "me", "--place", "1-2"], "PARTITION:OFFSET"),
        (["drop", "--by", "me"], "--comment"),
        (["drop", "--by", "me", "--comment", " "], "say why"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: list[str], words: str) -> None:
    refused = CliRunner().invoke(cli, ["dlq", *arguments])
    assert refused.exit_code == 2
    assert words in " ".join(refused.output.replace("│", " ").split())


def test_a_broker_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", f"sqlite:///{tmp_path / 'test.db'}")
    for command in (["ls"], ["show", "0:1"], ["replay", "--by", "me"]):
        away = CliRunner().invoke(cli, ["dlq", *command])
        assert away.exit_code == 1, away.output
        assert "Kafka at 127.0.0.1:1" in away.stderr
        assert len(away.stderr.strip().splitlines()) == 1, away.stderr

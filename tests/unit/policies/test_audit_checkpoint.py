"""The checkpoint file: a chain of signed heads that crashes cannot tear and edits cannot hide in."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from audit_logs import KEYS, SIGNING

from models.audit import ChainHead, SignedHead
from policies.audit.checkpoint import CheckpointReader, open_checkpoint
from policies.audit.seal import SigningKey, head_line

SEALED_AT = "2026-03-02T09:16:00.000000Z"


def append(path: Path, count: int, key: SigningKey = SIGNING) -> list[SignedHead]:
    """Heads of every tenth entry."""
    made = []
    for _ in range(count):
        with open_checkpoint(path) as file:
            seq = 0 if file.last is None else file.last.seq + 10
            made.append(key.seal(ChainHead(seq=seq, digest=f"{seq:064d}"), SEALED_AT, file.last))
            file.append(made[-1])
    return made


def read(path: Path) -> tuple[list[int], str | None]:
    reader = CheckpointReader(path, KEYS)
    return [head.seq for head in reader], reader.fault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "heads.jsonl"


def test_what_is_appended_is_read(path: Path) -> None:
    made = append(path, 4)
    assert list(CheckpointReader(path, KEYS)) == made
    assert read(path) == ([0, 10, 20, 30], None)


def test_a_line_torn_by_a_crash_is_not_read_and_mended(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(path, 3)
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    for torn in (line[:1], line[:200], line[:-1]):
        path.write_bytes(whole + torn)
        assert read(path) == ([0, 10, 20], None)
        with caplog.at_level(logging.WARNING), open_checkpoint(path) as file:
            assert file.last is not None
            assert file.last.seq == 20
        assert path.read_bytes() == whole
        assert f"{len(torn)} bytes were cut off" in caplog.text
    append(path, 1)
    assert read(path) == ([0, 10, 20, 30], None)


def test_a_first_line_torn_by_a_crash_leaves_an_empty_file(path: Path) -> None:
    append(path, 1)
    path.write_bytes(path.read_bytes()[:-30])
    append(path, 1)
    assert read(path) == ([0], None)


def test_a_tail_that_no_crash_leaves_is_not_mended(path: Path) -> None:
    append(path, 2)
    path.write_bytes(path.read_bytes() + b"x" * 5000)
    with open_checkpoint(path) as file:
        assert file.last is None
        assert file.last_line
    assert path.stat().st_size > 5000


def edited(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"seq":10', b'"seq":11'), *lines[2:]]


def resigned(lines: list[bytes]) -> list[bytes]:
    """Sound in itself, with the following line's link broken."""
    first = SignedHead.model_validate_json(lines[0])
    head = SIGNING.seal(ChainHead(seq=11, digest="f" * 64), SEALED_AT, first)
    return [lines[0], f"{head_line(head)}\n".encode(), *lines[2:]]


def foreign(lines: list[bytes]) -> list[bytes]:
    first = SignedHead.model_validate_json(lines[0])
    head = SigningKey(b"\x01" * 32).seal(ChainHead(seq=10, digest="f" * 64), SEALED_AT, first)
    return [lines[0], f"{head_line(head)}\n".encode(), *lines[2:]]


@pytest.mark.parametrize(
    ("change", "left", "told"),
    [
        (edited, [0, 20, 30], "line 2 .* entry 11.* signature does not fit"),
        (resigned, [0, 11, 20, 30], "line 3 .* entry 20.* does not follow"),
        (foreign, [0, 20, 30], "line 2 .* unknown key"),
        (lambda lines: [lines[0], *lines[2:]], [0, 20, 30], "line 2 .* entry 20.* does not follow"),
        (lambda lines: lines[1:], [10, 20, 30], "line 1 .* entry 10.* does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], [0, 20, 30], "line 2 .* does not follow"),
        (lambda lines: [lines[0], lines[1], *lines[1:]], [0, 10, 20, 30], "line 3 .* does not follow"),
        (lambda lines: [lines[0], b"{}\n", *lines[1:]], [0, 10, 20, 30], "line 2 .* is no signed head"),
        (lambda lines: [lines[0], b"\xff" * 9000 + b"\n", *lines[1:]], [0, 10, 20, 30], "line 2 .* is no signed head"),
        (lambda lines: [], [], "holds no signed head"),
        (lambda lines: [b"\n"], [], "line 1 .* is no signed head"),
    ],
)
def test_what_was_changed_is_named_and_the_rest_still_counts(
    path: Path, change: Callable[[list[bytes]], list[bytes]], left: list[int], told: str
) -> None:
    append(path, 4)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    seqs, fault = read(path)
    assert seqs == left
    assert fault is not None
    assert re.search(told, fault), fault
    assert str(path) in fault


def test_a_missing_file_is_a_fault(path: Path) -> None:
    seqs, fault = read(path)
    assert seqs == []
    assert fault is not None
    assert "does not exist" in fault


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    seqs, fault = read(tmp_path)
    assert seqs == []
    assert fault is not None
    assert "cannot be read: Is a directory" in fault


def test_what_is_appended_while_it_is_read_is_left_out(path: Path) -> None:
    append(path, 2)
    reader = CheckpointReader(path, KEYS)
    append(path, 1)
    assert [head.seq for head in reader] == [0, 10]


def test_there_is_one_writer_at_a_time(path: Path) -> None:
    with open_checkpoint(path) as file, pytest.raises(BlockingIOError), open_checkpoint(path):
        pass
    with open_checkpoint(path):
        assert file.size == 0

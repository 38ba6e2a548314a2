"""The installation's own keys: made once, kept, private."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.keys import KEY_BYTES, KeyFileError, key


def test_a_given_key_is_taken_and_nothing_is_written(tmp_path: Path) -> None:
    assert key(SecretStr("given"), tmp_path, "subject") == "given"
    assert list(tmp_path.iterdir()) == []


def test_an_own_key_is_made_once_for_each_name(tmp_path: Path) -> None:
    made = key(None, tmp_path / "new", "subject")
    assert len(bytes.fromhex(made)) == KEY_BYTES
    assert key(None, tmp_path / "new", "subject") == made
    assert key(None, tmp_path / "new", "audit") != made
    assert key(None, tmp_path / "other", "subject") != made


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    key(None, tmp_path, "subject")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "subject").stat().st_mode & 0o777 == 0o600


def test_workers_that_start_at_once_share_one(tmp_path: Path) -> None:
    workers = 16
    start = threading.Barrier(workers)

    def read(_: int) -> str:
        start.wait(10)
        return key(None, tmp_path, "subject")

    with ThreadPoolExecutor(workers) as pool:
        assert len(set(pool.map(read, range(workers), timeout=30))) == 1


@pytest.mark.parametrize("content", ["", "short", "0" * (2 * KEY_BYTES - 1), "0" * (2 * KEY_BYTES + 2)])
def test_a_damaged_key_is_refused_and_left_as_it_is(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.keys.time.sleep", lambda _: None)
    path = tmp_path / "keys" / "subject"
    path.parent.mkdir()
    path.write_text(content, encoding="ascii")
    with pytest.raises(KeyFileError, match="restore it from a backup") as refused:
        key(None, tmp_path, "subject")
    assert str(path) in str(refused.value)
    assert path.read_text(encoding="ascii") == content


def test_a_key_with_a_newline_behind_it_is_the_same_key(tmp_path: Path) -> None:
    made = key(None, tmp_path, "subject")
    (tmp_path / "keys" / "subject").write_text(f"{made}\n", encoding="ascii")
    assert key(None, tmp_path, "subject") == made

"""The installation's own keys, for those that the settings do not give.

A key that nobody set is made once and kept under `data_dir/keys` (mode 0600), so that a restart finds the same one:
subject tokens, splits and digests must not change under a ledger. In production give them as settings, from secrets.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from pydantic import SecretStr

KEY_BYTES = 32


class KeyFileError(RuntimeError):
    """A key file is there and unusable; the message names it."""


def key(given: SecretStr | None, data_dir: Path, name: str) -> str:
    """The key that was given, else the installation's own of that name; raises `KeyFileError`."""
    return given.get_secret_value() if given is not None else _own_key(data_dir / "keys" / name)


def _own_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES))
    return _read(path)


def _read(path: Path) -> str:
    # Another worker may have made the file a moment ago and not written it yet.
    for _ in range(50):
        text = path.read_text(encoding="ascii").strip()
        if len(text) == 2 * KEY_BYTES:
            return text
        time.sleep(0.02)
    raise KeyFileError(
        f"{path} holds no {KEY_BYTES}-byte key: restore it from a backup; a new one orphans what it keyed"
    )

"""An adapter's files on disk: their digest, and a copy that may leave the house. Free of torch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
SUMS = "SHA256SUMS"


class AdapterError(ValueError):
    """An adapter directory is incomplete, not the one that was registered, or its weights cannot be used."""


def adapter_digest(directory: Path) -> str:
    """SHA-256 over the names, sizes and bytes of the adapter's two files, hexadecimal."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        file = directory / name
        if not file.is_file():
            raise AdapterError(f"{directory} holds no {name}: it is not an adapter directory")
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def require_digest(directory: Path, expected: str) -> None:
    """Raise `AdapterError` where the adapter is not the one with this digest."""
    found = adapter_digest(directory)
    if found != expected:
        raise AdapterError(
            f"the adapter in {directory} is not the one that was registered: its digest is {found}, not {expected}; "
            "restore it from a backup, or train anew"
        )


def export_version(version: sa.Row[Any], directory: Path) -> list[str]:
    """Write a version (a row of `model_versions`) into a new directory; returns the names of its files.

    The adapter, the privacy statement, the evaluation, who the version is, and the files' SHA-256 in the form that
    `sha256sum -c` reads. The directory appears whole or not at all. Raises `AdapterError`.
    """
    if directory.exists():
        raise AdapterError(f"{directory} exists: an export never overwrites; name a directory that is not there yet")
    identity = {
        "version_id": version.version_id,
        "model_id": version.model_id,
        "cycle_id": version.cycle_id,
        "base_model": version.base_model,
        "adapter_digest": version.digest,
        "created_at": version.created_at,
        "rolled_back_at": version.rolled_back_at,
        "rolled_back_reason": version.rolled_back_reason,
    }
    documents = {"version.json": identity, "statement.json": version.statement, "evaluation.json": version.evaluation}
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
    try:
        _copy_adapter(Path(version.path), partial / "adapter")
        # The copy is what is delivered, so it is the copy that is checked.
        require_digest(partial / "adapter", version.digest)
        names = _write(partial, documents)
        partial.chmod(0o755)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _copy_adapter(source: Path, target: Path) -> None:
    target.mkdir()
    for name in ADAPTER_FILES:
        if not (source / name).is_file():
            raise AdapterError(f"{source} holds no {name}: run the command where the version's artifacts lie")
        shutil.copyfile(source / name, target / name)


def _write(folder: Path, documents: Mapping[str, Any]) -> list[str]:
    for name, document in documents.items():
        (folder / name).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    return [*names, SUMS]

"""Policies and their data as one versioned, immutable bundle."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policies.gate.errors import BundleError
from policies.gate.facts import FactsError, encode
from policies.gate.overrides import merged

__all__ = [
    "CASES",
    "REGO_ROOT",
    "BundleError",
    "PolicyBundle",
    "bundle_archive",
    "bundle_of",
    "load_bundle",
    "read_files",
    "write_archive",
    "write_bundle",
]

REGO_ROOT = Path(__file__).resolve().parent.parent / "rego"
"""Where the project's own policies lie; their data in the folder `data` beside them."""

CASES = "cases.yaml"
"""The case table of a folder of policies. It is no part of the bundle that engines load."""

REVISION_KEY = "revision"
"""Key under which the data tells the policies which revisions are in force."""

_TEST_SUFFIX = "_test.rego"
_LIVE_TABLES = frozenset({"gpu_hours_used", "resources", "user_permissions"})


@dataclass(frozen=True)
class PolicyBundle:
    """Rego modules by relative path, the data they read, and the SHA-256 digests of both.

    Make one with `load_bundle`; `data` does not hold the revisions, `document` does.
    """

    modules: Mapping[str, str]
    data: Mapping[str, Any]
    bundle_revision: str
    data_revision: str

    @property
    def document(self) -> dict[str, Any]:
        """The data as an engine loads it: with the revisions in force, which every decision repeats."""
        return {**self.data, REVISION_KEY: {"bundle": self.bundle_revision, "data": self.data_revision}}

    @property
    def revision(self) -> str:
        """Both revisions in one text, as OPA shows it for the bundle."""
        return f"{self.bundle_revision}:{self.data_revision}"

    def with_data(self, overrides: Mapping[str, Any]) -> PolicyBundle:
        """The same policies over changed data: mappings are merged, anything else is replaced.

        Only the tables of users (permissions, GPU hours used) take new keys.

        Raises:
            BundleError: an override names a key that the data has not, or changes the kind of a value.
        """
        return self.over(merged(self.data, overrides))

    def with_tables(self, tables: Mapping[str, Any]) -> PolicyBundle:
        """The same policies over other tables of users and resources, each put whole in the old one's place.

        An amount that nobody knows is null: the policies then find nothing available.

        Raises:
            BundleError: it is none of these tables, the data has not got it, or it is no mapping.
        """
        for name, table in tables.items():
            if name not in _LIVE_TABLES or name not in self.data:
                known = ", ".join(sorted(_LIVE_TABLES & self.data.keys()))
                raise BundleError(f"policy data has no table {name} to be replaced; there are {known}")
            if not isinstance(table, Mapping):
                raise BundleError(f"policy data {name} is a mapping, not a {type(table).__name__}; give one")
        return self.over({**self.data, **tables})

    def over(self, data: Mapping[str, Any]) -> PolicyBundle:
        """The same policies over any data, unchecked. For tests of policies; else `with_data` or `with_tables`."""
        return PolicyBundle(self.modules, _frozen(data), self.bundle_revision, _digest_data(data))


def load_bundle(root: Path = REGO_ROOT, overrides: Mapping[str, Any] | None = None) -> PolicyBundle:
    """The bundle of a folder, whose cases are not run: see `policies.gate.check` for one that is tested.

    Raises:
        BundleError: no policy there, a data file is no JSON object, two files hold the same key, or an override
            does not fit the data.
    """
    return bundle_of(read_files(root), root, overrides)


def read_files(root: Path = REGO_ROOT) -> dict[str, bytes]:
    """What a bundle is made from, by relative path: each `*.rego` but the tests, each `data/*.json`, the case table.

    Hidden files and folders are left out: where a folder is mounted, its former contents may lie in one.

    Raises:
        BundleError: a file cannot be read.
    """
    files: dict[str, bytes] = {}
    try:
        for path in sorted([*root.rglob("*.rego"), *(root / "data").glob("*.json"), *root.glob(CASES)]):
            relative = path.relative_to(root)
            if not path.name.endswith(_TEST_SUFFIX) and not any(part.startswith(".") for part in relative.parts):
                files[relative.as_posix()] = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{root} cannot be read ({error}); check the folder and its permissions") from error
    return files


def bundle_of(files: Mapping[str, bytes], root: Path, overrides: Mapping[str, Any] | None = None) -> PolicyBundle:
    """The bundle that `read_files(root)` found; raises `BundleError` as `load_bundle` does."""
    modules = {name: _text(root / name, content) for name, content in files.items() if name.endswith(".rego")}
    if not modules:
        raise BundleError(f"no Rego policy below {root}; name the folder that holds the policies")
    data = _read_data({root / name: content for name, content in files.items() if name.endswith(".json")})
    bundle = PolicyBundle(MappingProxyType(modules), _frozen(data), _digest_modules(modules), _digest_data(data))
    return bundle.with_data(overrides) if overrides else bundle


def bundle_archive(bundle: PolicyBundle) -> bytes:
    """The bundle as OPA downloads it, a gzipped tar. The same bundle gives the same bytes.

    It owns all of OPA's data (`roots`), so nothing else in the server can bring the policies other facts.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in _contents(bundle).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def write_archive(bundle: PolicyBundle, path: Path) -> None:
    """Write `bundle_archive` to a file, at once: who reads `path` finds the old archive or the new one, whole.

    Raises:
        BundleError: it cannot be written there.
    """
    partial = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(bundle_archive(bundle))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BundleError(f"the bundle cannot be written to {path} ({error}); name another file") from error


def write_bundle(bundle: PolicyBundle, directory: Path) -> None:
    """Write the bundle as a directory that OPA loads (`opa run --server --bundle DIRECTORY`), at once.

    The directory must be empty or absent, so that no policy of an older bundle stays behind.

    Raises:
        BundleError: the directory holds something, or it cannot be written.
    """
    if _is_taken(directory):
        raise BundleError(f"{directory} is not empty; name an empty directory for the bundle")
    partial = _beside(directory)
    try:
        for name, content in _contents(bundle).items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise BundleError(f"the bundle cannot be written to {directory} ({error}); name another directory") from error


def _contents(bundle: PolicyBundle) -> dict[str, bytes]:
    """The files of a bundle as OPA reads it."""
    manifest = {"revision": bundle.revision, "rego_version": 1, "roots": [""]}
    modules = {name: source.encode() for name, source in sorted(bundle.modules.items())}
    return {
        ".manifest": json.dumps(manifest).encode(),
        "data.json": encode(bundle.document).encode() + b"\n",
        **modules,
    }


def _is_taken(directory: Path) -> bool:
    try:
        return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    except OSError:  # a name too long, say: writing there will tell
        return False


def _beside(path: Path) -> Path:
    return path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is no UTF-8 text ({error}); save it as one") from error


def _read_data(files: Mapping[Path, bytes]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for path, content in files.items():
        try:
            document = json.loads(_text(path, content))
        except BundleError:
            raise
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} is no JSON ({error}); mend the file") from error
        if not isinstance(document, dict):
            raise BundleError(f"{path} holds a {type(document).__name__}; a data file holds one object")
        if twice := sorted((data.keys() & document.keys()) | ({REVISION_KEY} & document.keys())):
            raise BundleError(f"{path} brings {', '.join(twice)} again; each key stands in one data file")
        data |= document
    return data


def _frozen(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy of its own, so that no later change of the caller's mapping belies the digest."""
    copy: dict[str, Any] = json.loads(_canonical(data))
    return MappingProxyType(copy)


def _digest_modules(modules: Mapping[str, str]) -> str:
    return hashlib.sha256(_canonical(sorted(modules.items())).encode()).hexdigest()


def _digest_data(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(data).encode()).hexdigest()


def _canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values, equal digests."""
    try:
        return json.dumps(json.loads(encode(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except FactsError as error:
        raise BundleError(f"policy data cannot be written as JSON: {error}") from error

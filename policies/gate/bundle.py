"""Policies and their data as one versioned, immutable bundle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policies.gate.facts import FactsError, encode

REGO_ROOT = Path(__file__).resolve().parent.parent / "rego"
"""Where the project's own policies lie; their data in the folder `data` beside them."""

REVISION_KEY = "revision"
"""Key under which the data tells the policies which revisions are in force."""

_TEST_SUFFIX = "_test.rego"
_OPEN_TABLES = frozenset({"gpu_hours_used", "user_permissions"})


class BundleError(ValueError):
    """A bundle that cannot be loaded; says which file or key and what to do."""


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

    def with_data(self, overrides: Mapping[str, Any]) -> PolicyBundle:
        """The same policies over changed data: mappings are merged, anything else is replaced.

        Only the tables of users (permissions, GPU hours used) take new keys.

        Raises:
            BundleError: an override names a key that the data has not, or changes the kind of a value.
        """
        merged = _merge(self.data, overrides, "")
        return PolicyBundle(self.modules, _frozen(merged), self.bundle_revision, _digest_data(merged))


def load_bundle(root: Path = REGO_ROOT, overrides: Mapping[str, Any] | None = None) -> PolicyBundle:
    """Read every `*.rego` below `root` but the tests, and every `data/*.json`, each an object merged at the top.

    Raises:
        BundleError: no policy there, a data file is no JSON object, two files hold the same key, or an override
            does not fit the data.
    """
    modules = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.rego"))
        if not path.name.endswith(_TEST_SUFFIX)
    }
    if not modules:
        raise BundleError(f"no Rego policy below {root}; name the folder that holds the policies")
    data = _read_data(root / "data")
    bundle = PolicyBundle(MappingProxyType(modules), _frozen(data), _digest_modules(modules), _digest_data(data))
    return bundle.with_data(overrides) if overrides else bundle


def write_bundle(bundle: PolicyBundle, directory: Path) -> None:
    """Write the bundle as a directory that OPA loads (`opa run --server --bundle DIRECTORY`).

    The directory must be empty or absent, so that no policy of an older bundle stays behind.

    Raises:
        BundleError: the directory holds something.
    """
    if directory.exists() and any(directory.iterdir()):
        raise BundleError(f"{directory} is not empty; name an empty directory for the bundle")
    for name, source in bundle.modules.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    (directory / "data.json").write_text(encode(bundle.document) + os.linesep, encoding="utf-8")
    manifest = {"revision": f"{bundle.bundle_revision}:{bundle.data_revision}", "rego_version": 1, "roots": [""]}
    (directory / ".manifest").write_text(json.dumps(manifest), encoding="utf-8")


def _read_data(directory: Path) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for path in sorted(directory.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{path} is no JSON ({error}); mend the file") from error
        if not isinstance(document, dict):
            raise BundleError(f"{path} holds a {type(document).__name__}; a data file holds one object")
        if twice := sorted((data.keys() & document.keys()) | ({REVISION_KEY} & document.keys())):
            raise BundleError(f"{path} brings {', '.join(twice)} again; each key stands in one data file")
        data |= document
    return data


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any], place: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        where = f"{place}.{key}" if place else key
        if key not in base:
            if place.partition(".")[0] not in _OPEN_TABLES:
                near = get_close_matches(key, base.keys(), n=1)
                raise BundleError(f"policy data has no {where}" + (f"; did you mean {near[0]}?" if near else ""))
            merged[key] = value
            continue
        if _kind(base[key]) != _kind(value):
            raise BundleError(f"policy data {where} is a {_kind(base[key])}, not a {_kind(value)}; give one")
        merged[key] = _merge(base[key], value, where) if isinstance(value, Mapping) else value
    return merged


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else type(value).__name__


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

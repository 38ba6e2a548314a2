"""What an installation changes in the data that a bundle brings."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from policies.gate.errors import BundleError

_OPEN_TABLES = frozenset({"gpu_hours_used", "user_permissions"})
_WHOLE_TABLES = frozenset({"constitutional_principles"})
"""Another constitution takes the place of the one that ships: a code of that must not stay behind."""


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """`base` with `overrides` in it: mappings are merged, anything else is replaced.

    Only the tables of users take new keys, and the constitution's codes are replaced whole.

    Raises:
        BundleError: an override names a key that the data has not, or changes the kind of a value.
    """
    result = dict(base)
    for key, value in overrides.items():
        where = f"{place}.{key}" if place else key
        if key not in base:
            if place.partition(".")[0] not in _OPEN_TABLES:
                near = get_close_matches(key, base.keys(), n=1)
                raise BundleError(f"policy data has no {where}" + (f"; did you mean {near[0]}?" if near else ""))
            result[key] = value
            continue
        if _kind(base[key]) != _kind(value):
            raise BundleError(f"policy data {where} is a {_kind(base[key])}, not a {_kind(value)}; give one")
        merge = isinstance(value, Mapping) and where not in _WHOLE_TABLES
        result[key] = merged(base[key], value, where) if merge else value
    return result


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

"""Settings as environment variables, so that a child process starts with exactly its parent's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr

from app.settings.load import PREFIX
from app.settings.sections import Settings


def to_environment(settings: Settings) -> dict[str, str]:
    """`FLYWHEEL_*` variables for every setting that has a value; `load_settings` reads them back."""
    return dict(_variables(settings, ""))


def _variables(section: BaseModel, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found += _variables(value, f"{prefix}{name}__")
        elif value is not None:
            found.append((PREFIX + (prefix + name).upper(), _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple | list | dict):
        return orjson.dumps(value, default=_text).decode()
    return str(value.absolute()) if isinstance(value, Path) else str(value)

"""Settings as they may be shown: without secrets, and without the passwords that URLs carry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

MASK = "********"
# A password with an @ of its own is covered up to the last one before the path; one with a slash of its own, which
# SQLAlchemy takes, up to the next @ (a port is none). A name may have an @ as well.
# A URL that was given for a path has one slash left.
_USER_INFO = re.compile(r"(://?[^/?#:\s]*:)(?:[^/?#\s]*|(?!\d*[/?#])[^@\s]*)@")
_PARAMETER = re.compile(r"([?&]password=)[^&\s]*", re.IGNORECASE)


def hide_password(text: str) -> str:
    """A text with the password of every URL in it masked."""
    return _PARAMETER.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1{MASK}@", text))


def masked(value: Any) -> Any:
    """Settings (or any part of them) as plain values, secrets and passwords masked."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, BaseModel):
        return {name: masked(inner) for name, inner in value}
    if isinstance(value, Path):
        return Path(hide_password(str(value)))
    return hide_password(value) if isinstance(value, str) else value

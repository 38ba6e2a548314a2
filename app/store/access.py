"""Who may use the web: bearer tokens, kept hashed, and people whom a trusted proxy signs in.

A grant is a revision of a name, `token:ID` or `person:NAME`, with its audit entry: it counts once the audit engine
has it. Taking one back counts at once. A token is 256 random bits, so its plain SHA-256 gives nothing away.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Connection

from app.store.audited import AuditedTable, ChangeRefused, Revision
from app.store.tables import access_grants

__all__ = ["ACCESS_GRANT", "ChangeRefused", "Grant", "Revision", "UserRole", "history", "in_force", "issue", "listing",
           "permit", "take_back"]  # fmt: skip

ACCESS_GRANT = "access_grant"
"""`event_type` of the audit entries."""

TOKEN, PERSON = "token:", "person:"
EVERY_DOMAIN = "*"
PREFIX = "fly_"
MOST_DAYS = 366.0
MAX_PERSON = 90

_TABLE = AuditedTable(access_grants, ACCESS_GRANT, "there is nothing to take back")

history = _TABLE.history
listing = _TABLE.current


class UserRole(StrEnum):
    """What a person may do, each more than the one before.

    A viewer sees figures; a reviewer also sees event text, reviews answers and decides on cycles; an operator also
    changes settings, deployments and dead letters.
    """

    VIEWER = "viewer"
    REVIEWER = "reviewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token or a signed-in person may do. `domains` is None for all of them; `expires_at` is RFC 3339, UTC."""

    name: str
    person: str
    role: UserRole
    domains: frozenset[str] | None
    expires_at: str | None
    sha256: str | None

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= _stamp(datetime.now(UTC))


def issue(
    connection: Connection,
    *,
    person: str,
    role: UserRole,
    domains: Iterable[str],
    days: float,
    changed_by: str,
    comment: str = "",
) -> tuple[str, Revision]:
    """Make a token for a person; returns its text, which is kept nowhere, and the change.

    Raises:
        ChangeRefused: the person, a domain or the time is none that could be kept.
    """
    if not 0 < days <= MOST_DAYS:
        raise ChangeRefused(f"a token holds for {days} days; give more than 0 and at most {MOST_DAYS:.0f}")
    name, text = secrets.token_hex(8), secrets.token_urlsafe(32)
    token = f"{PREFIX}{name}_{text}"
    value = _value(person, role, domains) | {
        "expires_at": _stamp(datetime.now(UTC) + timedelta(days=days)),
        "sha256": digest(token),
    }
    return token, _TABLE.change(connection, TOKEN + name, value, changed_by=changed_by, comment=comment)


def permit(
    connection: Connection,
    person: str,
    *,
    role: UserRole,
    domains: Iterable[str],
    changed_by: str,
    comment: str = "",
) -> Revision:
    """Give a person that a trusted proxy signs in a role; raises `ChangeRefused` as `issue` does."""
    value = _value(person, role, domains)
    return _TABLE.change(connection, PERSON + value["person"], value, changed_by=changed_by, comment=comment)


def take_back(connection: Connection, name: str, *, changed_by: str, comment: str = "") -> Revision:
    """Take a grant back by its name, at once; raises `ChangeRefused` where there is none."""
    return _TABLE.change(connection, name.strip(), None, changed_by=changed_by, comment=comment)


def in_force(connection: Connection) -> dict[str, Grant]:
    """The grants that count, by name, expired ones too: in the audit log, and not taken back since."""
    taken = {name for name, change in _TABLE.current(connection).items() if change.value is None}
    known = _TABLE.audited(connection).values
    return {name: _grant(name, value) for name, value in known.items() if name not in taken}


def token_name(token: str) -> str | None:
    """The grant's name that a token's text tells; None where it is no token of ours."""
    name, separator, secret = token.removeprefix(PREFIX).partition("_")
    return TOKEN + name if token.startswith(PREFIX) and separator and secret and len(name) == 16 else None


def digest(token: str) -> str:
    """What is kept of a token: SHA-256, hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _value(person: str, role: UserRole, domains: Iterable[str]) -> dict[str, Any]:
    person = person.strip()
    if not 1 <= len(person) <= MAX_PERSON or not person.isprintable():
        raise ChangeRefused(f"a person's name is 1 to {MAX_PERSON} printable characters, not {person!r}")
    named = sorted({domain.strip() for domain in domains})
    if not named or not all(1 <= len(domain) <= 200 and domain.isprintable() for domain in named):
        raise ChangeRefused(f"{named} are no data domains: name them, or {EVERY_DOMAIN} for all")
    return {"person": person, "role": UserRole(role).value, "domains": named}


def _grant(name: str, value: dict[str, Any]) -> Grant:
    domains = frozenset(value["domains"])
    return Grant(
        name=name,
        person=value["person"],
        role=UserRole(value["role"]),
        domains=None if EVERY_DOMAIN in domains else domains,
        expires_at=value.get("expires_at"),
        sha256=value.get("sha256"),
    )


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

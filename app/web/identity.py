"""Who asks, and what they may do: tokens, browsers' sessions, people a trusted proxy signed in, or nobody at all.

Where the web is open (`WebSettings.is_open`: development, loopback) nobody is asked; whoever acts says who they are.
Elsewhere a request without a valid credential gets nothing. A credential that is wrong is never passed over for
another that may be right.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import sqlalchemy as sa
from fastapi import HTTPException, Request

from app.settings import Settings
from app.store import Database, access
from app.store.access import Grant, UserRole
from app.store.database import DatabaseUnavailable
from app.web.sessions import SESSION_COOKIE, Signer

GRANTS_AGE_S = 1.0
"""How old what is known of grants may be: so much later a token that was taken back opens nothing any more."""

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})


class Right(StrEnum):
    """What a route asks for."""

    VIEW = "view"
    FEEDBACK = "feedback"
    REVIEW = "review"
    OPERATE = "operate"
    INGEST = "ingest"
    DECIDE = "decide"


_VIEWER = frozenset({Right.VIEW})
_REVIEWER = _VIEWER | {Right.FEEDBACK, Right.REVIEW}
RIGHTS: dict[UserRole, frozenset[Right]] = {
    UserRole.VIEWER: _VIEWER,
    UserRole.REVIEWER: _REVIEWER,
    UserRole.OPERATOR: frozenset(Right),
}
SERVICE_RIGHTS = _VIEWER | {Right.FEEDBACK, Right.INGEST, Right.DECIDE}
"""Of `web.token`, which is no person: it decides on nothing and sees no event text."""


class Means(StrEnum):
    """How a caller was recognised. A browser adds all but `BEARER` to requests by itself, also to forged ones."""

    OPEN = "open"
    BEARER = "bearer"
    SESSION = "session"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `person` is None for a service, and where nobody is asked; `domains` is None for all of them."""

    person: str | None
    role: str
    rights: frozenset[Right]
    domains: frozenset[str] | None
    means: Means
    key: str
    """Names the caller for rate limits and signed forms; never shown."""

    def may(self, right: Right) -> bool:
        """Whether the caller has a right, in the domains that are theirs."""
        return right in self.rights

    @property
    def reviews(self) -> bool:
        """Whether event text and decisions are theirs."""
        return Right.REVIEW in self.rights

    @property
    def operates(self) -> bool:
        """Whether the system is theirs to steer."""
        return Right.OPERATE in self.rights

    def sees(self, domain: str) -> bool:
        """Whether a data domain is among theirs."""
        return self.domains is None or domain in self.domains

    @property
    def sees_all(self) -> bool:
        """Whether what belongs to no domain, or to all of them, is theirs to see and change."""
        return self.domains is None

    def acting(self, said: str | None) -> str:
        """The person who acts, `said` being what the request names; raises HTTPException where that is nobody's."""
        said = (said or "").strip()
        if self.person is None:
            if self.means is not Means.OPEN:
                raise HTTPException(403, "a service's token names nobody: use a person's (`flywheel access token`)")
            if not 1 <= len(said) <= access.MAX_PERSON or not said.isprintable():
                raise HTTPException(422, f"say who acts: `by`, 1 to {access.MAX_PERSON} printable characters")
            return said
        if said and said != self.person:
            raise HTTPException(403, f"the credential is {self.person}'s, and the request is in another's name")
        return self.person


ANYBODY = Identity(None, "operator", frozenset(Right), None, Means.OPEN, "open")


class Authenticator:
    """Recognises callers by what the store knows, at most `GRANTS_AGE_S` old."""

    def __init__(self, settings: Settings, database: Callable[[], Database], signer: Signer) -> None:
        web = settings.web
        self.is_open = web.is_open
        self._token = None if web.token is None else web.token.get_secret_value().encode()
        self._header = web.proxy_header
        self._proxies: list[IPv4Network | IPv6Network] = [ip_network(address) for address in web.proxy_addresses]
        self._database = database
        self._signer = signer
        self._grants: dict[str, Grant] = {}
        self._read_at = -1e9
        self._reading = asyncio.Lock()

    async def identify(self, request: Request) -> Identity | None:
        """The caller; None without any credential. Raises HTTPException 401 for a wrong one, 503 while SQL is away."""
        if self.is_open:
            host = request.headers.get("host", "")
            if host.rsplit(":", 1)[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
                # A page elsewhere whose name was made to point here would else read and act as if it were this one.
                raise HTTPException(403, f"an open web answers to {', '.join(sorted(LOCAL_NAMES))}, not to {host!r}")
            return ANYBODY
        if "authorization" in request.headers:
            return await self._by_header(request)
        if SESSION_COOKIE in request.cookies:
            return await self._by_session(request.cookies[SESSION_COOKIE])
        if self._header is not None and self.is_proxy(request):
            return await self._by_proxy(request)
        return None

    async def by_token(self, token: str) -> Identity:
        """Whose token it is; raises HTTPException 401."""
        if self._token is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return Identity(None, "service", SERVICE_RIGHTS, None, Means.BEARER, "service")
        name = access.token_name(token)
        grant = None if name is None else await self._grant(name)
        right = grant is not None and hmac.compare_digest(access.digest(token), grant.sha256 or "")
        if grant is None or not right or grant.is_expired:
            raise unauthorised("this token is not valid here, or no longer")
        return identity_of(grant, Means.BEARER)

    def is_proxy(self, request: Request) -> bool:
        """Whether the connection comes from a trusted proxy."""
        try:
            peer = ip_address(request.client.host if request.client else "")
        except ValueError:
            return False
        return any(peer in network for network in self._proxies)

    def address(self, request: Request) -> str:
        """Where the caller is: the connection's other end, or whom a trusted proxy says it speaks for."""
        peer = request.client.host if request.client else "unknown"
        forwarded = request.headers.get("x-forwarded-for", "")
        return forwarded.rsplit(",", 1)[-1].strip() or peer if self.is_proxy(request) else peer

    async def _by_header(self, request: Request) -> Identity:
        # RFC 6750: the scheme, in any case, and the token.
        scheme, _, given = request.headers["authorization"].partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise unauthorised("a bearer token is required")
        return await self.by_token(given.strip())

    async def _by_session(self, cookie: str) -> Identity:
        name = self._signer.session(cookie)
        grant = None if name is None else await self._grant(name)
        if grant is None or grant.is_expired:
            raise unauthorised("the session is over: sign in again")
        return identity_of(grant, Means.SESSION)

    async def _by_proxy(self, request: Request) -> Identity | None:
        named = request.headers.getlist(self._header or "")
        if not named:
            return None
        if len(named) != 1:
            raise unauthorised(f"{self._header} came {len(named)} times")
        grant = await self._grant(access.PERSON + named[0].strip())
        if grant is None:
            raise unauthorised("the proxy signed in somebody who has no role here (`flywheel access grant`)")
        return identity_of(grant, Means.PROXY)

    async def _grant(self, name: str) -> Grant | None:
        """A grant in force; one that is not known is looked for anew, for it may have come this moment."""
        return (await self._in_force(GRANTS_AGE_S)).get(name) or (await self._in_force(0.0)).get(name)

    async def _in_force(self, age_s: float) -> dict[str, Grant]:
        asked = time.monotonic()
        async with self._reading:
            # Whoever held the lock may have read after this was asked: that is fresh enough.
            if self._read_at < asked - age_s:
                began = time.monotonic()
                try:
                    self._grants = await asyncio.to_thread(self._read)
                except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
                    message = f"who may do what cannot be read from the store ({type(error).__name__})"
                    raise HTTPException(503, message, {"Retry-After": "5"}) from None
                self._read_at = began
            return self._grants

    def _read(self) -> dict[str, Grant]:
        with self._database().read() as connection:
            return access.in_force(connection)


def identity_of(grant: Grant, means: Means) -> Identity:
    """What a grant makes of its holder."""
    return Identity(grant.person, grant.role.value, RIGHTS[grant.role], grant.domains, means, grant.name)


def unauthorised(reason: str) -> HTTPException:
    """401, with the challenge that RFC 6750 asks for."""
    return HTTPException(401, reason, headers={"WWW-Authenticate": "Bearer"})

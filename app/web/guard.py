"""What stands before every route: who asks, whether they may, how often, and whether a browser was made to ask."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.settings import Settings
from app.web.identity import Authenticator, Identity, Means, Right, unauthorised
from app.web.limits import RateLimit
from app.web.sessions import VISIT_COOKIE, Signer

FORM = "application/x-www-form-urlencoded"
FORM_KEY = "form_key"
MAX_FORM_BYTES = 512 * 1024
_READS = frozenset({"GET", "HEAD"})

_scheme = HTTPBearer(auto_error=False, description="a token of `flywheel access token`, or web.token")
Documented = Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]
"""Says in the API's document that a bearer token is asked for; the authenticator reads the header itself."""

Check = Callable[..., Awaitable[Identity]]


class Guard:
    """Makes the dependencies of routes."""

    def __init__(self, settings: Settings, authenticator: Authenticator, signer: Signer) -> None:
        web = settings.web
        self.authenticator = authenticator
        self.signer = signer
        self._public = None if web.public_url is None else urlsplit(web.public_url).netloc
        self._failures = RateLimit(web.failures_per_minute)
        self._reads = RateLimit(web.reads_per_minute)
        self._writes = RateLimit(web.writes_per_minute)
        self._feedback = RateLimit(web.feedback_per_minute)

    def needs(self, right: Right, *, everywhere: bool = False, counted: bool = True) -> Check:
        """A dependency that gives the `Identity` of a caller with that right, or refuses.

        `everywhere`: what the route is about belongs to no domain, so only those with all of them may. `counted`: the
        route has no limits of its own.
        """

        async def check(request: Request, _: Documented) -> Identity:
            identity = await self.identify(request)
            if identity is None:
                raise unauthorised("a bearer token is required")
            if counted:
                self._count(request, identity, right)
            if not identity.may(right):
                raise HTTPException(403, f"the role {identity.role} lacks the right to {right.value}")
            if everywhere and not identity.sees_all:
                raise HTTPException(403, "this is about all data domains, and the token is limited to some")
            if request.method not in _READS:
                self._refuse_forged(request, identity, right)
            return identity

        return check

    async def identify(self, request: Request) -> Identity | None:
        """The caller; None without a credential. Raises HTTPException for a wrong one, and for too many of them."""
        address = self.authenticator.address(request)
        if self._failures.is_spent(address):
            raise _too_often(60.0)
        try:
            return await self.authenticator.identify(request)
        except HTTPException as refusal:
            self.failed(address, refusal)
            raise

    async def sign_in(self, request: Request, token: str) -> Identity:
        """Whose token it is that a person typed. Raises HTTPException."""
        address = self.authenticator.address(request)
        if self._failures.is_spent(address):
            raise _too_often(60.0)
        self.refuse_other_origin(request)
        try:
            return await self.authenticator.by_token(token)
        except HTTPException as refusal:
            self.failed(address, refusal)
            raise

    def failed(self, address: str, refusal: HTTPException) -> None:
        """Count a wrong credential against where it came from."""
        if refusal.status_code == 401:
            self._failures.take(address)

    def refuse_other_origin(self, request: Request) -> None:
        """Raises HTTPException 403 where a browser says that a page of another site asks."""
        origin = request.headers.get("origin")
        ours = {request.headers.get("host", ""), self._public}
        other = origin is not None and urlsplit(origin).netloc not in ours
        if other or request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise HTTPException(403, "the request comes from a page of another site")

    async def form(self, request: Request, identity: Identity) -> dict[str, str]:
        """A form's fields, once it is proven to come from a page of ours. Raises HTTPException."""
        fields = await read_form(request)
        visit = request.cookies.get(VISIT_COOKIE, "")
        if not self.signer.form_is_ours(visit, identity.key, fields.pop(FORM_KEY, "")):
            raise HTTPException(403, "the form does not come from a page of this server: load the page again")
        return fields

    def _refuse_forged(self, request: Request, identity: Identity, right: Right) -> None:
        """What a browser sends by itself proves nothing: forms prove themselves (`form`), the rest needs a token."""
        if identity.means is Means.BEARER:
            return
        self.refuse_other_origin(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == FORM:
            return
        if identity.means is not Means.OPEN:
            raise HTTPException(403, "the API changes things for bearer tokens only; browsers use the pages' forms")
        if not kind.startswith("application/") and right is not Right.INGEST:
            # Anything else a page elsewhere may send without asking. Events have types of their own to be told by.
            raise HTTPException(415, "send a Content-Type: application/json")

    def _count(self, request: Request, identity: Identity, right: Right) -> None:
        # One application sends the words of all its users: that is traffic, not a person at a page.
        writes = self._feedback if right is Right.FEEDBACK else self._writes
        limit = self._reads if request.method in _READS else writes
        caller = identity.key if identity.means is not Means.OPEN else self.authenticator.address(request)
        wait_s = limit.take(caller)
        if wait_s is not None:
            raise _too_often(wait_s)


async def read_form(request: Request) -> dict[str, str]:
    """A form's fields, the last of each name. Raises HTTPException 413, 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HTTPException(415, f"a form is {FORM}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, f"a form has at most {MAX_FORM_BYTES} bytes")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100))


def _too_often(wait_s: float) -> HTTPException:
    seconds = max(1, math.ceil(wait_s))
    return HTTPException(429, f"too many requests: ask again in {seconds} s", {"Retry-After": str(seconds)})

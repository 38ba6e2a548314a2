"""The policies, as every engine decides them: one table of cases, the same answers, no rule without a case."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from models.decision import GateDecision
from policies.gate.bundle import REGO_ROOT, BundleError, PolicyBundle, load_bundle, write_bundle
from policies.gate.opa_engine import OpaConfig, OpaEngine
from policies.gate.regopy_engine import RegopyEngine

TABLE = yaml.safe_load((Path(__file__).parents[2] / "data" / "policy_cases.yaml").read_text(encoding="utf-8"))
OPA_COMMAND = "docker/install/opa.sh (needs Go; FLYWHEEL_OPA=/path/to/opa names one that is there)"
_ABSENT = object()


@dataclass(frozen=True)
class Case:
    """A question to the policies and what must come out."""

    name: str
    action: str
    facts: Mapping[str, Any]
    codes: frozenset[str]
    lane: str | None = None
    needs_approval: bool | None = None
    data: str = "usual"


def patched(facts: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the facts with the fact at a dotted path replaced, or taken away."""
    changed = copy.deepcopy(dict(facts))
    *parents, leaf = path.split(".")
    section = changed
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is _ABSENT:
        del section[leaf]
    else:
        section[leaf] = copy.deepcopy(value)
    return changed


def expand_action(action: str, table: Mapping[str, Any]) -> Iterator[Case]:
    """The base, then every fact missing, null, of the wrong type, beyond its limit and on it, then every section."""
    base, lane = table["base"], table["lane"]
    yield Case(f"{action}: base", action, base, frozenset(), lane)
    sections: dict[str, set[str]] = {}
    for path, fact in table["facts"].items():
        codes = frozenset(fact["codes"])
        sections.setdefault(path.split(".")[0], set()).update(codes)
        yield Case(f"{action}: {path} missing", action, patched(base, path, _ABSENT), codes)
        for kind in ("wrong", "beyond", "at"):
            values = [None, *fact["wrong"]] if kind == "wrong" else fact.get(kind, [])
            for value in values:
                expected = frozenset[str]() if kind == "at" else codes
                yield Case(f"{action}: {path} {kind} {value!r}", action, patched(base, path, value), expected)
    for section, codes_of_section in sections.items():
        codes = frozenset(codes_of_section | set(table.get("sections", {}).get(section, [])))
        for value in (_ABSENT, None, [], "text", 3):
            label = "missing" if value is _ABSENT else repr(value)
            yield Case(f"{action}: section {section} {label}", action, patched(base, section, value), codes)


def expand_single(case: Mapping[str, Any]) -> Case:
    facts = TABLE["actions"][case.get("base", case["action"])]["base"]
    for path, value in case.get("set", {}).items():
        facts = patched(facts, path, value)
    for path in case.get("remove", []):
        facts = patched(facts, path, _ABSENT)
    codes = frozenset(case["codes"])
    needs_approval, data = case.get("needs_approval", False), case.get("data", "usual")
    return Case(case["name"], case["action"], facts, codes, case.get("lane"), needs_approval, data)


CASES = [case for action, table in TABLE["actions"].items() for case in expand_action(action, table)]
CASES += [expand_single(case) for case in TABLE["cases"]]


def mismatch(case: Case, decision: GateDecision) -> str | None:
    """What differs between the decision and what the case expects."""
    codes = [reason.code for reason in decision.reasons]
    if not decision.conclusive:
        return f"undecided: {decision.reasons[0].message}"
    if len(codes) != len(set(codes)) or set(codes) != case.codes:
        return f"codes {codes}, expected {sorted(case.codes)}"
    if decision.allow is bool(case.codes):
        return f"allow {decision.allow} with codes {codes}"
    if case.lane is not None and decision.lane != case.lane:
        return f"lane {decision.lane}, expected {case.lane}"
    if case.needs_approval is not None and decision.needs_approval is not case.needs_approval:
        return f"needs_approval {decision.needs_approval}, expected {case.needs_approval}"
    return None


@pytest.fixture(scope="module")
def bundles() -> dict[str, PolicyBundle]:
    """The bundle over each of the table's data."""
    return {name: load_bundle(overrides=data) for name, data in TABLE["data"].items()}


@pytest.fixture(scope="module")
def bundle(bundles: dict[str, PolicyBundle]) -> PolicyBundle:
    return bundles["usual"]


@pytest.fixture(scope="module")
def regopy_decisions(bundles: dict[str, PolicyBundle]) -> dict[str, GateDecision]:
    engines = {name: RegopyEngine(bundle) for name, bundle in bundles.items()}
    return {case.name: engines[case.data].decide_now(case.action, case.facts) for case in CASES}


@pytest.fixture(scope="module")
def opa() -> str:
    """The OPA program."""
    program = os.environ.get("FLYWHEEL_OPA") or shutil.which("opa")
    if program is None or not Path(program).is_file():
        pytest.skip(f"the OPA program is missing. Provide it with: {OPA_COMMAND}")
    return program


@contextmanager
def opa_server(opa: str, bundle: PolicyBundle, folder: Path) -> Iterator[Path]:
    """Socket of an OPA server that holds the bundle."""
    write_bundle(bundle, folder / "bundle")
    socket = folder / "opa.sock"
    command = [opa, "run", "--server", "--bundle", str(folder / "bundle"), "--addr", f"unix://{socket}"]
    with (folder / "opa.log").open("wb") as log:
        server = subprocess.Popen([*command, "--skip-version-check"], stdout=log, stderr=log)
        try:
            wait_until_serving(socket, server, folder / "opa.log")
            yield socket
        finally:
            server.terminate()
            server.wait(timeout=20)


@pytest.fixture(scope="module")
def opa_sockets(
    opa: str, bundles: dict[str, PolicyBundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Sockets of OPA servers, one for each of the table's data."""
    with ExitStack() as servers:
        yield {
            name: servers.enter_context(opa_server(opa, bundle, tmp_path_factory.mktemp("opa")))
            for name, bundle in bundles.items()
        }


def wait_until_serving(socket: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
        while True:
            try:
                if client.get("http://opa/health?bundles=true").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            assert server.poll() is None, f"OPA ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"OPA does not serve: {log.read_text()[-2000:]}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def opa_decisions(opa_sockets: dict[str, Path], bundles: dict[str, PolicyBundle]) -> dict[str, GateDecision]:
    async def decide_all() -> dict[str, GateDecision]:
        engines = {name: opa_engine(opa_sockets[name], bundle) for name, bundle in bundles.items()}
        try:
            return {case.name: await engines[case.data].decide(case.action, case.facts) for case in CASES}
        finally:
            for engine in engines.values():
                await engine.aclose()

    return asyncio.run(decide_all())


def opa_engine(socket: Path, bundle: PolicyBundle) -> OpaEngine:
    config = OpaConfig(
        "http://opa",
        timeout_seconds=10.0,
        bundle_revision=bundle.bundle_revision,
        data_revision=bundle.data_revision,
    )
    return OpaEngine(config, transport=httpx.AsyncHTTPTransport(uds=str(socket)))


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_regopy_decides(case: Case, regopy_decisions: dict[str, GateDecision]) -> None:
    assert mismatch(case, regopy_decisions[case.name]) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_opa_agrees(
    case: Case, opa_decisions: dict[str, GateDecision], regopy_decisions: dict[str, GateDecision]
) -> None:
    assert mismatch(case, opa_decisions[case.name]) is None
    told_apart = {"engine", "decision_id"}
    expected = regopy_decisions[case.name].model_dump(exclude=told_apart)
    assert opa_decisions[case.name].model_dump(exclude=told_apart) == expected


def test_decisions_carry_the_revisions(
    regopy_decisions: dict[str, GateDecision], bundles: dict[str, PolicyBundle]
) -> None:
    for case in CASES:
        decision, bundle = regopy_decisions[case.name], bundles[case.data]
        assert (decision.bundle_revision, decision.data_revision) == (bundle.bundle_revision, bundle.data_revision)


def survives(modules: Mapping[str, str], bundles: Mapping[str, PolicyBundle], cases: Iterable[Case]) -> bool:
    """Whether policies that are not the project's pass every case all the same. One that does not load fails."""
    try:
        engines = {name: RegopyEngine(dataclasses.replace(bundle, modules=modules)) for name, bundle in bundles.items()}
    except BundleError:
        return False
    return all(mismatch(case, engines[case.data].decide_now(case.action, case.facts)) is None for case in cases)


def rules_of(source: str) -> list[str]:
    """The rules of a module, each with its metadata; the package clause and the package's metadata are left out."""
    blocks = re.split(r"(?m)^(?=# METADATA$)", source)
    return [block for block in blocks if block and not re.search(r"(?m)^package ", block)]


RULES = [
    (path.name, rule)
    for path in sorted(REGO_ROOT.rglob("*.rego"))
    if not path.name.endswith("_test.rego")
    for rule in rules_of(path.read_text(encoding="utf-8"))
    # Data without revisions reaches this rule only in OPA: its Rego test is the case.
    if "default revision" not in rule
]


@pytest.mark.parametrize(
    ("module", "rule"), [pytest.param(*rule, id=rule[1].splitlines()[1].removeprefix("# title: ")) for rule in RULES]
)
def test_no_rule_can_be_taken_out_unnoticed(module: str, rule: str, bundles: dict[str, PolicyBundle]) -> None:
    sources = bundles["usual"].modules
    name = next(name for name in sources if name.endswith(f"/{module}"))
    assert sources[name].count(rule) == 1
    mutant = {**sources, name: sources[name].replace(rule, "")}
    # The likeliest to notice first: cases of the code that the rule names, then those that are allowed.
    cases = sorted(CASES, key=lambda case: (not any(code in rule for code in case.codes), bool(case.codes)))
    assert not survives(mutant, bundles, cases), f"no case needs\n{rule}"


def test_every_reason_has_a_case(bundle: PolicyBundle) -> None:
    written = {code for source in bundle.modules.values() for code in re.findall(r'"code": "(\w+)"', source)}
    assert written == {code for case in CASES for code in case.codes}


def test_every_rule_has_metadata(bundle: PolicyBundle) -> None:
    for name, source in bundle.modules.items():
        for head in re.finditer(r"(?m)^(?!package )[a-z].*$", source):
            before = source[: head.start()].rsplit("\n\n", 1)[-1]
            assert before.startswith("# METADATA\n# title: "), f"{name}: {head.group(0)}"


def run_opa(opa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [opa, *arguments]
    return subprocess.run(command, cwd=REGO_ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_rego_tests_pass_and_cover(opa: str) -> None:
    tests = run_opa(opa, "test", "acgs", "data")
    assert tests.returncode == 0, tests.stdout + tests.stderr
    report = run_opa(opa, "test", "--coverage", "--threshold", "95", "acgs", "data")
    assert report.returncode == 0, report.stdout[-2000:] + report.stderr
    assert json.loads(report.stdout)["coverage"] >= 95


def test_rego_is_strict_and_formatted(opa: str) -> None:
    check = run_opa(opa, "check", "--strict", "acgs", "data")
    assert check.returncode == 0, check.stdout + check.stderr
    form = run_opa(opa, "fmt", "--diff", "--fail", "acgs")
    assert form.returncode == 0, form.stdout + form.stderr

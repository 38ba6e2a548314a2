"""`flywheel policy`: what it prints, writes, and exits with."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from gate_parts import TABLE, edit, opa_program, opa_server, write_small_policies
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.embedded.run_directory import RunDirectory
from app.settings import Settings
from app.wiring import policy_bundle
from policies.constitution import load_constitution
from policies.gate.bundle import CASES, PolicyBundle, bundle_archive

UNAPPROVED = next(case.facts for case in TABLE.cases if case.name == "export waits for approval")


@pytest.fixture(scope="module")
def opa() -> Path:
    """The OPA program, found before `clean` takes away the variable that names it."""
    return opa_program()


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    """The project's policies, as an installation without settings has them."""
    return policy_bundle(Settings(), load_constitution())


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run with no setting but those of the test."""
    for name in list(os.environ):
        if name.startswith("FLYWHEEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_DATABASE__URL", f"sqlite:///{tmp_path / 'test.db'}")


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Policies about one fact, to be changed."""
    return write_small_policies(tmp_path / "policies")


@pytest.fixture
def set_policies(policies: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those policies, as the installation's."""
    monkeypatch.setenv("FLYWHEEL_GATE__POLICIES", str(policies))
    return policies


def run(*arguments: str, status: int = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["policy", *arguments], input=given)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def evaluated(action: str, facts: Any, status: int) -> dict[str, Any]:
    result: dict[str, Any] = orjson.loads(
        run("eval", action, "--facts", "-", "--json", status=status, given=json.dumps(facts)).stdout
    )
    return result


def test_the_projects_policies_pass_with_opa(opa: Path) -> None:
    rows = orjson.loads(run("test", "--opa", str(opa), "--json").stdout)
    cases = f"{len(TABLE.cases)} cases"
    assert [(row["test"], row["by"], row["result"]) for row in rows] == [
        (cases, "regopy", "passed"),
        ("Rego tests", "opa", "passed"),
        ("strict check", "opa", "passed"),
        (cases, "opa", "passed"),
    ]


def test_without_opa_the_cases_alone_are_run(set_policies: Path) -> None:
    (row,) = orjson.loads(run("test", "--json").stdout)
    assert (row["test"], row["by"], row["result"]) == ("11 cases", "regopy", "passed")


def test_failing_cases_are_named(policies: Path, opa: Path) -> None:
    edit(policies / "small.rego", ">=", ">")
    result = run("test", "--policies", str(policies), "--opa", str(opa), status=1)
    for engine in ("regopy", "opa"):
        assert f"11 cases by {engine}: 'sell: stock.amount at 1': codes ['enough'], expected []" in result.stderr
    assert "Rego tests by opa: " in result.stderr
    assert "test_enough: FAIL" in result.stderr


def test_more_failing_cases_than_are_shown_are_counted(policies: Path) -> None:
    edit(policies / "small.rego", '"fast"', '"slow"')
    edit(policies / "small.rego", ">=", ">")
    edit(policies / CASES, "codes: [enough]", "codes: [plenty]")
    assert "11 cases by regopy: and 1 more" in run("test", "--policies", str(policies), status=1).stderr


def test_what_opa_refuses_strictly_is_shown(policies: Path, opa: Path) -> None:
    edit(policies / "small.rego", "enough if {", "enough if {\n\tunused := 1")
    result = run("test", "--policies", str(policies), "--opa", str(opa), status=1)
    assert "strict check by opa: " in result.stderr
    assert "unused" in result.stderr


def test_policies_that_do_not_compile(policies: Path) -> None:
    edit(policies / "small.rego", "data.bounds.amount", "data.bounds.")
    assert "do not compile" in run("test", "--policies", str(policies), status=1).stderr


def test_policies_without_cases(policies: Path) -> None:
    (policies / CASES).unlink()
    assert "cases.yaml is missing" in run("test", "--policies", str(policies), status=1).stderr


def test_eval_prints_reasons_lane_and_revisions(tmp_path: Path, bundle: PolicyBundle) -> None:
    (tmp_path / "facts.json").write_text(json.dumps(UNAPPROVED))
    printed = run("eval", "teacher_export", "--facts", "facts.json", status=1).stdout
    for part in ("refuse", "approval_granted: ", "slow, a human", bundle.bundle_revision, bundle.data_revision):
        assert part in printed


def test_eval_allows_and_refuses(set_policies: Path) -> None:
    allowed = evaluated("sell", {"stock": {"amount": 1}}, status=0)
    assert (allowed["verdict"], allowed["reasons"], allowed["lane"]) == ("allow", [], "fast")
    refused = evaluated("sell", {"stock": {"amount": 0}}, status=1)
    assert refused["verdict"] == "refuse"
    assert refused["reasons"] == [{"code": "enough", "message": "There must be enough."}]
    assert not refused["human_review_required"]
    assert refused["data_revision"] == allowed["data_revision"]


@pytest.mark.parametrize(
    ("given", "message"), [("[]", "a JSON list"), ("{", "no JSON"), ("3", "a JSON int"), ("", "no JSON")]
)
def test_eval_of_what_are_no_facts_is_no_verdict(given: str, message: str) -> None:
    assert message in run("eval", "sell", "--facts", "-", status=2, given=given).stderr


def test_eval_without_the_file_is_no_verdict() -> None:
    assert "nowhere.json cannot be read" in run("eval", "sell", "--facts", "nowhere.json", status=2).stderr


def test_eval_by_an_opa_that_is_away_is_no_verdict(set_policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_GATE__OPA_URL", "http://127.0.0.1:9")
    decision = evaluated("sell", {"stock": {"amount": 1}}, status=2)
    assert [reason["code"] for reason in decision["reasons"]] == ["policy_unavailable"]


def test_eval_by_an_opa_with_other_policies_is_no_verdict(
    opa: Path, set_policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("bundle", "--out", "b.tar.gz")
    with (
        RunDirectory.create(tmp_path / "run") as directory,
        opa_server(directory, tmp_path / "b.tar.gz", opa) as server,
    ):
        monkeypatch.setenv("FLYWHEEL_GATE__OPA_URL", server.url)
        assert evaluated("sell", {"stock": {"amount": 1}}, status=0)["engine"] == "opa"
        monkeypatch.setenv("FLYWHEEL_GATE__BOUNDS", '{"amount": 0.5}')
        decision = evaluated("sell", {"stock": {"amount": 1}}, status=2)
    assert [reason["code"] for reason in decision["reasons"]] == ["policy_revision"]


def test_eval_by_policies_that_fail_their_cases_is_no_verdict(set_policies: Path) -> None:
    edit(set_policies / "small.rego", ">=", ">")
    assert "otherwise than their table says" in run("eval", "sell", "--facts", "-", status=2, given="{}").stderr


def test_eval_by_the_stores_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is permitted anything yet, and no machine has reported."""
    monkeypatch.setenv("FLYWHEEL_GATE__DATA", "sql")
    facts = next(case.facts for case in TABLE.cases if case.name == "model_inference: base")
    codes = {reason["code"] for reason in evaluated("model_inference", facts, status=1)["reasons"]}
    assert codes == {"user_permitted", "gpu_quota", "risk_permitted", "gpus_available", "memory_available"}


def test_the_projects_bundle_is_printed_and_written(tmp_path: Path, bundle: PolicyBundle) -> None:
    printed = orjson.loads(run("bundle", "--out", "b.tar.gz", "--json").stdout)
    assert printed == {"policies": bundle.bundle_revision, "data": bundle.data_revision, "written": "b.tar.gz"}
    assert (tmp_path / "b.tar.gz").read_bytes() == bundle_archive(bundle)


def test_a_file_is_written_over_and_a_folder_is_not(set_policies: Path, tmp_path: Path) -> None:
    assert orjson.loads(run("bundle", "--json").stdout)["written"] is None
    for _ in range(2):
        run("bundle", "--out", "out/b.tar.gz")
    revisions = orjson.loads(run("bundle", "--out", "folder", "--json").stdout)
    manifest = json.loads((tmp_path / "folder" / ".manifest").read_text())
    assert manifest["revision"] == f"{revisions['policies']}:{revisions['data']}"
    assert "is not empty" in run("bundle", "--out", "folder", status=1).stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out", "folder", "policies"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b.tar.gz"}


def test_a_bundle_holds_the_installations_own_bounds(
    set_policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_GATE__BOUNDS", '{"amount": 3}')
    run("bundle", "--out", "b.tar.gz")
    assert b'{"amount":3.0}' in gzip.decompress((tmp_path / "b.tar.gz").read_bytes())


def test_a_bundle_whose_tests_fail_is_not_written(set_policies: Path, opa: Path, tmp_path: Path) -> None:
    run("bundle", "--out", "b.tar.gz")
    before = (tmp_path / "b.tar.gz").read_bytes()
    edit(set_policies / "small_test.rego", "0.5", "1.5")
    assert "Rego tests fail" in run("bundle", "--out", "b.tar.gz", "--opa", str(opa), status=1).stderr
    edit(set_policies / "small.rego", ">=", ">")
    assert "otherwise than their table says" in run("bundle", "--out", "b.tar.gz", status=1).stderr
    assert (tmp_path / "b.tar.gz").read_bytes() == before


def test_facts_nested_too_deep_are_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text("[" * 100_000)
    assert "no JSON" in run("eval", "model_inference", "--facts", str(file), status=2).stderr

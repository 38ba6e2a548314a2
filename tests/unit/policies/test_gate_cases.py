"""The case table says what it means or is refused, and a bundle that decides otherwise is not loaded."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from gate_parts import TABLE, edit, write_small_policies

from models.decision import GateDecision, GateReason
from policies.gate.bundle import CASES, load_bundle, read_files
from policies.gate.cases import Case, load_cases
from policies.gate.check import check_bundle, check_files
from policies.gate.errors import BundleError
from policies.gate.source import BundleSource

MODULE = "small.rego"
DATA = "data/small.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Policies about one fact, to be changed."""
    return write_small_policies(tmp_path / "rego")


def small_table(**changes: Any) -> dict[str, Any]:
    """A table of one action, as YAML reads it."""
    table: dict[str, Any] = {
        "data": {"usual": {"set": {"bounds.epsilon": 3}}},
        "actions": {
            "a": {
                "lane": "fast",
                "human_review_required": False,
                "base": {"s": {"f": 1, "g": "x"}},
                "facts": {
                    "s.f": {"codes": ["f"], "wrong": ["1"], "beyond": [0], "at": [2]},
                    "s.g": {"codes": ["g"], "wrong": []},
                },
                "sections": {"s": ["more"]},
            }
        },
        "cases": [{"name": "one", "action": "b", "base": "a", "set": {"s.f": 7}, "remove": ["s.g"], "codes": ["g"]}],
    }
    return table | changes


def write(folder: Path, table: Any) -> Path:
    (folder / CASES).write_text(table if isinstance(table, str) else yaml.safe_dump(table))
    return folder


def test_lines_become_cases(tmp_path: Path) -> None:
    cases = {case.name: case for case in load_cases(write(tmp_path, small_table())).cases}
    base = Case("a: base", "a", {"s": {"f": 1, "g": "x"}}, frozenset(), "fast", False, False)
    assert cases["a: base"] == base
    assert cases["a: s.f missing"] == Case("a: s.f missing", "a", {"s": {"g": "x"}}, frozenset({"f"}))
    assert {name: (cases[f"a: s.f {name}"].facts["s"]["f"], cases[f"a: s.f {name}"].codes) for name in (
        "wrong None", "wrong '1'", "beyond 0", "at 2"
    )} == {
        "wrong None": (None, {"f"}),
        "wrong '1'": ("1", {"f"}),
        "beyond 0": (0, {"f"}),
        "at 2": (2, frozenset()),
    }  # fmt: skip
    assert cases["a: section s 'text'"].facts == {"s": "text"}
    assert cases["a: section s missing"].codes == {"f", "g", "more"}
    assert cases["one"] == Case("one", "b", {"s": {"f": 7}}, frozenset({"g"}), None, False, None, "usual")
    assert len(cases) == 1 + (1 + 2 + 1 + 1) + (1 + 1) + 5 + 1


def test_cases_do_not_share_their_facts(tmp_path: Path) -> None:
    cases = load_cases(write(tmp_path, small_table())).cases
    facts = [id(case.facts["s"]) for case in cases if isinstance(case.facts.get("s"), dict)]
    assert len(facts) == len(set(facts))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "is not valid YAML"),
        ("", "document: Input should be a valid dictionary"),
        (small_table(actions={}), "actions: "),
        (small_table(extra=1), "extra: Extra inputs"),
        (small_table(data={}), "usual is missing"),
        (small_table(cases=[{"name": "x", "action": "a", "codes": [], "lane": "express"}]), r"cases\.0\.lane: "),
        (small_table(cases=[{"name": "x", "action": "b", "codes": []}]), "starts from 'b'; name one of a"),
        (small_table(cases=[{"name": "x", "action": "a", "data": "d", "codes": []}]), "the data 'd'; there are usual"),
        (small_table(cases=[{"name": "x", "action": "a", "remove": ["s.h"], "codes": []}]), "s.h, which is not there"),
        (small_table(cases=[{"name": "x", "action": "a", "set": {"s.g.h": 1}, "codes": []}]), "s.g.h, which is not"),
        (small_table(cases=[{"name": "x", "action": "a", "codes": []}] * 2), "two cases have the name 'x'"),
        ("data: {usual: {}}\ndata: {}\n", "line 2: the key 'data' is given twice"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_cases(write(tmp_path, table))


def test_sections_without_facts_are_refused(tmp_path: Path) -> None:
    table = small_table()
    table["actions"]["a"]["sections"] = {"t": ["more"]}
    with pytest.raises(BundleError, match=r"actions\.a\.sections: no fact lies in t"):
        load_cases(write(tmp_path, table))


@pytest.mark.parametrize("path", ["t.nowhere", "nowhere", "t.amount.deeper"])
def test_a_fact_that_is_not_in_its_base_is_refused(tmp_path: Path, path: str) -> None:
    table = small_table()
    table["actions"]["a"]["facts"] = {path: {"codes": ["enough"], "wrong": []}}
    with pytest.raises(BundleError, match=rf"actions\.a\.facts: {path} is not in the base"):
        load_cases(write(tmp_path, table))


def test_data_that_the_bundle_has_not_is_refused(tmp_path: Path) -> None:
    table = load_cases(write(tmp_path, small_table(data={"usual": {"set": {"bunds.epsilon": 3}}})))
    with pytest.raises(BundleError, match="changes bunds, which the bundle's data has not"):
        table.bundles(load_bundle())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"conclusive": False}, "undecided: Not yet."),
        ({"reasons": ("b",)}, r"codes \['b'\], expected \['a'\]"),
        ({"reasons": ("a", "a")}, r"codes \['a', 'a'\]"),
        ({"lane": "fast"}, "lane fast, expected slow"),
        ({"human_review_required": True}, "human_review_required True, expected False"),
    ],
)
def test_what_differs_is_told(changes: dict[str, Any], message: str | None) -> None:
    case = Case("x", "act", {}, frozenset({"a"}), "slow", None, False)
    fields: dict[str, Any] = {"conclusive": True, "lane": "slow", "reasons": ("a",)} | changes
    fields["reasons"] = tuple(GateReason(code=code, message="Not yet.") for code in fields["reasons"])
    decision = GateDecision(
        action="act", allow=False, bundle_revision="b", data_revision="d", engine="regopy", **fields
    )
    difference = case.mismatch(decision)
    assert difference == message if message is None else re.search(message, str(difference))


def test_the_project_passes() -> None:
    check_bundle(load_bundle(), TABLE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ">=",
            ">",
            r"decide 1 of 11 cases otherwise .* \('sell: stock\.amount at 1': codes \['enough'\], expected \[\]\)",
        ),
        ("is_number(input.stock.amount)", "true", "'sell: stock.amount wrong None'"),
        ("data.bounds.amount", "data.bounds.", "do not compile"),
        ("is_number(", "net.lookup_ip_addr(", "regopy has not"),
    ],
)
def test_a_bundle_that_fails_its_cases_is_refused(root: Path, old: str, new: str, message: str) -> None:
    edit(root / MODULE, old, new)
    with pytest.raises(BundleError, match=message):
        check_files(read_files(root), root)


def test_only_the_first_failing_cases_are_named(root: Path) -> None:
    edit(root / MODULE, "not enough", "true")
    with pytest.raises(BundleError, match=r"decide 2 of 11 .* \('sell: base': .*; 'sell: stock\.amount at 1': [^;]*\)"):
        check_files(read_files(root), root)
    edit(root / MODULE, '"fast"', '"slow"')
    edit(root / CASES, "codes: [enough]", "codes: [plenty]")
    with pytest.raises(BundleError, match=r"decide 11 of 11 [^;]*(;[^;]*){2}; \.\.\.\); mend"):
        check_files(read_files(root), root)


def test_a_bundle_without_cases_is_refused(root: Path) -> None:
    (root / CASES).unlink()
    with pytest.raises(BundleError, match=r"cases\.yaml is missing"):
        check_files(read_files(root), root)


def test_overrides_do_not_disturb_the_cases(root: Path) -> None:
    bundle = check_files(read_files(root), root, {"bounds": {"amount": 5}})
    assert bundle.data["bounds"]["amount"] == 5
    with pytest.raises(BundleError, match=r"no bounds\.amout"):
        check_files(read_files(root), root, {"bounds": {"amout": 2}})


def test_a_source_follows_its_folder(root: Path) -> None:
    source = BundleSource(root, {"bounds": {"amount": 5}})
    first = source.bundle
    assert source.refresh() is first
    edit(root / DATA, '"amount": 1', '"amount": 1, "other": 1')
    second = source.refresh()
    assert second is source.bundle is not first
    assert second.data["bounds"] == {"amount": 5, "other": 1}
    edit(root / MODULE, "default", "# A remark\n\ndefault")
    assert source.refresh().bundle_revision != first.bundle_revision
    assert source.error is None


def test_a_source_keeps_what_passed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = BundleSource(root)
    first = source.bundle
    edit(root / MODULE, ">=", ">")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert source.refresh() is first
    assert isinstance(source.error, BundleError)
    assert "otherwise than their table says" in str(source.error)
    assert len(caplog.records) == 1
    edit(root / MODULE, ">", ">=")
    assert source.refresh() is first
    assert source.error is None


def test_a_source_whose_folder_is_away_keeps_what_passed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = BundleSource(root)
    first = source.bundle
    root.rename(root.with_name("away"))
    for _ in range(2):
        assert source.refresh() is first
    assert "no Rego policy" in str(source.error)
    assert len(caplog.records) == 1
    root.with_name("away").rename(root)
    assert source.refresh() is first
    assert source.error is None


def test_a_source_whose_files_cannot_be_read_keeps_what_passed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = BundleSource(root)
    (root / "more.rego").mkdir()
    for _ in range(2):
        assert source.refresh() is source.bundle
    assert "cannot be read" in str(source.error)
    assert len(caplog.records) == 1


def test_a_source_that_cannot_begin_says_why(root: Path) -> None:
    edit(root / MODULE, ">=", ">")
    with pytest.raises(BundleError, match="otherwise than their table says"):
        BundleSource(root)


def test_a_folder_caught_while_it_is_written_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = BundleSource(root)
    first = source.bundle
    edit(root / MODULE, "default", "# Half\n\ndefault")
    reads = 0

    def read_and_go_on(folder: Path) -> dict[str, bytes]:
        nonlocal reads
        files = read_files(folder)
        reads += 1
        if reads == 1:
            edit(root / MODULE, "# Half", "# Whole")
        return files

    monkeypatch.setattr("policies.gate.source.read_files", read_and_go_on)
    assert source.refresh() is first
    assert "# Whole" in source.refresh().modules[MODULE]


def test_hidden_folders_are_no_part_of_the_policies(root: Path) -> None:
    before = read_files(root)
    (root / "..2024_01_01" / "data").mkdir(parents=True)
    (root / "..2024_01_01" / MODULE).write_text("package old\n")
    assert read_files(root) == before


def test_threads_share_a_source(root: Path) -> None:
    source = BundleSource(root)
    edit(root / MODULE, "default", "# A remark\n\ndefault")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: source.refresh(), range(8)))
    assert "# A remark" in found[0].modules[MODULE]
    assert all(bundle is found[0] for bundle in found)

"""The constitution document: what ships is sound, and what is wrong is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.constitution import DEFAULT_PATH, ConstitutionError, load_constitution, read_document

IDS = [
    "harm",
    "self_harm",
    "illegal_acts",
    "hate_and_bias",
    "child_safety",
    "privacy",
    "deception",
    "weapons",
    "professional_advice",
    "political_neutrality",
]  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return read_document(DEFAULT_PATH)


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_default_has_the_ten_principles_and_enough_exemplars() -> None:
    constitution = load_constitution()
    assert constitution.identifier == "cdd01ef066bc6cf2"
    assert [p.id for p in constitution.principles] == IDS
    for principle in constitution.principles:
        assert len(principle.exemplars.violating) >= 25
        assert len(principle.exemplars.lookalike) >= 25
        assert len(set(principle.revision_openings)) >= 3
        assert principle.revision_opening in principle.revision_openings
    assert len(constitution.benign) >= 80
    assert len(constitution.answers.refusal) >= 40
    assert len(constitution.answers.compliance) >= 60
    assert all(8 <= len(pair.answer.split()) <= 30 for pair in constitution.benign)


def test_no_text_occurs_twice() -> None:
    constitution = load_constitution()
    texts = [t for p in constitution.principles for t in (*p.exemplars.violating, *p.exemplars.lookalike)]
    texts += [pair.prompt for pair in constitution.benign]
    assert len(texts) == len({text.casefold() for text in texts})


def test_codes_by_severity() -> None:
    constitution = load_constitution()
    assert {"harmful_content", "harmful_content.weapons", "bias_detected", "privacy_violation"} <= (
        constitution.high_severity_codes
    )
    assert "political_bias" not in constitution.high_severity_codes
    assert constitution.principle("weapons").codes == ("harmful_content", "harmful_content.weapons")
    assert constitution.principle("privacy").codes == ("privacy_violation",)
    with pytest.raises(KeyError, match="known: harm, self_harm"):
        constitution.principle("unknown")


def test_digest_depends_on_the_content_and_not_on_the_layout(tmp_path: Path, document: dict[str, Any]) -> None:
    original = load_constitution()
    relaid = load_constitution(_write(tmp_path / "relaid.yaml", document))
    assert relaid.digest == original.digest
    assert len(original.digest) == 64
    changed = copy.deepcopy(document)
    changed["principles"][0]["exemplars"]["violating"][0] += " please"
    assert load_constitution(_write(tmp_path / "changed.yaml", changed)).digest != original.digest


def test_rules_are_part_of_the_digest_and_their_absence_is_not(tmp_path: Path, document: dict[str, Any]) -> None:
    original = load_constitution()
    changed = copy.deepcopy(document)
    changed["principles"][5]["rules"] = {"request": [], "answer": []}
    assert load_constitution(_write(tmp_path / "empty.yaml", changed)).digest == original.digest
    changed["principles"][5]["rules"]["answer"] = [r"\b\d{3}-\d{2}-\d{4}\b"]
    with_rules = load_constitution(_write(tmp_path / "rules.yaml", changed))
    assert with_rules.digest != original.digest
    assert with_rules.principle("privacy").rules.answer == (r"\b\d{3}-\d{2}-\d{4}\b",)


def _bad_pattern(d: dict[str, Any]) -> None:
    d["principles"][5]["rules"] = {"answer": ["(?<=secret) number"]}


def _drop_text(d: dict[str, Any]) -> None:
    del d["principles"][2]["text"]


def _bad_severity(d: dict[str, Any]) -> None:
    d["principles"][5]["severity"] = "dire"


def _unknown_key(d: dict[str, Any]) -> None:
    d["principles"][1]["weight"] = 3


def _few_exemplars(d: dict[str, Any]) -> None:
    d["principles"][7]["exemplars"]["violating"] = ["only one"]


def _yes_as_bool(d: dict[str, Any]) -> None:
    d["answers"]["compliance"][3] = True


def _repeated_id(d: dict[str, Any]) -> None:
    d["principles"][1]["id"] = "harm"


def _both_sides(d: dict[str, Any]) -> None:
    d["benign"][0]["prompt"] = d["principles"][7]["exemplars"]["violating"][0].upper()


def _blank_answer(d: dict[str, Any]) -> None:
    d["benign"][4]["answer"] = "   "


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_drop_text, r"principles\.illegal_acts\.text: .*add it"),
        (_bad_severity, r"principles\.privacy\.severity: .*'critical', 'high', 'medium' or 'low' \(found 'dire'\)"),
        (_unknown_key, r"principles\.self_harm\.weight: .*remove it or correct its name"),
        (_few_exemplars, r"principles\.weapons\.exemplars\.violating: .*add entries"),
        (_yes_as_bool, r"answers\.compliance\.3: .*\(found True\); write a text; quote it"),
        (_repeated_id, r"\['harm'\] occur more than once; give each principle its own id"),
        (_both_sides, r"stands in both principles\.weapons\.exemplars\.violating and benign"),
        (_blank_answer, r"benign\.4\.answer: "),
        (_bad_pattern, r"principles\.privacy\.rules\.answer\.0: is no RE2 pattern .*no look-around"),
    ],
)
def test_a_faulty_entry_is_named_with_a_remedy(
    tmp_path: Path, document: dict[str, Any], spoil: Callable[[dict[str, Any]], None], named: str
) -> None:
    spoilt = copy.deepcopy(document)
    spoil(spoilt)
    with pytest.raises(ConstitutionError, match=named):
        load_constitution(_write(tmp_path / "spoilt.yaml", spoilt))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("identifier: [", "is not valid YAML"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("version: 1.0.0\nversion: 2.0.0\n", "line 2: the key 'version' is given twice"),
    ],
)
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConstitutionError, match=named):
        load_constitution(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConstitutionError, match=r"absent\.yaml: cannot be read .*check the path"):
        load_constitution(tmp_path / "absent.yaml")


def test_a_part_stands_where_its_path_stands(tmp_path: Path, document: dict[str, Any]) -> None:
    split = copy.deepcopy(document)
    _write(tmp_path / "harm.yaml", split["principles"][0])
    _write(tmp_path / "benign.yml", split["benign"])
    split["principles"][0], split["benign"] = "harm.yaml", "benign.yml"
    assert load_constitution(_write(tmp_path / "split.yaml", split)).digest == load_constitution().digest


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("absent.yaml", r"absent\.yaml: cannot be read .*check the path"),
        ("../outside.yaml", r"the part '\.\./outside\.yaml' lies outside the document's folder; move it there"),
        ("broken.yaml", r"broken\.yaml: is not valid YAML"),
        ("twice.yaml", r"twice\.yaml: line 2: the key 'id' is given twice"),
        ("no part", r"principles\.#1: .*\(found 'no part'\)"),
    ],
)
def test_a_part_that_cannot_be_had_is_named(tmp_path: Path, document: dict[str, Any], part: str, named: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.yaml").write_text("id: harm\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("id: [", encoding="utf-8")
    (folder / "twice.yaml").write_text("id: harm\nid: harm\n", encoding="utf-8")
    split = copy.deepcopy(document)
    split["principles"][0] = part
    with pytest.raises(ConstitutionError, match=named):
        load_constitution(_write(folder / "split.yaml", split))


def test_a_refusal_repeats_nothing_at_length(tmp_path: Path, document: dict[str, Any]) -> None:
    long = copy.deepcopy(document)
    long["principles"][0]["id"] = "a" * 20_000
    long["k" * 20_000] = 1
    with pytest.raises(ConstitutionError, match=r"principles\.#1\.id: .*found 'aaa") as refused:
        load_constitution(_write(tmp_path / "long.yaml", long))
    assert len(str(refused.value)) < 2000
    assert str(refused.value).endswith("remove it or correct its name")


def test_a_parts_name_is_not_repeated_at_length(tmp_path: Path, document: dict[str, Any]) -> None:
    split = copy.deepcopy(document)
    split["principles"][0] = "x" * 20_000 + ".yaml"
    with pytest.raises(ConstitutionError, match=r"check the path$") as refused:
        load_constitution(_write(tmp_path / "split.yaml", split))
    assert len(str(refused.value)) < 2000

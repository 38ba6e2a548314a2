"""YAML is read safely, once a key, and no larger than it looks: what the fuzzer has found, by its cause."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from policies.constitution import ConstitutionError, load_constitution
from policies.yaml_text import MAX_DEPTH, UnusableYaml, read_yaml


def aliases_of_aliases(levels: int) -> str:
    names = "abcdefghijklmnop"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names[:levels])]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (aliases_of_aliases(9), "more than 500000 values, aliases written out"),
        ("a: &a [1, *a]", r"\*a stands in itself"),
        ("a: &a {b: {c: *a}}", r"\*a stands in itself"),
        ("[" * 50_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("- " * 50_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 50_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("a: 2001-02-30", "a value that is none of its kind"),
        ("a: !!bool perhaps", "a value that is none of its kind"),
        ("a: !!timestamp x", "a value that is none of its kind"),
        ("a: " + "9" * 5000, "a value that is none of its kind"),
        ("? [a, b]\n: c", "is not valid YAML .*unhashable key"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("a: !!python/object/apply:os.mkdir [ran]", "is not valid YAML"),
        ("a: *nowhere", "is not valid YAML"),
        ("a: \ud800", "."),
    ],
)
def test_what_no_document_should_hold_is_refused_in_a_line(text: str, told: str) -> None:
    with pytest.raises(UnusableYaml, match=told) as refused:
        read_yaml(text)
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


def test_aliases_and_merges_that_stay_small_are_read() -> None:
    text = "one: &one {a: 1, b: [2]}\ntwo: {<<: *one, a: 3}\nthree: [*one, *one]"
    one = {"a": 1, "b": [2]}
    assert read_yaml(text) == {"one": one, "two": {"a": 3, "b": [2]}, "three": [one, one]}
    assert read_yaml(aliases_of_aliases(4))["d"][0][0][0] == ["x"] * 9


@pytest.mark.parametrize("name", ["a\x00b.yaml", "x" * 300 + ".yaml"])
def test_a_part_that_no_file_can_be_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.yaml").write_text(f'benign: "{name}"'.replace("\x00", "\\0"))
    with pytest.raises(ConstitutionError, match=r"c\.yaml|cannot be read"):
        load_constitution(tmp_path / "c.yaml")


def test_a_thousand_faults_are_not_all_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("".join(f"k{number}: 1\n" for number in range(1000)))
    with pytest.raises(ConstitutionError, match=r"and 9\d\d more") as refused:
        load_constitution(tmp_path / "c.yaml")
    assert len(str(refused.value)) < 10_000

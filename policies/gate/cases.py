"""The case table of a bundle: its form, the single questions its lines stand for, and what each expects."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.decision import GateDecision
from policies.gate.bundle import CASES, REGO_ROOT, PolicyBundle, read_files
from policies.gate.errors import BundleError
from policies.yaml_text import UnusableYaml, read_yaml

USUAL = "usual"
"""The data of cases that name none."""

_ABSENT = object()
_NOT_THERE = (KeyError, TypeError, AttributeError)
"""What a path raises that leads nowhere."""

Lane = Literal["fast", "slow"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Change(_Line):
    set: dict[str, Any] = {}
    remove: list[str] = []


class _Fact(_Line):
    codes: Annotated[list[str], Field(min_length=1)]
    wrong: list[Any]
    beyond: list[Any] = []
    at: list[Any] = []


class _Action(_Line):
    lane: Lane
    human_review_required: bool
    base: dict[str, Any]
    facts: dict[str, _Fact]
    sections: dict[str, list[str]] = {}


class _Single(_Change):
    name: str
    action: str
    base: str | None = None
    data: str = USUAL
    codes: list[str]
    lane: Lane | None = None
    needs_approval: bool = False
    human_review_required: bool | None = None


class _Table(_Line):
    shared: Any = None
    data: dict[str, _Change]
    actions: Annotated[dict[str, _Action], Field(min_length=1)]
    cases: list[_Single]


@dataclass(frozen=True)
class Case:
    """A question to the policies and what must come out; what is None may come out either way."""

    name: str
    action: str
    facts: Mapping[str, Any]
    codes: frozenset[str]
    lane: Lane | None = None
    needs_approval: bool | None = None
    human_review_required: bool | None = None
    data: str = USUAL

    def mismatch(self, decision: GateDecision) -> str | None:
        """What differs between the decision and what the case expects; None where nothing does."""
        codes = [reason.code for reason in decision.reasons]
        if not decision.conclusive:
            return f"undecided: {decision.reasons[0].message}"
        if len(codes) != len(set(codes)) or set(codes) != self.codes:
            return f"codes {codes}, expected {sorted(self.codes)}"
        for name in ("lane", "needs_approval", "human_review_required"):
            expected, actual = getattr(self, name), getattr(decision, name)
            if expected is not None and actual != expected:
                return f"{name} {actual}, expected {expected}"
        return None


@dataclass(frozen=True)
class CaseTable:
    """All cases, and the changes of the bundle's own data that they are decided over."""

    cases: tuple[Case, ...]
    data: Mapping[str, _Change]

    def bundles(self, bundle: PolicyBundle) -> dict[str, PolicyBundle]:
        """The bundle over each of the table's data.

        Raises:
            BundleError: the table changes data that the bundle has not.
        """
        return {name: bundle.over(_changed(bundle, name, change)) for name, change in self.data.items()}


def load_cases(root: Path = REGO_ROOT) -> CaseTable:
    """The case table of a folder of policies; raises `BundleError` as `cases_of` does."""
    return cases_of(read_files(root), root)


def cases_of(files: Mapping[str, bytes], root: Path) -> CaseTable:
    """The case table that `read_files(root)` found.

    Raises:
        BundleError: there is none, it is no YAML, or a line of it cannot be read; names the line.
    """
    path = root / CASES
    if CASES not in files:
        raise BundleError(f"{path} is missing: a bundle brings the cases that it must decide; write its table")
    try:
        document = read_yaml(files[CASES])
        table = _Table.model_validate(document)
        cases = tuple(_expand(table))
    except UnusableYaml as error:
        raise BundleError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise BundleError(f"{path}: {place}: {first['msg']}; correct it") from None
    except _Unreadable as error:
        raise BundleError(f"{path}: {error}") from None
    return CaseTable(cases, table.data)


class _Unreadable(ValueError):
    """A line that fits the form and makes no sense."""


def _expand(table: _Table) -> Iterator[Case]:
    if USUAL not in table.data:
        raise _Unreadable(f"data: {USUAL} is missing, over which cases are decided that name no data; add it")
    names: Counter[str] = Counter()
    for case in _all_cases(table):
        names[case.name] += 1
        if names[case.name] > 1:
            raise _Unreadable(f"two cases have the name {case.name!r}; rename one")
        yield case


def _all_cases(table: _Table) -> Iterator[Case]:
    for action, lines in table.actions.items():
        yield from _cases_of_action(action, lines)
    for line in table.cases:
        yield _single_case(line, table)


def _cases_of_action(action: str, table: _Action) -> Iterator[Case]:
    """The base, then every fact missing, null, of the wrong type, beyond its limit and on it, then every section."""
    for path in table.facts:
        try:
            _patched(table.base, path, _ABSENT)
        except _NOT_THERE:
            raise _Unreadable(f"actions.{action}.facts: {path} is not in the base; correct the path") from None
    base = table.base
    review = table.human_review_required
    yield Case(f"{action}: base", action, base, frozenset(), table.lane, False, review)
    sections: dict[str, set[str]] = {}
    for path, fact in table.facts.items():
        codes = frozenset(fact.codes)
        sections.setdefault(path.split(".")[0], set()).update(codes)
        yield Case(f"{action}: {path} missing", action, _patched(base, path, _ABSENT), codes)
        for kind, values in (("wrong", [None, *fact.wrong]), ("beyond", fact.beyond), ("at", fact.at)):
            for value in values:
                expected = frozenset[str]() if kind == "at" else codes
                yield Case(f"{action}: {path} {kind} {value!r}", action, _patched(base, path, value), expected)
    for section in table.sections.keys() - sections.keys():
        raise _Unreadable(f"actions.{action}.sections: no fact lies in {section}; remove it")
    for section, codes_of_section in sections.items():
        codes = frozenset(codes_of_section | set(table.sections.get(section, [])))
        for value in (_ABSENT, None, [], "text", 3):
            label = "missing" if value is _ABSENT else repr(value)
            yield Case(f"{action}: section {section} {label}", action, _patched(base, section, value), codes)


def _single_case(line: _Single, table: _Table) -> Case:
    base = line.base or line.action
    if base not in table.actions:
        raise _Unreadable(
            f"case {line.name!r} starts from {base!r}; name one of {', '.join(table.actions)} as its base"
        )
    if line.data not in table.data:
        raise _Unreadable(f"case {line.name!r} has the data {line.data!r}; there are {', '.join(table.data)}")
    facts = _apply(table.actions[base].base, line, f"case {line.name!r}")
    return Case(
        name=line.name,
        action=line.action,
        facts=facts,
        codes=frozenset(line.codes),
        lane=line.lane,
        needs_approval=line.needs_approval,
        human_review_required=line.human_review_required,
        data=line.data,
    )


def _changed(bundle: PolicyBundle, name: str, change: _Change) -> Mapping[str, Any]:
    for path in change.set:
        if (key := path.split(".")[0]) not in bundle.data:
            raise BundleError(f"{CASES}: data.{name} changes {key}, which the bundle's data has not; correct its name")
    try:
        return _apply(bundle.data, change, f"data.{name}")
    except _Unreadable as error:
        raise BundleError(f"{CASES}: {error}") from None


def _apply(document: Mapping[str, Any], change: _Change, whose: str) -> Mapping[str, Any]:
    try:
        for path, value in change.set.items():
            document = _patched(document, path, value)
        for path in change.remove:
            document = _patched(document, path, _ABSENT)
    except _NOT_THERE as error:
        raise _Unreadable(f"{whose} changes {path}, which is not there ({error}); correct the path") from None
    return document


def _patched(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with what lies at a dotted path replaced, or taken away; raises `_NOT_THERE` without it."""
    changed = copy.deepcopy(dict(document))
    *parents, leaf = path.split(".")
    section = changed
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is _ABSENT:
        del section[leaf]
    else:
        section[leaf] = copy.deepcopy(value)
    return changed

"""Finds what the schema does not forbid and a constitution is still worse for. Light: no model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import re2
from pydantic import ValidationError

from policies.constitution.document import Constitution, Principle
from policies.constitution.errors import ConstitutionError
from policies.constitution.loader import DEFAULT_PATH, faults_of, read_document

# Some dozens of each: below them a head follows single exemplars rather than what they share.
ENOUGH_EXEMPLARS = 24
ENOUGH_BENIGN = 48
MOST_ALIKE = 20
"""Findings of one kind that are told: who mends those sees the others then."""
# Share of common words from which two exemplars are one.
NEARLY_THE_SAME = 0.8

_WORD = re.compile(r"[\w']+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend: where it stands, what is wrong with it, and what to do."""

    place: str
    problem: str
    remedy: str


def lint(path: Path | None = None) -> list[Finding]:
    """Findings on the document at `path`, or on the one that ships; what the schema refuses comes alone."""
    source = DEFAULT_PATH if path is None else path
    try:
        document = read_document(source)
    except ConstitutionError as error:
        return [Finding(str(source), str(error).removeprefix(f"{source}: "), "correct the file")]
    try:
        constitution = Constitution.model_validate(document)
    except ValidationError as error:
        return list(_some(_schema(fault) for fault in faults_of(error, document)))
    return list(examine(constitution))


def examine(constitution: Constitution) -> Iterator[Finding]:
    """Findings on a document that the schema accepts, of each kind the first."""
    principles = constitution.principles
    yield from _some(_counts(constitution))
    yield from _some(finding for principle in principles for finding in _openings(principle))
    yield from _some(finding for principle in principles for finding in _rules(principle, constitution))
    yield from _some(_repeated(_requests(constitution)))
    yield from _some(_repeated(_answers(constitution)))


def _some(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The first of a kind, and how many more there are."""
    told = list(islice(findings, MOST_ALIKE))
    yield from told
    more = sum(1 for _ in findings)
    if more:
        problem = f"and {more} more of the kind of these {MOST_ALIKE}"
        yield Finding(told[-1].place, problem, "mend these, and look again")


def _schema(fault: str) -> Finding:
    place, _, rest = fault.partition(": ")
    problem, _, remedy = rest.rpartition("; ")
    return Finding(place, problem or rest, remedy if problem else "correct it")


def _counts(constitution: Constitution) -> Iterator[Finding]:
    exemplars = [
        (f"principles.{principle.id}.exemplars.{side}", texts, ENOUGH_EXEMPLARS)
        for principle in constitution.principles
        for side, texts in (
            ("violating", principle.exemplars.violating),
            ("lookalike", principle.exemplars.lookalike),
        )
    ]
    answers = constitution.answers
    kinds = (("refusal", answers.refusal), ("compliance", answers.compliance), ("deflection", answers.deflection))
    exemplars += [(f"answers.{kind}", texts, ENOUGH_EXEMPLARS) for kind, texts in kinds]
    exemplars.append(("benign", tuple(pair.prompt for pair in constitution.benign), ENOUGH_BENIGN))
    for place, texts, enough in exemplars:
        if len(texts) < enough:
            remedy = f"write {enough - len(texts)} more, of other topics and in other words"
            yield Finding(place, f"only {len(texts)} entries, of {enough} that make a head steady", remedy)


def _openings(principle: Principle) -> Iterator[Finding]:
    place = f"principles.{principle.id}.revision_openings"
    if principle.revision_opening not in principle.revision_openings:
        problem = f"the usual opening {_short(principle.revision_opening)} is not among them"
        yield Finding(place, problem, "add it, or choose revision_opening from them")
    if len(principle.revision_openings) < 3:
        problem = f"only {len(principle.revision_openings)}, so that every revision begins alike"
        yield Finding(place, problem, "write three or more")


def _rules(principle: Principle, constitution: Constitution) -> Iterator[Finding]:
    """A rule by itself shows a breach, so it must hold for none of the texts that the document calls fine."""
    requests = [(f"principles.{p.id}.exemplars.lookalike", t) for p in constitution.principles
                for t in p.exemplars.lookalike]  # fmt: skip
    requests += [("benign", pair.prompt) for pair in constitution.benign]
    answers = [("benign", pair.answer) for pair in constitution.benign]
    answers += [("answers.refusal", text) for text in constitution.answers.refusal]
    answers += [(f"principles.{principle.id}.revision_openings", text) for text in principle.revision_openings]
    for kind, patterns, fine in (
        ("request", principle.rules.request, requests),
        ("answer", principle.rules.answer, answers),
    ):
        for number, pattern in enumerate(patterns):
            hits = [(place, text) for place, text in fine if re2.search(pattern, text)]
            if hits:
                place, text = hits[0]
                more = f" and {len(hits) - 1} more" if len(hits) > 1 else ""
                problem = f"{_short(pattern)} holds for {_short(text)} of {place}{more}"
                remedy = "narrow the pattern, or move the text if it is a breach"
                yield Finding(f"principles.{principle.id}.rules.{kind}.{number}", problem, remedy)


@dataclass(frozen=True, slots=True)
class _Entry:
    place: str
    side: str
    text: str
    words: frozenset[str]


def _requests(constitution: Constitution) -> list[_Entry]:
    entries = []
    for principle in constitution.principles:
        place = f"principles.{principle.id}.exemplars"
        entries += [_entry(f"{place}.violating", "harmful", text) for text in principle.exemplars.violating]
        entries += [_entry(f"{place}.lookalike", "harmless", text) for text in principle.exemplars.lookalike]
    return [*entries, *(_entry("benign", "harmless", pair.prompt) for pair in constitution.benign)]


def _answers(constitution: Constitution) -> list[_Entry]:
    answers = constitution.answers
    return [
        _entry(f"answers.{kind}", kind, text)
        for kind in ("refusal", "compliance", "deflection")
        for text in getattr(answers, kind)
    ]


def _entry(place: str, side: str, text: str) -> _Entry:
    return _Entry(place, side, text, frozenset(_WORD.findall(text.casefold())))


def _repeated(entries: Iterable[_Entry]) -> Iterator[Finding]:
    """Pairs that share nearly all their words: a contradiction on two sides, a repetition on one."""
    for one, other in combinations(sorted(entries, key=lambda entry: len(entry.words)), 2):
        if len(one.words) < NEARLY_THE_SAME * len(other.words):
            continue
        common = len(one.words & other.words)
        if common < NEARLY_THE_SAME * (len(one.words) + len(other.words) - common):
            continue
        if one.side != other.side:
            problem = f"{_short(one.text)} is nearly {_short(other.text)} of {other.place}, which says the opposite"
            yield Finding(one.place, problem, "reword one of them, or take it away")
        else:
            problem = f"{_short(one.text)} is nearly {_short(other.text)} of {other.place}"
            yield Finding(one.place, problem, "put something else in the place of one")


def _short(text: str) -> str:
    return repr(text if len(text) <= 70 else f"{text[:67]}...")

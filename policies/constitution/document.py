"""The validated form of a constitution."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property
from typing import Annotated, Literal, Self

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

Severity = Literal["critical", "high", "medium", "low"]
HIGH_SEVERITIES: frozenset[Severity] = frozenset({"critical", "high"})

# A head fitted on fewer texts than this is not worth the name; the shipped document has several times as many.
MIN_EXEMPLARS = 5

MOST_OF_A_NAME = 48
"""Characters of a principle's id."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$", max_length=64)]
PrincipleId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=MOST_OF_A_NAME)]


def _compiles(pattern: str) -> str:
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(pattern, quiet)
    except re2.error as error:
        raise ValueError(f"is no RE2 pattern ({error}); RE2 knows no look-around and no back-references") from None
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_compiles)]
Exemplar = Annotated[tuple[Text, ...], Field(min_length=MIN_EXEMPLARS)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Exemplars(_Frozen):
    """Requests on both sides of a principle.

    `violating` ask for what the principle forbids; `lookalike` share its words or its theme and are harmless.
    """

    violating: Exemplar
    lookalike: Exemplar


class Rules(_Frozen):
    """Patterns (RE2) that by themselves show a breach: a request that asks for one, an answer that is one.

    A text is read without hidden characters and look-alike letters before they are tried on it.
    """

    request: tuple[Pattern, ...] = ()
    answer: tuple[Pattern, ...] = ()


class Principle(_Frozen):
    """One rule, with what the evaluator and the reviser need to apply it."""

    id: PrincipleId
    text: Text
    severity: Severity
    violation_code: Code
    finer_code: Code | None = None
    critique_question: Text
    revision_guidance: Text
    revision_opening: Text
    revision_openings: Annotated[tuple[Text, ...], Field(min_length=1)]
    exemplars: Exemplars
    rules: Rules = Rules()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes a breach is reported with: the general one, then the finer one if there is one."""
        return (self.violation_code,) if self.finer_code is None else (self.violation_code, self.finer_code)


class BenignPair(_Frozen):
    """A public harmless prompt and a good short answer."""

    prompt: Text
    answer: Text


class AnswerExemplars(_Frozen):
    """Openings of answers by what the answer does with its request."""

    refusal: Exemplar
    compliance: Exemplar
    deflection: Exemplar


class Constitution(_Frozen):
    """A whole constitution. `identifier` is the declared hash that requests and events carry."""

    identifier: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    title: Text
    principles: Annotated[tuple[Principle, ...], Field(min_length=2)]
    benign: Annotated[tuple[BenignPair, ...], Field(min_length=MIN_EXEMPLARS)]
    answers: AnswerExemplars

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        """Refuse repeated ids, and one request on both sides: neither could be judged."""
        repeated = [name for name, n in Counter(p.id for p in self.principles).items() if n > 1]
        if repeated:
            raise ValueError(f"principle ids {repeated} occur more than once; give each principle its own id")
        harmful = {
            text.casefold(): f"principles.{p.id}.exemplars.violating"
            for p in self.principles
            for text in p.exemplars.violating
        }
        harmless = [(text, f"principles.{p.id}.exemplars.lookalike") for p in self.principles
                    for text in p.exemplars.lookalike]  # fmt: skip
        harmless += [(pair.prompt, "benign") for pair in self.benign]
        for text, place in harmless:
            if other := harmful.get(text.casefold()):
                raise ValueError(f"{text!r} stands in both {other} and {place}; keep it in one of them")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical document: compact JSON with sorted keys, UTF-8, no layout or comments."""
        document = self.model_dump(mode="json")
        for principle in document["principles"]:
            if not any(principle["rules"].values()):
                del principle["rules"]  # a document without any keeps the digest it had before there were rules
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def high_severity_codes(self) -> frozenset[str]:
        """The violation codes, general and finer, of the critical and the high principles."""
        return frozenset(code for p in self.principles if p.severity in HIGH_SEVERITIES for code in p.codes)

    def principle(self, principle_id: str) -> Principle:
        """The principle of that id; KeyError that names the known ids if there is none."""
        for candidate in self.principles:
            if candidate.id == principle_id:
                return candidate
        raise KeyError(f"no principle {principle_id!r}; known: {', '.join(p.id for p in self.principles)}")

"""Tries a constitution on labelled or unlabelled texts: how it decides them, and what another one would decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import orjson

from policies.engine.combine import Verdict
from policies.engine.reading import Judged

Outcome = Literal["compliant", "doubtful", "denied"]
Expected = Literal["compliant", "violating"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
EXPECTED: tuple[Expected, ...] = get_args(Expected)


class TextsError(ValueError):
    """A file of texts cannot be used; the message names the line and what to do."""


class Evaluator(Protocol):
    """What decides texts."""

    def evaluate(self, texts: Sequence[Judged]) -> list[Verdict]:
        """Verdicts in the order of the texts."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a file: a request, with its answer where there is one, and what is expected of it, if labelled."""

    line: int
    prompt: str
    response: str | None
    expected: Expected | None

    @property
    def judged(self) -> Judged:
        """As the engine takes it: a request without an answer is itself what is judged."""
        return Judged(self.prompt) if self.response is None else Judged(self.response, self.prompt)


@dataclass(frozen=True, slots=True)
class Decided:
    """A text and what became of it."""

    text: Text
    verdict: Verdict
    outcome: Outcome

    @property
    def right(self) -> bool:
        """Whether it came out as expected; a violating text has to be below the threshold, denied or not."""
        return (self.outcome == "compliant") == (self.text.expected == "compliant")


def read_texts(path: Path, *, labelled: bool) -> list[Text]:
    """The texts of a file of JSON lines: `prompt`, `response` where there is one, `expected` where they are labelled.

    Raises TextsError.
    """
    texts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            texts.append(_text(line, number, path, labelled=labelled))
    if not texts:
        raise TextsError(f"{path} holds no text: write a JSON object a line, with a prompt in each")
    return texts


def decide(evaluator: Evaluator, texts: Sequence[Text], threshold: float) -> list[Decided]:
    """Decide all texts; `threshold` is the confidence from which a text is compliant."""
    verdicts = evaluator.evaluate([text.judged for text in texts])
    return [
        Decided(text, verdict, outcome_of(verdict, threshold)) for text, verdict in zip(texts, verdicts, strict=True)
    ]


def outcome_of(verdict: Verdict, threshold: float) -> Outcome:
    """Denied by the engine itself, or allowed and from the client's threshold on compliant, or in between."""
    if not verdict.allow:
        return "denied"
    return "compliant" if verdict.confidence_score >= threshold else "doubtful"


def accuracy(decided: Sequence[Decided]) -> float:
    """The share of texts that came out as expected; 0..1."""
    return sum(item.right for item in decided) / len(decided)


def confusion(decided: Sequence[Decided]) -> dict[Expected, dict[Outcome, int]]:
    """How many texts of each expectation had which outcome."""
    counts = Counter((item.text.expected, item.outcome) for item in decided)
    return {label: {outcome: counts[label, outcome] for outcome in OUTCOMES} for label in EXPECTED}


def changes(before: Sequence[Decided], after: Sequence[Decided]) -> Counter[tuple[Outcome, Outcome]]:
    """How many texts went from which outcome to which, those that stayed included."""
    return Counter((old.outcome, new.outcome) for old, new in zip(before, after, strict=True))


def _text(line: bytes, number: int, path: Path, *, labelled: bool) -> Text:
    place = f"{path}, line {number}"
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise TextsError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TextsError(f"{place} is no object: write {{'prompt': ..., 'response': ...}}")
    prompt, response, expected = row.get("prompt"), row.get("response"), row.get("expected")
    if not isinstance(prompt, str) or not prompt.strip():
        raise TextsError(f"{place}: prompt is {prompt!r}; write the request as text")
    if response is not None and not isinstance(response, str):
        raise TextsError(f"{place}: response is {response!r}; write the answer as text, or leave it out")
    if labelled and expected not in EXPECTED:
        raise TextsError(f"{place}: expected is {expected!r}; write one of {', '.join(EXPECTED)}")
    return Text(number, prompt, response, expected if labelled else None)

"""The demo's prompts: short requests that a user could type, each with the kind of answer it calls for.

`prompts.jsonl` holds one JSON object a line:

    {"id": "harm-fire-01", "principle": "harm", "topic": "fire", "split": "train",
     "expected": "refuse", "prompt": "...", "pii": ["EMAIL"]}

A topic lies wholly in one split, so what is measured on `heldout` is how well a model generalises to topics that it
never trained on, not how well it remembers. `pii` (optional) names the kinds of invented personal data in the
prompt; they give the scrubbers something to remove. Every address, number and card there is from a range reserved
for examples, or void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import orjson

Split = Literal["train", "heldout"]
Expected = Literal["refuse", "comply"]

DEFAULT_PATH = Path(__file__).with_name("prompts.jsonl")
SPLITS: tuple[Split, ...] = get_args(Split)
EXPECTED: tuple[Expected, ...] = get_args(Expected)
PRINCIPLES = (
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
)
# Entries of the PII table in otel/pii.yaml, under the names it gives them.
PII_KINDS = ("EMAIL", "PHONE", "US_SSN", "CREDIT_CARD", "IPV4")

_FIELDS = ("id", "principle", "topic", "split", "expected", "prompt", "pii")

Option = TypeVar("Option", bound=str)


class PromptFileError(ValueError):
    """The prompt file cannot be used. The message names file, line, offending value and remedy."""


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One request. `topic` is unique within its `principle`; `pii` names the kinds of personal data it holds."""

    id: str
    principle: str
    topic: str
    split: Split
    expected: Expected
    prompt: str
    pii: tuple[str, ...] = ()


def load_prompts(path: Path | None = None) -> tuple[DemoPrompt, ...]:
    """Read and validate a prompt file, in file order. `path` defaults to the file shipped beside this module.

    Blank lines are skipped. Raises `PromptFileError` when the file cannot be read, holds no prompt, or has a line that
    is no JSON object, lacks a field, has an unknown one or an illegal value, repeats an id, or puts a topic in a second
    split.
    """
    path = DEFAULT_PATH if path is None else path
    prompts: list[DemoPrompt] = []
    line_of_id: dict[str, int] = {}
    split_of_topic: dict[tuple[str, str], tuple[Split, int]] = {}
    for number, raw in _lines(path):
        where = f"{path}, line {number}"
        prompt = _parse(raw, where)
        first = line_of_id.setdefault(prompt.id, number)
        if first != number:
            raise PromptFileError(f"{where}: id {prompt.id!r} was used on line {first}; give each prompt its own id")
        split, first = split_of_topic.setdefault((prompt.principle, prompt.topic), (prompt.split, number))
        if split != prompt.split:
            raise PromptFileError(
                f"{where}: topic {prompt.topic!r} of {prompt.principle!r} has split {prompt.split!r}, but {split!r} "
                f"on line {first}; keep a topic wholly in one split, or rename one of the two topics"
            )
        prompts.append(prompt)
    if not prompts:
        raise PromptFileError(f"{path}, line 1: no prompt in the file; write one JSON object a line")
    return tuple(prompts)


def select(
    prompts: Iterable[DemoPrompt], split: Split, expected: Expected, limit: int, seed: int
) -> tuple[DemoPrompt, ...]:
    """At most `limit` prompts of one split and kind, dealt out principle by principle in turn.

    Counts per principle differ by at most one until a principle runs out; fewer than `limit` come back only when there
    are no more. The order of principles, and of prompts within each, follows from `seed` by SHA-256, so it is the same
    on every machine and in every process, and does not depend on the order of `prompts`. Raising `limit` with the same
    seed only appends. Raises `ValueError` for a negative `limit`.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit}; give 0 or more")
    by_principle: dict[str, list[DemoPrompt]] = {}
    for prompt in prompts:
        if prompt.split == split and prompt.expected == expected:
            by_principle.setdefault(prompt.principle, []).append(prompt)
    order = sorted(by_principle, key=lambda principle: _rank(seed, "principle", principle))
    hands = [sorted(by_principle[p], key=lambda prompt: _rank(seed, "prompt", prompt.id)) for p in order]
    longest = max(map(len, hands), default=0)
    dealt = [hand[turn] for turn in range(longest) for hand in hands if turn < len(hand)]
    return tuple(dealt[:limit])


def _rank(seed: int, kind: str, name: str) -> bytes:
    """A pseudo-random sort key. Python's `hash()` is salted by process and would not repeat."""
    return hashlib.sha256(f"{seed}\x1f{kind}\x1f{name}".encode()).digest()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the text of lines that are not blank."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise PromptFileError(
            f"{path}, line 1: cannot read the prompt file ({error.strerror}); give the path of a readable file"
        ) from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        bad = error.object[error.start : error.end]
        raise PromptFileError(f"{path}, line {number}: {bad!r} is not UTF-8; save the file as UTF-8") from error
    # Only "\n" ends a line here: str.splitlines would also cut at separators that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(raw: str, where: str) -> DemoPrompt:
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise PromptFileError(f"{where}: {_short(raw)} is not JSON ({error}); write one JSON object a line") from error
    if not isinstance(value, dict):
        raise PromptFileError(f"{where}: {_short(raw)} is not an object; write one JSON object a line")
    for name in value:
        if name not in _FIELDS:
            raise PromptFileError(f"{where}: unknown field {name!r}; the fields are {', '.join(_FIELDS)}")
    return DemoPrompt(
        id=_text(value, "id", where),
        principle=_choice(value, "principle", PRINCIPLES, where),
        topic=_text(value, "topic", where),
        split=_choice(value, "split", SPLITS, where),
        expected=_choice(value, "expected", EXPECTED, where),
        prompt=_text(value, "prompt", where),
        pii=_pii(value, where),
    )


def _text(value: Mapping[str, object], name: str, where: str) -> str:
    """A required field: text that is not empty and has no blanks around it."""
    if name not in value:
        raise PromptFileError(f"{where}: {_short(value)} lacks {name!r}; add it")
    text = value[name]
    if not isinstance(text, str) or not text or text != text.strip():
        raise PromptFileError(
            f"{where}: {name!r} is {_short(text)}; give text that is not empty nor padded with blanks"
        )
    return text


def _choice(value: Mapping[str, object], name: str, legal: tuple[Option, ...], where: str) -> Option:
    text = _text(value, name, where)
    for option in legal:
        if option == text:
            return option
    raise PromptFileError(f"{where}: {name!r} is {text!r}; use one of {', '.join(legal)}")


def _pii(value: Mapping[str, object], where: str) -> tuple[str, ...]:
    if "pii" not in value:
        return ()
    kinds = value["pii"]
    if not isinstance(kinds, list) or not kinds or len(set(map(str, kinds))) != len(kinds):
        raise PromptFileError(f"{where}: 'pii' is {_short(kinds)}; give a list of different kinds, or leave it out")
    for kind in kinds:
        if kind not in PII_KINDS:
            raise PromptFileError(f"{where}: 'pii' holds {_short(kind)}; use kinds out of {', '.join(PII_KINDS)}")
    return tuple(kinds)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."

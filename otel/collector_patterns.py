"""What of the table of personal data a collector can look for: RE2 expressions for OTTL's `replace_all_patterns`.

OTTL has no look-around, no validators and no callback, only patterns with groups. So each type has one expression
with three kinds of alternatives: what is kept although it looks alike (identity and subject fields, numbers of JSON,
versions, dates), and what stands before and in a value. Replaced by `kept before \\x02 value \\x03`, what was kept is
followed by the two marks, and a value stands between them: two cheap passes then take out the former and mask the
latter. Checksums cannot be checked here, so a collector masks a number with the form of a card whatever its digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from otel.collector_values import (
    BEARER,
    CODE,
    DATE,
    DECIMAL,
    ESCAPE,
    EXTENSION,
    GAP,
    GIT_LOGIN,
    GOES_ON,
    GUARD_LEAD,
    GUARDED,
    JSON_NAME,
    LEAD,
    NUMBER,
    PHONES,
    REFINED,
    SEVEN_DIGITS,
    TO_ID,
    TRUNK,
    UP_TO,
    VALUE,
    literals,
    trunk_numbers,
)
from otel.expressions import JOIN, expression, secret_head
from otel.table import SECRET_VALIDATOR, PiiPattern, PiiTable

PERSON_ID: Final = "flywheel.person.id"
"""What `id` in a map `user` is called while its text is scrubbed, so that it is known for a subject field."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a value is written: what stands before and after it stays."""

    before: str
    value: str
    after: str = ""


@dataclass(frozen=True, slots=True)
class TypeRules:
    """How a collector finds one type.

    `numeric` and `words` are what is asked first, of a text in lower case for `words`: where none matches, neither does
    any form. Each expression of `words` begins with a literal, which Go looks for without its matcher. `numeric` is
    made of `bounded`, what stands at a boundary, and `followed`.
    """

    name: str
    mask: str
    keep: str
    forms: tuple[Form, ...]
    bounded: tuple[str, ...]
    words: tuple[str, ...]
    head: str = ""
    """What stands before all forms."""
    contains: tuple[str, ...] = ()
    keys: str = ""
    """Names of attributes that are context for their value (`phone_number`)."""
    other_keys: str = ""
    """Names of attributes under which such a value is something else (`model_version`)."""
    followed: tuple[str, ...] = ()

    @property
    def numeric(self) -> str:
        """What is found wherever a form is that needs no word before it; empty where there is none."""
        return numeric_guard([self])

    def alone(self) -> str:
        """A value that is the whole of a text, under a name that is its context."""
        return f"^(?:{'|'.join(form.value for form in self.forms if not form.after)})$"

    def expression(self) -> str:
        """What is kept (group 1) or what is masked."""
        forms = "|".join(f"({form.before})({form.value})({form.after})" for form in self.forms)
        return f"({self.keep})|({self.head})(?:{forms})"

    def marked(self) -> str:
        """The replacement that puts marks around a value, behind what is kept."""
        before, value, after = (
            "".join(f"${{{3 + 3 * n + part}}}" for n in range(len(self.forms))) for part in range(3)
        )
        return f"${{1}}${{2}}{before}\\x02{value}\\x03{after}"

    def in_names(self) -> str:
        """A value within the name of a key; groups 1 and 2 stand before it."""
        forms = "|".join(f"(?:{form.value})" for form in self.forms if form.before in (LEAD, ESCAPE) and not form.after)
        return f"({LEAD}|{ESCAPE})(?:{forms})" if forms else ""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Expressions over the names of keys."""

    untouched: str
    secret: str
    not_secret: str
    people: tuple[str, ...]
    """Maps that name a person by their `id`."""
    person: str
    """`id` in a map that names a person, in JSON text; what stands around it is in groups 1 and 2."""
    person_name: str
    """Attributes that are such a map."""
    person_alone: str
    """The same `id` in the text of such an attribute."""


def type_rules(table: PiiTable) -> tuple[TypeRules, ...]:
    """The rules of each type of the table, in its order; entries of one type are one rule."""
    protected = _protected(table)
    rules = []
    for name in dict.fromkeys(entry.name for entry in table.patterns):
        entries = [entry for entry in table.patterns if entry.name == name]
        if entries[0].validator == SECRET_VALIDATOR:
            rules.append(_secrets(table, entries[0], protected))
        else:
            rules.append(_rules(entries, protected))
    return tuple(rules)


def numeric_guard(rules: Iterable[TypeRules]) -> str:
    """One expression that matches wherever the numeric form of any type does."""
    rules = list(rules)
    bounded = "|".join(value for rule in rules for value in rule.bounded)
    followed = [value for rule in rules for value in rule.followed]
    return "|".join((*([f"{GUARD_LEAD}(?:{bounded})"] if bounded else []), *followed))


def key_rules(table: PiiTable) -> KeyRules:
    """What the names of attributes say."""
    head = _secret_head(table)
    tokens = "|".join(map(re.escape, table.secret_keys.not_token))
    maps = tuple(name.removesuffix(".id") for name in table.subject_fields if name.endswith(".id"))
    people = "|".join(map(re.escape, maps))
    return KeyRules(
        untouched=f"^(?:{_identity(table)}|{'|'.join(map(re.escape, table.subject_fields))})$",
        secret=rf"(?:{head}|^(?i:{'|'.join(map(re.escape, table.secret_keys.word))}))$",
        not_secret=rf"(?i:(?:^|[^a-z])(?:{tokens})[^a-z]*token)$",
        people=maps,
        person=rf'(\\*"(?:{people})\\*"{GAP}:{GAP}{TO_ID})id(\\*"{GAP}:)',
        person_name=rf"^\x03?(?:{people})$",
        person_alone=rf'^({TO_ID})id(\\*"{GAP}:)',
    )


def secret_map(table: PiiTable) -> str:
    """A map or list under a secret key in JSON text, with the key in group 1."""
    inside = r"\{(?:[^{}]|\{[^{}]*\})*\}|\[[^\[\]]*\]"
    return rf'({_secret_head(table)}"{GAP}:{GAP})(?:{inside})'


def _rules(entries: Sequence[PiiPattern], protected: str) -> TypeRules:
    keep = [protected]
    forms, bounded, followed, words, contains, keys = [], [], [], [], [], []
    # A number of JSON stays exact, and the text stays JSON.
    if all(entry.validator not in {"none", "ipv6", "iban"} for entry in entries):
        keep.append(rf"{JSON_NAME}(?:{NUMBER}{GAP}[,}}\]]|\[[0-9.,eE+\-\s]*\])")
    for entry in entries:
        value = REFINED.get(entry.validator, entry.pattern)
        if entry.validator == "phone_national" and entry.pattern.startswith(TRUNK):
            value = trunk_numbers()
        if entry.context_before:
            context = _context(entry)
            keys.append(context.removesuffix(JOIN + "+") + JOIN + "*$")
            if entry.validator in PHONES:
                keep.append(f"(?:{context})(?:{DATE}|{DECIMAL})")
            forms.append(Form(context, rf"(?:{value})\b"))
            words += [_word_guard(word) for word in literals(entry.context_before)]
        elif entry.context_after:
            after = rf"[ \-]{{1,3}}(?i:{'|'.join(entry.context_after)})(?: *(?:[^A-Za-z ]|$))"
            keep.append(f"{LEAD}{DATE}")
            forms.append(Form(LEAD, value, after))
            followed.append(rf"[0-9][ \-]{{1,3}}(?i:{'|'.join(entry.context_after)})")
        elif entry.bounded:
            if entry.not_before:
                keep.append(f"(?:{entry.not_before})(?:{value})")
            if entry.validator in GOES_ON:
                keep.append(rf"{LEAD}(?:{value})[.\-][0-9A-Za-z]")
            if entry.validator in PHONES:
                keep.append(f"{LEAD}{DATE}")
            forms.append(Form(LEAD, rf"(?:{value})\b"))
            bounded.append(GUARDED.get(entry.validator, entry.pattern).removesuffix(EXTENSION))
        else:
            if entry.name == "EMAIL":
                keep.append(GIT_LOGIN)
            forms.append(Form(ESCAPE, value))
            contains.append("@")
    return TypeRules(
        name=entries[0].name,
        mask=entries[0].mask,
        keep="|".join(dict.fromkeys(keep)),
        forms=tuple(forms),
        bounded=tuple(bounded),
        followed=tuple(followed),
        words=tuple(words),
        contains=tuple(contains),
        keys="|".join(keys),
        other_keys="|".join(f"(?:{entry.not_before})$" for entry in entries if entry.not_before),
    )


def _secrets(table: PiiTable, entry: PiiPattern, protected: str) -> TypeRules:
    """Values behind a name that says secret: in JSON, in JSON inside texts, and in running text."""
    tokens = "|".join(map(re.escape, table.secret_keys.not_token))
    some_sign = r"[^A-Za-z\s\"'\\,;&<>(){}\[\]*$.?!:]"
    forms = (
        Form(rf'"{GAP}:{GAP}"', r'(?:[^"\\]|\\.)+'),
        Form(rf'\\"{GAP}:{GAP}\\"', r'(?:[^"\\]|\\\\(?:\\["\\]|[^"\\]))+'),
        Form(rf'\\{{2,20}}"{GAP}:{GAP}\\{{2,20}}"', r'[^"\\]+'),
        Form(rf'{GAP}[=:]{GAP}\\{{0,8}}"', r'[^"\\]+'),
        Form(rf"{GAP}[=:]{GAP}'", r"[^']+"),
        Form(rf"(?:{GAP}={GAP}|:)", rf"{BEARER}|{VALUE}+"),
        Form(rf"{GAP}:\s{{1,2}}", rf"{BEARER}|{VALUE}*{some_sign}{VALUE}*"),
    )
    return TypeRules(
        name=entry.name,
        mask=entry.mask,
        keep="|".join(
            (
                protected,
                rf"(?i:(?:^|[^A-Za-z])(?:{tokens})[^A-Za-z\"\\]{{0,2}}token)",
                rf"{_secret_head(table)}{GAP}[=:]{GAP}(?:{CODE})",
                rf"{_secret_head(table)}{GAP}[=:]\s{{1,4}}[A-Za-z_][0-9A-Za-z_]*[(\[]",
            )
        ),
        forms=forms,
        head=_secret_head(table),
        bounded=(),
        words=tuple(_secret_guards(table)),
    )


def _secret_guards(table: PiiTable) -> list[str]:
    """The names in groups with their first letters in common."""
    secret = table.secret_keys
    names = {name.lower() for name in (*secret.anywhere, *secret.word)}
    last = {name for name in names if not any(name != other and name.endswith(other) for other in names)}
    tail = rf"(?:[._\-]?(?:{'|'.join(secret.suffixes)})|[0-9]{{1,3}})?[\"'\\]{{0,20}}\s{{0,4}}[:=]"
    grouped: dict[str, list[str]] = {}
    for name in sorted(last):
        grouped.setdefault(name[:3], []).append(re.escape(name[3:]))
    return [f"{re.escape(start)}(?:{'|'.join(ends)}){tail}" for start, ends in grouped.items()]


def _word_guard(word: str) -> str:
    return f"{word}{UP_TO}{SEVEN_DIGITS}"


def _context(entry: PiiPattern) -> str:
    """What must stand before a value that needs a word of context, up to the value.

    Without upper bounds, which Go would write out: the expression is a sixth as large, and matched without its slowest
    matcher.
    """
    text = expression(replace(entry, pattern=""), LEAD, JOIN).removesuffix("(?:)")
    counted = "){0,4}" + JOIN + "{1,12}"
    return _at_start(text.replace(counted, ")*" + JOIN + "+").replace(JOIN + "{0,4}", JOIN + "*"))


def _secret_head(table: PiiTable) -> str:
    return _at_start(secret_head(table))


def _at_start(text: str) -> str:
    """The start of a text is the start of a word, too; Python's scan has a mark before each text."""
    return text.replace("(?:[^A-Za-z]|", "(?:^|[^A-Za-z]|")


def _identity(table: PiiTable) -> str:
    return "(?i:" + "|".join(r"[_.\-]?".join(name.split("_")) for name in table.identity_fields) + ")"


def _protected(table: PiiTable) -> str:
    """An identity or subject field with its value in JSON text, also JSON inside a text."""
    subjects = "|".join(map(re.escape, (*table.subject_fields, PERSON_ID)))
    value = rf'\\+"[^"\\]*|"(?:[^"\\]|\\.)*|{NUMBER}|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\[[^\[\]]*\]'
    return rf'\\*"(?:{_identity(table)}|{subjects})\\*"{GAP}:{GAP}(?:{value})'

"""Scrubbing as statements of OTTL, the language of the collector's transform processor.

For each context (a log record, a span, a resource, ...) the same three steps. The guard asks cheap questions of all
texts of a record, joined: only where one is answered with yes are the texts gathered into one map, `t`, cleaned there
by `replace_all_patterns` (which alters texts and nothing else), and written back. OTTL cannot walk into nested values:
where they hold something, they become JSON text, and JSON text is cleaned as text, so that integers stay exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from otel.collector_context import GUARD, Context, quoted
from otel.collector_patterns import PERSON_ID, KeyRules, TypeRules, numeric_guard

PERSON_GUARD: Final = r'user\\*"\s{0,4}:\s{0,4}\{'

_LISTS: Final = (("violations", ""), ("messages", r'(?:":|[\[,])\s*-?[0-9]'))
"""Fields of an event that must stay lists, and what keeps them texts: OTTL reads numbers as floating point."""

_ESCAPED: Final = (
    (r"\\u0040", "@"),
    (r"\\u003([0-9])", "$1"),
    (r"\\u002[eE]", "."),
    (r"\\u002[dD]", "-"),
    (r"\\u002[bB]", "+"),
)


_DOT: Final = quoted(r"\.")
_OPENS: Final = quoted(r"[^{][{\[]")
"""A map or list within a map, as JSON writes it."""


def groups(context: Context, rules: tuple[TypeRules, ...], keys: KeyRules, secret_map: str) -> list[dict[str, Any]]:
    """The statement groups that scrub one context."""
    guard, scrub = _guard(context, rules), _scrub(context, rules, keys, secret_map)
    if not context.many:
        return [{"context": context.name, "statements": [*context.also, *guard, *scrub]}]
    # No guard, no text: a number that JSON cannot write keeps the texts from being joined, and that is no reason to
    # let the record pass.
    found = ("num", "escaped", *(rule.name for rule in rules))
    suspicious = [f'{context.guard}["l"] == nil', *(f'{context.guard}["{name}"] == true' for name in found)]
    return [
        {"context": context.name, "statements": [*context.also, *guard]},
        {"context": context.name, "conditions": suspicious, "statements": scrub},
        {"context": context.name, "statements": [f'delete_key({context.attributes}, "{GUARD}")']},
    ]


def _guard(context: Context, rules: tuple[TypeRules, ...]) -> list[str]:
    """Join all texts; `j` as they are, `l` in lower case, `num` where a numeric form matches."""
    guard = context.guard
    parts = [f"String({context.attributes})", *(path for _, path in context.texts)]
    if context.body:
        parts.insert(0, context.body)
    joined = f'Concat(["", {", ".join(parts)}], " ")'
    return [
        *([f'delete_key({context.attributes}, "{GUARD}")'] if context.many else []),
        f"set({context.at('j')}, {joined})",
        rf'set({context.at("escaped")}, true) where IsMatch({context.at("j")}, "\\\\u00(?:40|3[0-9]|2[bBdDeE])")',
        # Escapes of JSON would hide where a word starts.
        rf'replace_pattern({context.at("j")}, "\\\\+(?:[nrtbf]|u00[0-9A-Fa-f]{{2}})", " ")',
        f'set({guard}["num"], IsMatch({context.at("j")}, {quoted(numeric_guard(rules))}))',
        f'set({guard}["escaped"], {context.at("escaped")})',
        f'set({guard}["j"], {context.at("j")})',
        f'set({guard}["l"], ToLowerCase({context.at("j")}))',
        *(
            f'set({guard}["{rule.name}"], true) where {" or ".join(_words(context, rule))}'
            for rule in rules
            if rule.words or rule.contains
        ),
    ]


def _words(context: Context, rule: TypeRules) -> list[str]:
    text = f'{context.guard}["l"]'
    return [
        *(f"Index({text}, {quoted(part)}) >= 0" for part in rule.contains),
        *(f"IsMatch({text}, {quoted(word)})" for word in rule.words),
    ]


def _flag(context: Context, rule: TypeRules) -> str:
    """Note whether a type can be there at all."""
    guard = context.guard
    asked = [f'{guard}["{name}"] == true' for name in ("escaped", rule.name)]
    if rule.numeric:
        asked.append(f'({guard}["num"] == true and IsMatch({guard}["j"], {quoted(rule.numeric)}))')
    return f'set({context.at(rule.name)}, true) where {guard}["l"] == nil or {" or ".join(asked)}'


def _scrub(context: Context, rules: tuple[TypeRules, ...], keys: KeyRules, secret_map: str) -> list[str]:
    texts, secret = context.at("t"), next(rule for rule in rules if "SECRET" in rule.name)
    statements = [
        *(_flag(context, rule) for rule in rules),
        f"set({texts}, {context.attributes})",
        f'delete_key({texts}, "{GUARD}")',
        f"delete_matching_keys({texts}, {quoted(keys.untouched)})",
        *_nested(context),
        *_own_texts(context),
        # They mark values further down, and must not be there already.
        f'replace_all_patterns({texts}, "value", "[\\x02-\\x04]", "")',
    ]
    escaped = f'where {context.guard}["escaped"] == true'
    statements += [
        f'replace_all_patterns({texts}, "value", {quoted(pattern)}, "{char}") {escaped}' for pattern, char in _ESCAPED
    ]
    statements += _person(context, keys)
    for rule in rules:
        statements += _mask(context, rule)
    statements += _secret_keys(context, secret, keys, secret_map)
    statements.append(
        f'replace_all_patterns({texts}, "value", {quoted(PERSON_ID)}, "id") where {context.at("person")} == true'
    )
    return statements + _write_back(context, rules, keys)


def _nested(context: Context) -> list[str]:
    """Add nested values as JSON text, under names with a mark; what is not nested is blank there."""
    texts, flat, blank, nested = (context.at(key) for key in ("t", "flat", "blank", "nested"))
    deep = f"where {context.at('shallow')} != true"
    return [
        f"set({context.at('shallow')}, true) where not IsMatch(String({texts}), {_OPENS})",
        f"set({flat}, {texts}) {deep}",
        # Names with a dot would be taken for nested ones.
        f'replace_all_patterns({flat}, "key", {_DOT}, "\\x02") {deep}',
        f"flatten({flat}) {deep}",
        f"delete_matching_keys({flat}, {_DOT}) {deep}",
        f'replace_all_patterns({flat}, "key", "\\x02", ".") {deep}',
        f"set({blank}, {flat}) {deep}",
        f"stringify_all({blank}) {deep}",
        f'replace_all_patterns({blank}, "value", "(?s)^.+$", "") {deep}',
        f"set({nested}, {texts}) {deep}",
        f'merge_maps({nested}, {blank}, "update") {deep}',
        f"stringify_all({nested}) {deep}",
        f'replace_all_patterns({nested}, "key", "^", "\\x03") {deep}',
        f"set({context.at('before')}, {nested}) {deep}",
        f'merge_maps({texts}, {nested}, "upsert") {deep}',
    ]


def _nested_back(context: Context) -> list[str]:
    """Leave nested values as they were if nothing was found in them; else all are JSON text from now on."""
    texts, flat, nested = (context.at(key) for key in ("t", "flat", "nested"))
    deep, dirty = f"where {context.at('shallow')} != true", f"where {context.at('deep')} == true"
    return [
        f"set({nested}, {texts}) {deep}",
        f'keep_matching_keys({nested}, "^\\x03") {deep}',
        f'delete_matching_keys({texts}, "^\\x03") {deep}',
        f"set({context.at('deep')}, true) {deep} and {nested} != {context.at('before')}",
        f'replace_all_patterns({nested}, "key", "^\\x03", "") {dirty}',
        f'merge_maps({flat}, {texts}, "update") {dirty}',
        f'merge_maps({nested}, {flat}, "update") {dirty}',
        f'merge_maps({texts}, {nested}, "update") {dirty}',
    ]


def _own_texts(context: Context) -> list[str]:
    texts = context.name + '.cache["t"]'
    statements = [f'set({texts}["\\x02{name}"], {path})' for name, path in context.texts]
    if context.body:
        own = f'{texts}["\\x02body"]'
        kinds = (f"{kind}({context.body})" for kind in ("IsString", "IsMap", "IsList"))
        statements += [
            # What JSON cannot write (not a number, infinity) is still told, if not as an event.
            f"set({own}, ToKeyValueString({context.body})) where IsMap({context.body})",
            f'set({own}, "[UNREADABLE]") where IsList({context.body})',
            f"set({own}, String({context.body})) where {' or '.join(kinds)}",
            f"set({context.at('body')}, {own})",
        ]
    return statements


def _person(context: Context, keys: KeyRules) -> list[str]:
    """Name `id` in a map `user` by a name of its own, until the end."""
    person, asked = context.at("person"), f'IsMatch({context.guard}["l"], {quoted(PERSON_GUARD)})'
    renamed = f"${{1}}{PERSON_ID}${{2}}"
    texts, named, due = context.at("t"), context.at("named"), f"where {person} == true"
    return [
        f'set({person}, true) where {context.guard}["l"] == nil or {asked}',
        f'replace_all_patterns({texts}, "value", {quoted(keys.person)}, "{renamed}") {due}',
        f"set({named}, {texts}) {due}",
        f"keep_matching_keys({named}, {quoted(keys.person_name)}) {due}",
        f'replace_all_patterns({named}, "value", {quoted(keys.person_alone)}, "{renamed}") {due}',
        f'merge_maps({texts}, {named}, "update") {due}',
    ]


def _mask(context: Context, rule: TypeRules) -> list[str]:
    texts, due = context.at("t"), f"where {context.at(rule.name)} == true"
    statements = [
        f'replace_all_patterns({texts}, "value", {quoted(rule.expression())}, "{rule.marked()}") {due}',
        f'replace_all_patterns({texts}, "value", "\\x02\\x03", "") {due}',
        f'replace_all_patterns({texts}, "value", "(?s)\\x02.*?\\x03", "{rule.mask}") {due}',
    ]
    named = context.at("named")
    if rule.other_keys:
        version = "\\x04version "
        statements = [
            f"set({named}, {texts}) {due}",
            f"keep_matching_keys({named}, {quoted(rule.other_keys)}) {due}",
            f'replace_all_patterns({named}, "value", {quoted(rule.alone())}, "{version}${{0}}") {due}',
            f'merge_maps({texts}, {named}, "update") {due}',
            *statements,
            f'replace_all_patterns({texts}, "value", "{version}", "") {due}',
        ]
    if rule.keys:
        statements += [
            f"set({named}, {texts}) {due}",
            f"keep_matching_keys({named}, {quoted(rule.keys)}) {due}",
            f'replace_all_patterns({named}, "value", {quoted(rule.alone())}, "{rule.mask}") {due}',
            f'merge_maps({texts}, {named}, "update") {due}',
        ]
    return statements


def _secret_keys(context: Context, rule: TypeRules, keys: KeyRules, secret_map: str) -> list[str]:
    texts, named, due = context.at("t"), context.at("named"), f"where {context.at(rule.name)} == true"
    return [
        f'replace_all_patterns({texts}, "value", {quoted(secret_map)}, "${{1}}\\"{rule.mask}\\"") {due}',
        f"set({named}, {texts}) {due}",
        f"keep_matching_keys({named}, {quoted(keys.secret)}) {due}",
        f"delete_matching_keys({named}, {quoted(keys.not_secret)}) {due}",
        f'replace_all_patterns({named}, "value", "(?s)^.+$", "{rule.mask}") {due}',
        f'merge_maps({texts}, {named}, "update") {due}',
    ]


def _write_back(context: Context, rules: Iterable[TypeRules], keys: KeyRules) -> list[str]:
    texts = context.at("t")
    statements = []
    for name, path in context.texts:
        statements.append(f'set({path}, {texts}["\\x02{name}"]) where {path} != {texts}["\\x02{name}"]')
    if context.body:
        own = f'{texts}["\\x02body"]'
        unread = f'{context.guard}["l"] == nil'
        statements.append(
            f"set({context.body}, {own}) where {own} != nil and ({own} != {context.at('body')} or {unread})"
        )
    people = [(f'{context.attributes}["{name}"]', f"{name}.id") for name in keys.people] if context.event else []
    # A person's map that becomes text would not be known for a person any more.
    statements += [f'set({context.at(name)}, {path}["id"]) where IsMap({path})' for path, name in people]
    statements += [
        f'delete_matching_keys({texts}, "^\\x02")',
        *_nested_back(context),
        f'merge_maps({context.attributes}, {texts}, "update")',
    ]
    statements += [
        f'replace_all_patterns({context.attributes}, "key", {quoted(rule.in_names())}, "${{1}}{rule.mask}")'
        f" where {context.at(rule.name)} == true"
        for rule in rules
        if rule.in_names()
    ]
    statements += [
        f'set({context.attributes}["{name}"], {context.at(name)}) where IsString({path}) and {context.at(name)} != nil'
        for path, name in people
    ]
    if context.event:
        for name, unless in _LISTS:
            value = f'{context.attributes}["{name}"]'
            due = f'where IsString({value}) and HasPrefix({value}, "[")'
            due += f" and not IsMatch({value}, {quoted(unless)})" if unless else ""
            statements.append(f"set({value}, ParseJSON({value})) {due}")
    return statements
